"""Temporal encoder: any length, bad settings; tests/interop/parity has both forms beside torch."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mvo_jax.models.temporal_encoder import TemporalEncoder


@pytest.mark.parametrize(("steps", "layers"), [(1, 1), (4, 1), (7, 3), (4, 0)])
def test_any_number_of_tokens_and_blocks(steps, layers):
    encoder: Any = TemporalEncoder(num_layers=layers, num_heads=4)
    tokens = jnp.zeros((2, steps, 16))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), tokens, train=False))
    assert shapes["params"]["position"].shape == (1, steps + 1, 16)
    assert sum(name.startswith("block") for name in shapes["params"]) == layers
    out, kept = jax.eval_shape(
        lambda v: encoder.apply(v, tokens, train=False, mutable=["intermediates"]), shapes
    )
    assert out.shape == (2, steps + 1, 16)
    assert {"embedded", "encoded"} <= set(kept["intermediates"])


def test_heads_that_do_not_divide_the_tokens_are_refused():
    encoder: Any = TemporalEncoder(num_heads=4)
    with pytest.raises(ValueError, match="hidden size 10 is not divisible by 4 heads"):
        jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 4, 10)), train=False))
