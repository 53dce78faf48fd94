"""A fixed set of computations as numbers in a file, to compare backends, versions and devices.

What goes in is drawn from raw Philox bits and is the same everywhere. Whole numbers (the sample
stream, dropout masks, coarse masks of unmoved masks) must come out the same to the bit; floating
results may differ by rounding, within stated tolerances.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax

from mvo_jax.data.augment import Augmentation
from mvo_jax.data.batches import batch_indices
from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.files import replace_file
from mvo_jax.interop.weight_rules import flatten, unflatten
from mvo_jax.models.mvo_net import MVONet
from mvo_jax.models.ops.lowerings import choose_lowering
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.training.losses import LossSettings
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import (
    make_batch,
    make_eval_step,
    make_loss,
    make_resident_step,
    make_train_step,
)

FORMAT = "mvo_jax fingerprint 1"
BATCH = 8  # divides 1, 2, 4 and 8 devices
CASES = 24
STEPS = 10
SAMPLES = 64  # entries of an array that are kept
PROJECTIONS = 8  # sums with random signs, so that no entry goes unseen

# Largest difference, relative to the root mean square of an array. A float64 result passes through
# some hundred roundings of 1.1e-16, a float32 one of 6e-8; in float32 a rounding error can turn a
# ReLU on or off, which changes gradients by up to a hundredth and the steps that follow.
TOLERANCES = {
    "float64": {"batch": 1e-12, "inference": 1e-12, "gradient": 1e-12, "steps": 1e-12},
    "float32": {"batch": 1e-4, "inference": 1e-4, "gradient": 2e-2, "steps": 5e-2},
}
SMALL = {"width": 8, "stage_sizes": (1, 1), "num_heads": 2}
FULL = {"width": 64, "stage_sizes": (2, 2, 2, 2), "num_heads": 8}
CLIPS = {"small": (8, 32, 32, 1), "full": (30, 64, 64, 1)}
AUGMENTATION = Augmentation(
    max_shift=2.0,
    flip=True,
    max_rotation_deg=15.0,
    brightness=0.1,
    contrast=0.2,
    gamma=0.2,
    time_shift=True,
)


def compute(
    *, dtype: str = "float32", num_devices: int = 0, size: str = "small", lowering: str = "auto"
) -> dict[str, Any]:
    """Run the computations on this machine.

    Args:
        dtype: 'float32' or 'float64'; the latter needs ``jax.enable_x64``.
        num_devices: how many; 0 for all. Divides 8.
        size: 'small' (8x32x32, seconds) or 'full' (30x64x64, the paper's network).
        lowering: key of ``lowerings.LOWERINGS``, or 'auto' for that of the backend.

    Returns:
        {'format', 'about', 'entries'}, as ``write`` keeps it.

    Raises:
        UserError: devices that are not there or do not divide the batch.
    """
    devices = parallel.devices(num_devices)
    parallel.check_divisible(BATCH, len(devices))
    backend, xla_flags = jax.default_backend(), os.environ.get("XLA_FLAGS", "")
    if lowering == "auto":
        lowering = choose_lowering(backend, xla_flags)
    # On some hardware float32 products are rounded to fewer bits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        entries = _entries(dtype, devices, size, lowering)
    about = {
        "dtype": dtype,
        "size": size,
        "devices": len(devices),
        "backend": backend,
        "device": devices[0].device_kind,
        "lowering": lowering,
        "xla_flags": xla_flags,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }
    return {"format": FORMAT, "about": about, "entries": entries}


def _uniform(seed: int, shape: Sequence[int]) -> np.ndarray:
    """float64 in [-1, 1) from raw bits; numpy keeps the bits, not its distributions."""
    bits = np.random.Philox(key=[seed, 7]).random_raw(math.prod(shape))
    return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def _data(clip: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """A split of smooth random clips: a rotation of noise would only measure interpolation."""
    frames, height, width, _ = clip
    waves = _uniform(1, (CASES, 6, 4))
    time, row, col = np.ogrid[:frames, :height, :width]
    video = np.full((CASES, *clip), 128.0)
    for case in range(CASES):
        for amplitude, in_time, in_row, in_col in waves[case]:
            phase = in_time * time + 0.5 * (in_row * row + in_col * col)
            video[case, ..., 0] += 25 * amplitude * np.cos(phase)
    lge_mask = np.zeros((CASES, height, width), np.uint8)
    corners = ((_uniform(2, (CASES, 2)) + 1) * (height - 10) / 2).astype(int)
    for case, (top, left) in enumerate(corners):
        lge_mask[case, top : top + 8, left : left + 8] = 1 + case % 2
    return {
        "video": np.floor(video.clip(0, 255)).astype(np.uint8),
        "lge_mask": lge_mask,
        "label": (np.arange(CASES) % 2).astype(np.int32),
    }


def _weights(model: MVONet, clip: tuple[int, int, int, int], dtype: str) -> dict[str, Any]:
    """Variables drawn from raw bits: kernels of He's width, scales and variances near 1."""
    shapes: Any = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *clip)), train=False)
    )
    shapes = {name: shapes[name] for name in ("params", "batch_stats")}
    flat = {}
    for seed, (path, leaf) in enumerate(sorted(flatten(shapes).items())):
        draw = _uniform(100 + seed, leaf.shape)
        name = path.rpartition("/")[2]
        if name == "kernel":
            draw *= math.sqrt(6 / math.prod(leaf.shape[:-1]))
        elif name in ("scale", "var"):
            draw = 1 + 0.3 * draw
        else:
            draw *= 0.1
        # Through float32, so that both dtypes start from the same numbers.
        flat[path] = draw.astype(np.float32).astype(dtype)
    return unflatten(flat)


def _entries(
    dtype: str, devices: Sequence[parallel.Device], size: str, lowering: str
) -> dict[str, Any]:
    clip = CLIPS[size]
    model = MVONet(
        **(SMALL if size == "small" else FULL),
        numerics=Numerics(lowering, parallel.AXIS, jnp.dtype(dtype), jnp.dtype(dtype)),
    )
    loss = LossSettings(mask_loss_weight=0.5)
    data, mask_size = _data(clip), 16
    indices = np.stack(
        [batch_indices(3, k, num_cases=CASES, batch_size=BATCH) for k in range(STEPS)]
    )
    entries = {
        "exact/sample stream": _exact(indices),
        "exact/clips": _exact(data["video"]),
        "exact/coarse masks": _exact(np.asarray(coarse_mask(data["lge_mask"], mask_size))),
    }

    optimiser = make_optimiser(
        OptimiserSettings(learning_rate=1e-3, total_steps=2 * STEPS, warmup_steps=2)
    )
    variables = _weights(model, clip, dtype)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimiser.init(jax.tree.map(jnp.asarray, variables["params"])),
    )
    state, data, key = parallel.replicate((state, data, jax.random.key(5)), devices)
    entries["exact/random bits"] = _exact(np.asarray(jax.random.bits(jax.random.key(5), (16,))))

    def probe(state: TrainState, data: Any, indices: jax.Array, key: jax.Array) -> Any:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = make_batch(
            data,
            indices,
            augment_key,
            augmentation=AUGMENTATION,
            mask_size=mask_size,
            axis_name=parallel.AXIS,
        )
        loss_fn = make_loss(model, loss, collections=("intermediates",))
        grads, (output, updated, metrics) = jax.grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, dropout_key
        )
        joined = lax.pmean((grads, metrics), parallel.AXIS)
        each = (batch, output.logits, output.coarse_mask, updated["intermediates"])
        return (*joined, updated["batch_stats"]), each

    first = parallel.shard(indices[0], len(devices))
    (grads, metrics, batch_stats), (batch, logits, mask, named) = parallel.data_parallel(
        probe, in_axes=(None, None, 0, None), out_axes=(None, 0), on=devices
    )(state, data, first, key)
    for name, value in batch.items():
        entries[f"batch/{name}"] = _float(_join(value))
    for path, value in sorted(flatten_dict(named, sep="/").items()):
        if path.endswith("/mask"):
            entries[f"exact/dropout {path[:-5]}"] = _exact(_join(value))
        else:
            entries[f"inference/training pass, {path}"] = _float(_join(value))
    entries["inference/training pass, logits"] = _float(_join(logits))
    entries["inference/training pass, coarse mask"] = _float(_join(mask))
    for name, value in metrics.items():
        entries[f"inference/{name}"] = _float(value)
    for path, value in sorted(flatten(grads).items()):
        if not _undefined(path, size):
            entries[f"gradient/{path}"] = _float(value)
    for path, value in sorted(flatten(batch_stats).items()):
        entries[f"inference/statistics {path}"] = _float(value)

    result = parallel.data_parallel(
        make_eval_step(model, with_mask=True), in_axes=(None, None, 0), out_axes=0, on=devices
    )(state.eval_variables(), data, first)
    for name, value in result.items():
        entries[f"inference/{name}"] = _float(_join(value))

    step = parallel.data_parallel(
        make_resident_step(
            make_train_step(model, optimiser, loss, axis_name=parallel.AXIS),
            augmentation=AUGMENTATION,
            mask_size=mask_size,
            axis_name=parallel.AXIS,
        ),
        in_axes=(None, None, 0, None),
        out_axes=None,
        on=devices,
    )
    losses = []
    for k in range(STEPS):
        state, metrics = step(state, data, parallel.shard(indices[k : k + 1], len(devices)), key)
        losses.append(np.asarray(metrics["loss"])[0])
    entries["steps/loss"] = _float(np.array(losses))
    for kind, tree in (("", state.params), ("statistics ", state.batch_stats)):
        for path, value in sorted(flatten(tree).items()):
            # The mean that a BatchNorm of the decoder subtracts follows such a bias.
            follows = path.endswith("/reduce_norm/mean")
            if not (follows or _undefined(path, size)):
                entries[f"steps/{kind}{path}"] = _float(value)
    return entries


def _undefined(path: str, size: str) -> bool:
    """Whether a parameter's gradient is zero in exact arithmetic, so that only rounding is left.

    A constant added to all keys of a softmax changes nothing, nor does a bias that a BatchNorm
    subtracts again: that of the 1x1 convolution of each decoder block, and that of the transposed
    convolution where another block follows (two blocks at full size).
    """
    zero = r"encoder/block\d+/key/bias|decoder/block\d+/reduce/bias"
    if size == "full":
        zero += r"|decoder/block1/upsample/bias"
    return re.fullmatch(zero, path) is not None


def _join(value: Any) -> np.ndarray:
    """Per-device results as one batch."""
    array = np.asarray(value)
    return array.reshape(-1, *array.shape[2:])


def _exact(value: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(value)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
    }


def _float(value: Any) -> dict[str, Any]:
    """An array's hash, summaries, evenly spaced entries and sums with random signs."""
    array = np.asarray(value)
    flat = array.astype(np.float64).ravel()
    chosen = np.unique(np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int))
    signs = np.where(_uniform(9, (PROJECTIONS, flat.size)) < 0, -1.0, 1.0)
    return {
        **_exact(array),
        "mean": float(flat.mean()),
        "rms": float(np.sqrt(np.mean(np.square(flat)))),
        "smallest": float(flat.min()),
        "largest": float(flat.max()),
        "samples": flat[chosen].tolist(),
        "projections": (signs @ flat).tolist(),
    }


def write(path: str | os.PathLike, fingerprint: Mapping[str, Any]) -> None:
    """Write a fingerprint as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    replace_file(path, json.dumps(fingerprint, indent=1) + "\n")


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a fingerprint.

    Raises:
        UserError: missing, no fingerprint, or of another version.
    """
    remedy = "write it with: python -m mvo_jax fingerprint --out FILE"
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", remedy) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no fingerprint ({FORMAT!r})", remedy)
    return content


@dataclasses.dataclass(frozen=True)
class Difference:
    """One entry of two fingerprints.

    Attributes:
        name: of the entry; what is before the slash is its group.
        value: largest difference relative to the array's root mean square; for exact entries 0
            where the bytes agree, else infinity.
        bound: largest allowed value.
        identical: whether all bytes agree.
    """

    name: str
    value: float
    bound: float
    identical: bool

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN does not."""
        return self.value <= self.bound


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, scale: float = 1.0
) -> list[Difference]:
    """Compare two fingerprints entry by entry.

    Args:
        first: from ``compute`` or ``read``.
        second: the other; of the same dtype and size.
        scale: multiplies the tolerances.

    Raises:
        UserError: fingerprints of different computations.
    """
    for key in ("dtype", "size"):
        if first["about"][key] != second["about"][key]:
            raise UserError(
                f"the fingerprints are of different computations: {key} is "
                f"{first['about'][key]} in one and {second['about'][key]} in the other",
                f"write both with the same --{key}",
            )
    tolerances = TOLERANCES[first["about"]["dtype"]]
    ours, theirs = first["entries"], second["entries"]
    found = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        group = name.split("/")[0]
        bound = 0.0 if group == "exact" else tolerances[group] * scale
        if name not in ours or name not in theirs:
            found.append(Difference(name, math.nan, bound, False))
            continue
        a, b = ours[name], theirs[name]
        identical = a["sha256"] == b["sha256"] and a["shape"] == b["shape"]
        value = 0.0 if identical else math.inf if group == "exact" else _difference(a, b)
        found.append(Difference(name, value, bound, identical))
    return found


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    if a["shape"] != b["shape"]:
        return math.nan
    size, rms = math.prod(a["shape"]), max(a["rms"], np.finfo(np.float64).tiny)
    samples = np.abs(np.subtract(a["samples"], b["samples"])).max()
    # A sum of n terms with random signs has the size of sqrt(n) of them.
    projections = np.abs(np.subtract(a["projections"], b["projections"])).max() / math.sqrt(size)
    return float(max(samples, projections) / rms)
