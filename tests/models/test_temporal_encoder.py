"""Temporal encoder: one block against plain numpy, any length, bad settings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.models.temporal_encoder import FORMS, TemporalEncoder


def numpy_encoder(p: dict, tokens: np.ndarray, heads: int, form: str) -> np.ndarray:
    """One encoder block over CLS and tokens, written a second time."""
    batch, _, hidden = tokens.shape

    def norm(x, part):
        centred = x - x.mean(-1, keepdims=True)
        if form == "released":
            scaled = centred / (x.std(-1, ddof=1, keepdims=True) + 1e-6)
        else:
            scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return part["scale"] * scaled + part["bias"]

    def linear(x, part):
        return x @ part["kernel"] + part["bias"]

    def gelu(x):
        if form == "released":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    x = np.concatenate([np.repeat(p["cls"], batch, axis=0), tokens], axis=1) + p["position"]
    block = p["block1"]
    y = norm(x, block["attention_norm"])
    query, key, value = (linear(y, block[name]) for name in ("query", "key", "value"))
    mixed = np.zeros_like(x)
    size = hidden // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[..., part] = weights / weights.sum(-1, keepdims=True) @ value[..., part]
    x = x + linear(mixed, block["out"])
    y = linear(gelu(linear(norm(x, block["mlp_norm"]), block["mlp_in"])), block["mlp_out"])
    return x + y


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_encoder_against_numpy(form, random_variables):
    encoder: Any = TemporalEncoder(
        num_heads=2, form=form, numerics=Numerics(None, None, jnp.float64, jnp.float64)
    )
    tokens = np.random.default_rng(0).standard_normal((3, 5, 8))
    variables = random_variables(encoder, tokens.shape, train=False)
    out = encoder.apply(variables, jnp.asarray(tokens), train=False)
    expected = numpy_encoder(variables["params"], tokens, 2, form)
    # float64 through four matrix products of order 1.
    np.testing.assert_allclose(out, expected, atol=1e-12)


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


def test_bad_settings_are_refused():
    tokens = jnp.zeros((1, 4, 10))
    for encoder, message in (
        (TemporalEncoder(num_heads=4), "hidden size 10 is not divisible by 4 heads"),
        (TemporalEncoder(num_heads=5, form="modern"), "encoder form 'modern' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda e=encoder: e.init(jax.random.key(0), tokens, train=False))
