"""The convolutions measured one by one are the network's, and both frameworks compute the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import layers
from mvo_jax.models.registry import build_model, published_config


def test_shapes_are_those_of_the_published_network():
    model = build_model(published_config("mvo_net"), backend="cpu")
    clip = jnp.zeros((1, 30, 64, 64, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), clip, train=False))
    kernels = {
        leaf.shape for leaf in jax.tree.leaves(shapes["params"]["trunk"]) if len(leaf.shape) == 5
    }
    measured = {layer.shapes(1)[1] for layer in layers.layers("mvo_net", 30, 64, 64)}
    assert measured <= kernels
    assert len(measured) == 10


@pytest.mark.parametrize("system", ["c3d", "vivit", "timesformer"])
def test_weights_are_those_of_the_published_system(system):
    model = build_model(published_config(system), backend="cpu")
    clip = jnp.zeros((1, 30, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), clip, train=False))
    found = {leaf.shape for leaf in jax.tree.leaves(shapes["params"])}
    measured = {layer.shapes(1)[1] for layer in layers.layers(system, 30, 64, 64)} - {()}
    assert measured <= found
    assert len(measured) >= 4


LAYERS = [
    *layers.layers("mvo_net", 6, 12, 8)[:4],
    *layers.layers("c3d", 4, 8, 4)[:2],
    *layers.layers("timesformer", 2, 32, 8),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_both_sides_compute_the_same(layer):
    ours = [np.asarray(part()) for part in layers.jax_parts(layer, 2, "conv2d_cpu")]
    theirs = [part() for part in layers.torch_parts(layer, 2)]
    if isinstance(layer, layers.Convolution):
        front, last = (0, 2, 3, 4, 1), (2, 3, 4, 1, 0)
        theirs = [x.permute(*order) for x, order in zip(theirs, (front, front, last), strict=True)]
    for our, their in zip(ours, theirs, strict=True):
        # float32: sums of at most 864 products of order 1, so of order 50; measured 4.6e-5.
        np.testing.assert_allclose(our, their.numpy(), atol=1e-4)


def test_a_row_for_each_layer_and_contender(tmp_path, capsys):
    output = tmp_path / "layers.json"
    sizes = ["--frames=4", "--size=8", "--width=4", "--batch=1"]
    layers.main([*sizes, "--rounds=1", "--lowering=conv2d,conv2d_cpu", f"--json={output}"])
    rows = json.loads(output.read_text())["rows"]
    assert [row["name"] for row in rows[:3]] == ["jax:conv2d", "jax:conv2d_cpu", "torch"]
    assert len(rows) == 30
    assert all(set(row["ms"]) == set(layers.PARTS) for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 11
