"""The model as a program of StableHLO, by ``jax.export``: any batch, CPU, CUDA and TPU in one file.

Weights are an argument, so that they lie in a bundle once. A program is read by the JAX that wrote
it and by newer ones for some months; the ONNX file has no such end.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvo_jax.bundles.about import reason_of
from mvo_jax.errors import UserError
from mvo_jax.interop.weight_rules import unflatten
from mvo_jax.models.registry import build_model
from mvo_jax.training.step import make_eval_step

LOWERING = "conv2d"  # 3-D convolutions are slow on CPUs, im2col takes 15 s to compile
PLATFORMS = ("cpu", "cuda", "tpu")
# What this regular expression finds in the paths of source files is left out of a program.
_SOURCE_FILES = "jax_hlo_source_file_canonicalization_regex"


def model_function(model: Mapping[str, Any]) -> Callable[..., dict[str, jax.Array]]:
    """What is exported: weights by name and clips uint8 ``[B, T, H, W, 1]`` to arrays by name."""
    plain = {**model, "lowering": LOWERING} if "lowering" in model else model
    step = make_eval_step(build_model(plain, backend="gpu"), with_mask=True)

    def predict(weights: Mapping[str, jax.Array], video: jax.Array) -> dict[str, jax.Array]:
        return step(unflatten(weights), {"video": video}, jnp.arange(video.shape[0]))

    return predict


def program(
    model: Mapping[str, Any], weights: Mapping[str, np.ndarray], clip: tuple[int, ...]
) -> bytes:
    """The content of ``model.jaxexport``."""
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), dict(weights))
    video = jax.ShapeDtypeStruct((batch, *clip), np.uint8)
    before = getattr(jax.config, _SOURCE_FILES)
    jax.config.update(_SOURCE_FILES, ".*")  # paths of this machine stay here
    try:
        exported = jax.export.export(jax.jit(model_function(model)), platforms=PLATFORMS)
        return bytes(exported(shapes, video).serialize())
    finally:
        jax.config.update(_SOURCE_FILES, before)


def load(
    path: Path, weights: Path, versions: Mapping[str, str]
) -> Callable[[np.ndarray, bool], Mapping[str, np.ndarray]]:
    """The program, compiled when it is first called.

    Raises:
        UserError: it was written by a newer JAX, or this one no longer reads it.
    """
    written, here = versions["jax"], jax.__version__
    keep = "or use model.onnx, which is the one to keep"
    if _release(written) > _release(here):
        raise UserError(
            f"{path} was written by JAX {written}, this is JAX {here}, which cannot know it",
            f"pip install 'jax>={written}', {keep}",
        )
    try:
        call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    except Exception as error:  # of flatbuffers, of StableHLO, of JAX: each has its own
        raise UserError(
            f"JAX {here} cannot read {path}, written by JAX {written}: {reason_of(error)}",
            f"install a JAX nearer to {written}, {keep}",
        ) from error
    arrays: Any = jax.tree.map(jnp.asarray, safetensors.numpy.load_file(weights))

    def compute(clips: np.ndarray, with_mask: bool) -> Mapping[str, np.ndarray]:
        result = {key: np.asarray(value) for key, value in call(arrays, clips).items()}
        if not with_mask:
            result.pop("coarse_mask", None)
        return result

    return compute


def _release(version: str) -> tuple[int, ...]:
    """(major, minor)."""
    return tuple(int(part) for part in version.split(".")[:2])
