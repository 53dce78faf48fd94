"""How convolutions run on a GPU, found by a trial of seconds where the config leaves it open.

Which lowering is fast depends on the card, the network and the batch. The first start of a run
tries them, and the run keeps what was found: it goes on with the same form wherever it is resumed.
On a CPU and a TPU nothing is timed: ``lowerings.choose_lowering`` decides there.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mvo_jax.data.splits import Split
from mvo_jax.devices import distributed, parallel
from mvo_jax.models.ops.lowerings import choose_lowering
from mvo_jax.runs.folder import RunFolder
from mvo_jax.training.programs import make_run_steps
from mvo_jax.training.setup import set_up

log = logging.getLogger(__name__)

TRIED: dict[str, tuple[str, ...]] = {
    "gpu": ("conv2d", "conv2d_padded", "conv3d", "conv3d_padded", "conv3d_pairs")
}
SECONDS = 10.0  # of steps, all lowerings together; compiling them comes on top


def settle_lowering(config: Any, folder: RunFolder) -> Any:
    """The config with the lowering of the run in place of 'auto'.

    Process 0 chooses, and the others take over what it found.

    Args:
        config: resolved config.
        folder: of the run. Where it has a config already, that one's lowering stays, on whatever
            backend the run goes on.

    Returns:
        ``config`` itself where it names a lowering, and where 'auto' stays.

    Raises:
        UserError: the config cannot work, or the config of the folder cannot be read.
    """
    if config.model.get("lowering") != "auto":
        return config

    def choose() -> str:
        if not distributed.is_first():
            return ""
        if (folder.path / "config.json").exists():
            return folder.config().get("model", {}).get("lowering", "auto")
        names = TRIED.get(jax.default_backend())
        return fastest(config, names) if names else "auto"

    chosen = distributed.exchange(distributed.first_then_others(choose))[0]
    if chosen == "auto":
        return config
    settled = config.copy_and_resolve_references().unlock()
    settled.model.lowering = chosen
    return settled.lock()


def fastest(
    config: Any, names: Sequence[str], *, now: Callable[[], float] = time.perf_counter
) -> str:
    """The lowering whose training step takes least time, on one device of this process.

    Lowerings take turns, so that a card which slows down slows all of them. One that cannot be
    compiled, or does not fit into memory, is left out.

    Args:
        config: resolved config; its data are not read.
        names: lowerings to try.
        now: a clock, in seconds.

    Returns:
        The fastest; that of ``choose_lowering`` where none works.

    Raises:
        UserError: the config cannot work.
    """
    steps = {}
    for name in names:
        try:
            steps[name] = _step(config, name)
        except jax.errors.JaxRuntimeError as error:
            log.warning(f"lowering {name} does not work here: {str(error).splitlines()[0]}")
    if not steps:
        return choose_lowering(jax.default_backend())
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    began = now()
    while now() - began < SECONDS:
        for name, step in steps.items():
            start = now()
            step()
            seconds[name].append(now() - start)
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    text = ", ".join(f"{name} {1000 * median:.1f} ms" for name, median in medians.items())
    best = min(medians, key=medians.__getitem__)
    log.info(f"a step takes {text}: {best} from here on")
    return best


def _step(config: Any, lowering: str) -> Callable[[], None]:
    """One training step of made-up clips, compiled and done once; each call does another."""
    devices = parallel.devices(config.train.num_devices)
    changed = config.copy_and_resolve_references().unlock()
    changed.model.lowering = lowering
    changed.train.batch_size //= len(devices)
    experiment = set_up(changed, devices=parallel.own(devices)[:1])
    cases, clip, draws = changed.train.batch_size, experiment.clip_shape, np.random.default_rng(0)
    split = Split(
        name="made up",
        label=(np.arange(cases) % 2).astype(np.int32),
        case_id=tuple(map(str, range(cases))),
        patient_id=tuple(map(str, range(cases))),
        features={},
        video=draws.integers(0, 256, (cases, *clip), np.uint8),
        lge_mask=draws.integers(0, 4, (cases, *clip[1:3]), np.uint8),
    )
    run = make_run_steps(experiment, split, range(0), 1)
    state = experiment.init_state()

    def step() -> None:
        nonlocal state
        state, metrics = run(state, np.arange(cases)[None])
        jax.block_until_ready(metrics)

    step()
    return step
