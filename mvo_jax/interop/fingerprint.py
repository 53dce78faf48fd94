"""A fixed set of computations as numbers in a file, to compare backends, versions and devices.

What goes in is drawn from raw Philox bits and is the same everywhere. Whole numbers (the sample
stream, dropout masks, coarse masks of unmoved masks) must come out the same to the bit; floating
results may differ by rounding, within stated tolerances.
"""

import dataclasses
import functools
import hashlib
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
from jax import lax

from mvo_jax.data.augment import Augmentation
from mvo_jax.data.batches import batch_indices
from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.devices import computation, parallel
from mvo_jax.errors import UserError
from mvo_jax.files import replace_file
from mvo_jax.interop.weight_rules import flatten, unflatten
from mvo_jax.models.ops.lowerings import choose_lowering
from mvo_jax.models.registry import build_model, published_config
from mvo_jax.settings import LossSettings
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import (
    make_batch,
    make_eval_step,
    make_loss,
    make_steps,
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
# size -> (changes of the published network, clip, parameters without a gradient in exact
# arithmetic: a constant added to all keys of a softmax changes nothing, nor does a bias that a
# BatchNorm subtracts again, as it does behind a transposed convolution that another block follows)
_NO_GRADIENT = r"encoder/block\d+/key/bias|decoder/block\d+/reduce/bias"
SIZES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], str]] = {
    "small": ({"width": 8, "stage_sizes": (1, 1), "num_heads": 2}, (8, 32, 32, 1), _NO_GRADIENT),
    "full": ({}, (30, 64, 64, 1), _NO_GRADIENT + r"|decoder/block1/upsample/bias"),
}
AUGMENTATION = Augmentation(
    max_shift=2.0,
    flip=True,
    max_rotation_deg=15.0,
    brightness=0.1,
    contrast=0.2,
    gamma=0.2,
    time_shift=True,
)
ON_BATCHES = {"augmentation": AUGMENTATION, "mask_size": 16, "axis_name": parallel.AXIS}


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
    fields = SIZES[size][0] | {"lowering": lowering, "dtype": dtype}
    model = build_model(
        published_config("mvo_net") | fields, backend=backend, axis_name=parallel.AXIS
    )
    # On some hardware float32 products are rounded to fewer bits otherwise.
    with jax.default_matmul_precision("highest"):
        entries = _entries(model, dtype, devices, size)
        settings = computation.settings()
    about = {
        "dtype": dtype,
        "size": size,
        "devices": len(devices),
        "backend": backend,
        "device": devices[0].device_kind,
        "lowering": lowering,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "settings": settings,
        **computation.rounding(devices),
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


def _weights(model: Any, clip: tuple[int, int, int, int], dtype: str) -> dict[str, Any]:
    """Variables drawn from raw bits: kernels of He's width, scales and variances near 1."""
    video = jax.ShapeDtypeStruct((1, *clip), np.dtype(dtype))
    shapes: Any = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), video)
    shapes = {name: shapes[name] for name in ("params", "batch_stats")}
    flat = {}
    for seed, (path, leaf) in enumerate(sorted(flatten(shapes).items())):
        draw = _uniform(100 + seed, leaf.shape)
        name = path.rpartition("/")[2]
        if name == "kernel":
            draw *= math.sqrt(6 / math.prod(leaf.shape[:-1]))
        else:
            draw = 1 + 0.3 * draw if name in ("scale", "var") else 0.1 * draw
        # Through float32, so that both dtypes start from the same numbers.
        flat[path] = draw.astype(np.float32).astype(dtype)
    return unflatten(flat)


def _entries(
    model: Any, dtype: str, devices: Sequence[parallel.Device], size: str
) -> dict[str, Any]:
    _, clip, no_gradient = SIZES[size]
    split, draws = _data(clip), range(STEPS)
    indices = np.stack([batch_indices(3, k, num_cases=CASES, batch_size=BATCH) for k in draws])
    masks = coarse_mask(jnp.asarray(split["lge_mask"]), ON_BATCHES["mask_size"])
    random_bits = jax.random.bits(jax.random.key(5), (16,))
    optimiser = make_optimiser(
        OptimiserSettings(learning_rate=1e-3, total_steps=2 * STEPS, warmup_steps=2)
    )
    variables = jax.tree.map(jnp.asarray, _weights(model, clip, dtype))
    opt_state = optimiser.init(variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=opt_state, **variables)
    on_devices: Any = parallel.replicate((state, split, jax.random.key(5)), devices)
    state, data, key = on_devices
    first = parallel.shard(indices[0], len(devices))

    probe = parallel.data_parallel(
        _probe(model), in_axes=(None, None, 0, None), out_axes=(None, 0), on=devices
    )
    (grads, metrics, batch_stats), (batch, outputs, named) = probe(state, data, first, key)
    batch, outputs, named = (_joined(tree) for tree in (batch, outputs, flatten(named)))
    infer = parallel.data_parallel(
        make_eval_step(model, with_mask=True), in_axes=(None, None, 0), out_axes=0, on=devices
    )
    results = _joined(infer(state.eval_variables(), data, first))
    loss = make_loss(model, LossSettings(mask_loss_weight=0.5))
    train_step = make_train_step(loss, optimiser, axis_name=parallel.AXIS)
    step = parallel.data_parallel(
        make_steps(train_step, functools.partial(make_batch, **ON_BATCHES)),
        in_axes=(None, None, 0, None),
        out_axes=None,
        on=devices,
    )
    losses = []
    for k in draws:
        state, taken = step(state, data, parallel.shard(indices[k : k + 1], len(devices)), key)
        losses.append(np.asarray(taken["loss"])[0])

    exact = {"sample stream": indices, "clips": split["video"], "coarse masks": masks}
    exact["random bits"] = random_bits
    exact |= {f"dropout {k[:-5]}": v for k, v in named.items() if k.endswith("/mask")}
    inference = {k: v for k, v in named.items() if not k.endswith("/mask")} | outputs
    inference = {f"training pass, {k}": v for k, v in sorted(inference.items())}
    inference |= metrics | results
    inference |= {f"statistics {k}": v for k, v in flatten(batch_stats).items()}
    moved = flatten(state.params)
    moved |= {f"statistics {k}": v for k, v in flatten(state.batch_stats).items()}
    # The mean that a BatchNorm of the decoder subtracts follows the bias before it.
    undefined = re.compile(no_gradient + "|.*/reduce_norm/mean")
    groups = {
        "batch": batch,
        "inference": inference,
        "gradient": {k: v for k, v in flatten(grads).items() if not undefined.fullmatch(k)},
        "steps": {"loss": losses, **{k: v for k, v in moved.items() if not undefined.fullmatch(k)}},
    }
    entries = {f"exact/{name}": _exact(value) for name, value in exact.items()}
    for group, values in groups.items():
        entries |= {f"{group}/{name}": _float(value) for name, value in values.items()}
    return entries


def _probe(model: Any) -> Any:
    """One pass with everything in it: ``probe(state, data, indices, key)``.

    It returns ((gradients, metrics, statistics) of all devices, (batch, outputs, intermediates) of
    each).
    """
    loss = make_loss(model, LossSettings(mask_loss_weight=0.5), collections=("intermediates",))

    def probe(state: TrainState, data: Any, indices: jax.Array, key: jax.Array) -> Any:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = make_batch(data, indices, augment_key, **ON_BATCHES)
        grads, (output, updated, metrics) = jax.grad(loss, has_aux=True)(
            state.params, state.batch_stats, batch, dropout_key
        )
        joined = lax.pmean((grads, metrics), parallel.AXIS)
        outputs = {"logits": output.logits, "coarse mask": output.coarse_mask}
        return (*joined, updated["batch_stats"]), (batch, outputs, updated["intermediates"])

    return probe


def _joined(results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Per-device results as one batch."""
    arrays = {name: np.asarray(value) for name, value in results.items()}
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in arrays.items()}


def _exact(value: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(value)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


def _float(value: Any) -> dict[str, Any]:
    """An array's hash, size, evenly spaced entries and sums with random signs."""
    array = np.asarray(value)
    flat = array.astype(np.float64).ravel()
    chosen = np.unique(np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int))
    signs = np.where(_uniform(9, (PROJECTIONS, flat.size)) < 0, -1.0, 1.0)
    return {
        **_exact(array),
        "rms": float(np.sqrt(np.mean(np.square(flat)))),
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


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Settings and versions ('about') of two fingerprints, where they differ.

    What an earlier revision did not write is passed over.
    """
    return computation.changes(first, {key: second[key] for key in first.keys() & second.keys()})


@dataclasses.dataclass(frozen=True)
class Difference:
    """One entry of two fingerprints."""

    name: str  # of the entry; what is before the slash is its group
    # Largest difference relative to the array's root mean square; for exact entries 0 where the
    # bytes agree, else infinity.
    value: float
    bound: float  # largest allowed value
    identical: bool  # whether all bytes agree

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN does not."""
        return self.value <= self.bound


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, scale: float = 1.0
) -> list[Difference]:
    """Compare two fingerprints entry by entry; ``scale`` multiplies the tolerances.

    Raises:
        UserError: fingerprints of different computations.
    """
    for key in ("dtype", "size"):
        a, b = first["about"][key], second["about"][key]
        if a != b:
            raise UserError(
                f"the fingerprints are of different computations: {key} is {a} in one and {b} in "
                "the other",
                f"write both with the same --{key}",
            )
    tolerances = {"exact": 0.0, **TOLERANCES[first["about"]["dtype"]]}
    ours, theirs = first["entries"], second["entries"]
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        group = name.split("/")[0]
        bound = tolerances[group] * scale
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
