"""A fixed set of computations as numbers in a file, to compare backends, versions and devices.

What goes in is drawn from raw Philox bits and is the same everywhere. Whole numbers must come out
the same to the bit; floating results may differ by rounding, within stated tolerances.
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
from mvo_jax.interop.convert import model_shapes
from mvo_jax.interop.weight_rules import flatten, unflatten
from mvo_jax.models.registry import build_model, published_config
from mvo_jax.settings import LossSettings
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_batch, make_eval_step, make_loss, make_steps, make_train_step

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
BATCH_OF = functools.partial(
    make_batch,
    augmentation=Augmentation(
        2.0, True, max_rotation_deg=15.0, brightness=0.1, contrast=0.2, gamma=0.2, time_shift=True
    ),
    mask_size=16,
    axis_name=parallel.AXIS,
)


def compute(
    *, dtype: str = "float32", num_devices: int = 0, size: str = "small", lowering: str = "auto"
) -> dict[str, Any]:
    """Run the computations on this machine; {'format', 'about', 'entries'}, as ``write`` keeps it.

    Args:
        dtype: 'float32' or 'float64'; the latter needs ``jax.enable_x64``.
        num_devices: how many; 0 for all. Divides 8.
        size: 'small' (8x32x32, seconds) or 'full' (30x64x64, the paper's network).
        lowering: key of ``lowerings.LOWERINGS``, or 'auto' for that of the backend.

    Raises:
        UserError: devices that are not there or do not divide the batch.
    """
    devices = parallel.devices(num_devices)
    parallel.check_divisible(BATCH, len(devices))
    config = published_config("mvo_net") | SIZES[size][0] | {"lowering": lowering, "dtype": dtype}
    model: Any = build_model(
        config,
        backend=jax.default_backend(),
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        axis_name=parallel.AXIS,
    )
    # On some hardware float32 products are rounded to fewer bits otherwise.
    with jax.default_matmul_precision("highest"):
        entries = _entries(model, config, devices, size)
        settings = computation.settings()
    about = {
        "dtype": dtype,
        "size": size,
        "devices": len(devices),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "lowering": model.numerics.lowering,
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


def _weights(config: Mapping[str, Any], clip: tuple[int, int, int, int]) -> dict[str, Any]:
    """Variables drawn from raw bits: kernels of He's width, scales and variances near 1."""
    flat = {}
    for seed, (path, leaf) in enumerate(sorted(flatten(model_shapes(config, clip)).items())):
        draw = _uniform(100 + seed, leaf.shape)
        name = path.rpartition("/")[2]
        if name == "kernel":
            draw *= math.sqrt(6 / math.prod(leaf.shape[:-1]))
        else:
            draw = 1 + 0.3 * draw if name in ("scale", "var") else 0.1 * draw
        # Through float32, so that both dtypes start from the same numbers.
        flat[path] = jnp.asarray(draw.astype(np.float32).astype(config["dtype"]))
    return unflatten(flat)


def _entries(
    model: Any, config: Mapping[str, Any], devices: Sequence[parallel.Device], size: str
) -> dict[str, Any]:
    _, clip, no_gradient = SIZES[size]
    split, draws = _data(clip), range(STEPS)
    indices = np.stack([batch_indices(3, k, num_cases=CASES, batch_size=BATCH) for k in draws])
    optimiser = make_optimiser(
        OptimiserSettings(learning_rate=1e-3, total_steps=2 * STEPS, warmup_steps=2)
    )
    loss = LossSettings(mask_loss_weight=0.5)
    loss_of = make_loss(model, loss, collections=("intermediates",))

    def probe(state: TrainState, data: Any, indices: jax.Array, key: jax.Array) -> Any:
        """One pass with everything in it: what devices share, and what each has."""
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = BATCH_OF(data, indices, augment_key)
        grads, (output, updated, metrics) = jax.grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, batch, dropout_key
        )
        shared = lax.pmean((grads, metrics), parallel.AXIS)
        outputs = {"logits": output.logits, "coarse mask": output.coarse_mask}
        return (*shared, updated["batch_stats"]), (batch, outputs, updated["intermediates"])

    variables = _weights(config, clip)
    opt_state = optimiser.init(variables["params"])
    state = TrainState(step=jnp.zeros((), jnp.int32), opt_state=opt_state, **variables)
    on_devices: Any = parallel.replicate((state, split, jax.random.key(5)), devices)
    state, data, key = on_devices
    spread = functools.partial(parallel.data_parallel, on=devices)
    first = parallel.shard(indices[0], len(devices))
    (grads, metrics, batch_stats), (batch, outputs, named) = spread(
        probe, in_axes=(None, None, 0, None), out_axes=(None, 0)
    )(state, data, first, key)
    named = _joined(flatten(named))
    infer = spread(make_eval_step(model, with_mask=True), in_axes=(None, None, 0), out_axes=0)
    results = _joined(infer(state.eval_variables(), data, first))
    train_step = make_train_step(make_loss(model, loss), optimiser, axis_name=parallel.AXIS)
    step = spread(make_steps(train_step, BATCH_OF), in_axes=(None, None, 0, None), out_axes=None)
    losses = []
    for k in draws:
        state, taken = step(state, data, parallel.shard(indices[k : k + 1], len(devices)), key)
        losses.append(np.asarray(taken["loss"])[0])

    # The mean that a BatchNorm of the decoder subtracts follows the bias before it.
    undefined = re.compile(no_gradient + "|.*/reduce_norm/mean")

    def defined(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: v for name, v in values.items() if not undefined.fullmatch(name)}

    def statistics(tree: Any) -> dict[str, Any]:
        return {f"statistics {name}": value for name, value in flatten(tree).items()}

    masks = {name: value for name, value in named.items() if name.endswith("/mask")}
    seen = {name: value for name, value in named.items() if name not in masks} | _joined(outputs)
    exact = {
        "sample stream": indices,
        "clips": split["video"],
        "coarse masks": coarse_mask(jnp.asarray(split["lge_mask"]), 16),
        "random bits": jax.random.bits(jax.random.key(5), (16,)),
        **{f"dropout {name[:-5]}": value for name, value in masks.items()},
    }
    passed = {f"training pass, {name}": value for name, value in sorted(seen.items())}
    moved = flatten(state.params) | statistics(state.batch_stats)
    groups = {
        "exact": exact,
        "batch": _joined(batch),
        "inference": passed | metrics | results | statistics(batch_stats),
        "gradient": defined(flatten(grads)),
        "steps": {"loss": losses, **defined(moved)},
    }
    return {
        f"{group}/{name}": (_exact if group == "exact" else _float)(value)
        for group, values in groups.items()
        for name, value in values.items()
    }


def _joined(results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Per-device results as one batch."""
    return {name: np.asarray(v).reshape(-1, *v.shape[2:]) for name, v in results.items()}


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
    """Write a fingerprint as JSON, or raise UserError."""
    replace_file(path, json.dumps(fingerprint, indent=1) + "\n")


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a fingerprint; UserError if the file is missing, none, or of another version."""
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
    """One entry of two fingerprints."""

    name: str  # of the entry; what is before the slash is its group
    value: float  # largest, over the array's root mean square; infinity where exact bytes differ
    bound: float  # largest allowed value
    identical: bool  # whether all bytes agree

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN does not."""
        return self.value <= self.bound


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, scale: float = 1.0
) -> list[Difference]:
    """Compare entry by entry, bounds times ``scale``; UserError for different computations."""
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
        group, identical, value = name.split("/")[0], False, math.nan
        if name in ours and name in theirs:
            a, b = ours[name], theirs[name]
            identical = a["sha256"] == b["sha256"] and a["shape"] == b["shape"]
            value = 0.0 if identical else math.inf if group == "exact" else _difference(a, b)
        found.append(Difference(name, value, tolerances[group] * scale, identical))
    return found


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    if a["shape"] != b["shape"]:
        return math.nan
    largest = {k: np.abs(np.subtract(a[k], b[k])).max() for k in ("samples", "projections")}
    # A sum of n terms with random signs has the size of sqrt(n) of them.
    projections = largest["projections"] / math.sqrt(math.prod(a["shape"]))
    return float(max(largest["samples"], projections) / max(a["rms"], np.finfo(float).tiny))
