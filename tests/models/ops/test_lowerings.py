"""Every lowering of a convolution against naive loops, and what XLA makes of the one for CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.models.ops.layers import FactorisedConv
from mvo_jax.models.ops.lowerings import LOWERINGS, spatial_convolution, temporal_convolution
from tests.draws import normal

# float64: sums of at most 63 products of order 1, rounded at 1.1e-16 each.
EXACT = 1e-12
SPATIAL = sorted({spatial for spatial, _ in LOWERINGS.values()})
TEMPORAL = sorted({temporal for _, temporal in LOWERINGS.values()})


def naive_spatial(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    size = kernel.shape[1]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = range(0, x.shape[2] - size + 1, stride)
    cols = range(0, x.shape[3] - size + 1, stride)
    return np.stack(
        [
            np.stack(
                [
                    np.einsum("bthwc,hwcf->btf", x[:, :, r : r + size, c : c + size], kernel[0])
                    for c in cols
                ],
                axis=2,
            )
            for r in rows
        ],
        axis=2,
    )


def naive_temporal(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    starts = range(0, x.shape[1] - size + 1, stride)
    return np.stack(
        [np.einsum("bthwc,tcf->bhwf", x[:, t : t + size], kernel[:, 0, 0]) for t in starts], axis=1
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", SPATIAL)
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(7, 2, 3), (3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0)]
)
def test_spatial_forms(form, size, stride, padding):
    # Odd height, even width: a strided window ends differently in the two.
    x, kernel = normal(2, 3, 9, 8, 2), normal(1, size, size, 2, 5, seed=1)
    out = spatial_convolution(
        jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding, form=form
    )
    np.testing.assert_allclose(out, naive_spatial(x, kernel, stride, padding), atol=EXACT)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", TEMPORAL)
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (3, 3, 0)]
)
@pytest.mark.parametrize("frames", [5, 8])
def test_temporal_forms(form, size, stride, padding, frames):
    x, kernel = normal(2, frames, 4, 3, 2), normal(size, 1, 1, 2, 5, seed=1)
    out = temporal_convolution(
        jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding, form=form
    )
    np.testing.assert_allclose(out, naive_temporal(x, kernel, stride, padding), atol=EXACT)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("convolution", "forms", "kernel_shape"),
    [
        (spatial_convolution, SPATIAL, (1, 3, 3, 2, 3)),
        (temporal_convolution, TEMPORAL, (3, 1, 1, 2, 3)),
    ],
    ids=["spatial", "temporal"],
)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (1, 2), (2, 1)])
def test_gradients_of_all_forms_agree(convolution, forms, kernel_shape, stride, padding):
    x, kernel = jnp.asarray(normal(2, 5, 6, 7, 2)), jnp.asarray(normal(*kernel_shape, seed=1))

    def gradients(form):
        def value(x, kernel):
            out = convolution(x, kernel, stride=stride, padding=padding, form=form)
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.grad(value, argnums=(0, 1)))(x, kernel)

    expected = gradients("conv3d")
    for form in forms:
        for ours, reference in zip(gradients(form), expected, strict=True):
            np.testing.assert_allclose(ours, reference, atol=1e-11)


def test_unknown_form_is_refused():
    x = jnp.zeros((1, 3, 4, 4, 1))
    with pytest.raises(ValueError, match="unknown form 'fft' of a spatial"):
        spatial_convolution(x, jnp.zeros((1, 3, 3, 1, 1)), stride=1, padding=1, form="fft")
    with pytest.raises(ValueError, match="unknown form 'fft' of a temporal"):
        temporal_convolution(x, jnp.zeros((3, 1, 1, 1, 1)), stride=1, padding=1, form="fft")


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_strided_shortcut_takes_every_second_frame_and_pixel(lowering):
    x = normal(1, 5, 6, 6, 2).astype(np.float32)
    layer = FactorisedConv(3, (1, 1, 1), (2, 2, 2), lowering=lowering)
    kernel = normal(1, 1, 1, 2, 3, seed=1).astype(np.float32)
    out = layer.apply({"params": {"kernel": kernel}}, jnp.asarray(x))
    expected = x[:, ::2, ::2, ::2] @ kernel[0, 0, 0]
    np.testing.assert_allclose(np.asarray(out), expected, atol=1e-6)  # float32, two products


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the lowering is for XLA:CPU alone")
@pytest.mark.parametrize(
    ("convolution", "kernel_shape"),
    [(spatial_convolution, (1, 3, 3, 8, 16)), (temporal_convolution, (3, 1, 1, 8, 16))],
    ids=["spatial", "temporal"],
)
def test_the_cpu_form_computes_its_input_once(convolution, kernel_shape):
    def value(x, shift, kernel):
        # Stands for BatchNorm, ReLU and a residual sum, which the form conv2d computes again.
        hidden = jnp.maximum(x * shift, 0) + x
        out = convolution(hidden, kernel, stride=1, padding=1, form="conv2d_cpu")
        return jnp.square(out).sum()

    x, shift, kernel = jnp.ones((2, 3, 16, 16, 8)), jnp.ones(8), jnp.ones(kernel_shape)
    program = jax.jit(jax.grad(value, argnums=2)).lower(x, shift, kernel).compile()
    loops = (program.as_text() or "").split("\n\n")
    assert sum(" maximum(" in loop for loop in loops) == 1
