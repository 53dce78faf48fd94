"""Self-attention of the video transformers and the exact GELU, against what they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mvo_jax.models.ops import attention
from mvo_jax.models.ops.layers import gelu


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_long_sequences_attend_like_short_ones(monkeypatch, leading):
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((*leading, length, 2, 5)) for length in (7, 9, 9))
    cotangent = rng.standard_normal((*leading, 7, 10))

    def out_and_gradients():
        out, pull = jax.vjp(attention.attend, *map(jnp.asarray, (query, key, value)))
        assert out.dtype == "float64"
        return out, *pull(jnp.asarray(cotangent))

    with jax.enable_x64(True):
        kept = out_and_gradients()
        monkeypatch.setattr(attention, "MANY_WEIGHTS", 0)
        recomputed = out_and_gradients()
    for a, b in zip(kept, recomputed, strict=True):
        # Sums over at most 9 tokens in another order: a few roundings.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_weights_of_long_sequences_are_not_kept(monkeypatch):
    monkeypatch.setattr(attention, "MANY_WEIGHTS", 0)
    query = jnp.ones((3, 32, 2, 4))
    kept = jax.tree.leaves(jax.vjp(attention.attend, query, query, query)[1])
    assert max(array.size for array in kept) == query.size  # the weights have 8 times as many


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_is_the_exact_one(dtype):
    with jax.enable_x64(True):
        x = jnp.linspace(-12, 12, 4001, dtype=dtype)
        ours, pull = jax.vjp(gelu, x)
        theirs, their_pull = jax.vjp(lambda x: nn.gelu(x, approximate=False), x)
        slope, their_slope = pull(jnp.ones_like(x))[0], their_pull(jnp.ones_like(x))[0]
    assert ours.dtype == slope.dtype == dtype
    # Far left 1 + erf(x) keeps the rounding of 1, and x multiplies it. torch has the same.
    bound = 2 * np.finfo(dtype).eps * (1 + np.abs(x))
    assert np.all(np.abs(ours - theirs) <= bound)
    assert np.all(np.abs(slope - their_slope) <= bound)
