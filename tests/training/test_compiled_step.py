"""What XLA made of a dispatch: nothing goes through the host, and the state is updated in place."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvo_jax.devices import parallel
from mvo_jax.training.programs import parallel_step
from mvo_jax.training.setup import set_up


def through_the_host(program: str) -> set[str]:
    """Operations of a compiled program that talk to the host."""
    operations = re.findall(r" (infeed|outfeed|send|recv)(?:-done)?\(", program)
    targets = re.findall(r'custom_call_target="([^"]*)"', program)
    host_memory = re.findall(r"S\(5\)", program)  # arrays placed in host memory
    return {*operations, *host_memory, *(t for t in targets if re.search("callback|[Hh]ost", t))}


def test_the_check_sees_what_goes_through_the_host():
    def noisy(x):
        jax.debug.print("{}", x)
        return lax.fori_loop(0, 3, lambda _, y: y + 1, x)

    program = str(jax.jit(noisy).lower(jnp.ones(())).compile().as_text())
    assert through_the_host(program)


@pytest.mark.parametrize(
    "steps", [1, pytest.param(2, marks=pytest.mark.slow(reason="compiles the network again"))]
)
def test_a_dispatch_stays_on_the_device(tiny_config, random_split, steps):
    config = tiny_config(**{"train.total_steps": 5})
    experiment = set_up(config)
    step: Any = parallel_step(experiment, streamed=False)
    split = random_split()
    data = {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}
    state = experiment.init_state()
    indices = parallel.shard(np.zeros((steps, 8), np.int32), 1)
    compiled = step.lower(state, data, indices, jax.random.key(0)).compile()
    program = compiled.as_text()
    assert through_the_host(program) == set()
    header = program.split("\n", 1)[0]
    donated = re.findall(r"\{\d+\}: \(\d+, \{\}, (?:may|must)-alias\)", header)
    assert len(donated) == len(jax.tree.leaves(state))
