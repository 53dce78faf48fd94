"""Checkpoints of other frameworks to ours and back, strict and with their provenance."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.files import replace_file
from mvo_jax.interop import weight_files
from mvo_jax.interop.layouts import LAYOUTS
from mvo_jax.interop.weight_files import VariablesFile
from mvo_jax.interop.weight_rules import Layout, flatten, listed, to_flax, to_torch, unflatten
from mvo_jax.models.registry import build_model

RULES_VERSION = 1  # raised whenever a table gives other arrays for the same source
STEM = "params/trunk/stem_spatial/kernel"


def find_layout(model_name: str, layout_name: str) -> Layout:
    """A layout by the names of the model and of the layout; UserError where there is none."""
    layouts = {layout.name: layout for layout in LAYOUTS.get(model_name, ())}
    if layout_name not in layouts:
        raise UserError(
            f"the model {model_name!r} has no layout {layout_name!r}",
            f"its layouts: {', '.join(layouts) or 'none'}",
        )
    return layouts[layout_name]


def model_shapes(model: Mapping[str, Any], clip: tuple[int, ...]) -> dict[str, Any]:
    """Abstract variables of a config's ``model``; UserError if that cannot take such clips."""
    built = build_model(model, backend="cpu")
    try:
        shapes: Any = jax.eval_shape(
            lambda: built.init(jax.random.key(0), jnp.zeros((1, *clip)), train=False)
        )
    except ValueError as error:
        raise UserError(
            f"the model cannot take clips of {clip}: {str(error).splitlines()[0]}",
            "change config.model or config.data",
        ) from error
    return {name: shapes[name] for name in ("params", "batch_stats") if name in shapes}


def from_torch(
    source: Path,
    layout: Layout,
    model: Mapping[str, Any],
    clip: tuple[int, int, int, int],
    *,
    adapt_stem: bool = False,
    weights_key: str = "",
) -> VariablesFile:
    """Read a torch checkpoint as variables of a model, with their provenance.

    A layout that holds a part of the model only (torchvision: the trunk) gives that part.

    Args:
        source: checkpoint.
        layout: names of its arrays.
        model: the ``model`` part of a config.
        clip: (T, H, W, C) of its clips.
        adapt_stem: make a stem of 1 input channel of one of 3, or the reverse
            (``adapt_stem_kernel``).
        weights_key: see ``weight_files.read_torch``.

    Raises:
        UserError: the file cannot be read, or it does not fit; every problem is listed.
    """
    file = weight_files.read_torch(source, weights_key=weights_key)
    arrays, prefixes = weight_files.without_prefixes(file.arrays, layout.flax_paths)
    shapes = flatten(model_shapes(model, clip))
    covered = {path: leaf for path, leaf in shapes.items() if layout.torch_keys(path)}
    target, adapted = dict(covered), ""
    channels = _other_stem_channels(arrays, covered, layout)
    if channels:
        wanted = covered[STEM]
        *taps, needed, features = wanted.shape
        if not adapt_stem:
            raise UserError(
                f"{source} has a stem of {channels} input channels, config.model.in_channels is "
                f"{needed}",
                f"set --config.model.in_channels={channels}, or add --adapt_stem",
            )
        target[STEM] = jax.ShapeDtypeStruct((*taps, channels, features), wanted.dtype)
        adapted = f"stem adapted from {channels} to {needed} input channels"
    variables = to_flax(arrays, unflatten(target), layout, source=str(source))
    check_finite(variables, source=str(source))
    flat = flatten(variables)
    if adapted:
        flat[STEM] = adapt_stem_kernel(flat[STEM], covered[STEM].shape[3])
    provenance = {
        "source": source.name,
        "source_sha256": file.sha256,
        "layout": layout.name,
        "rules_version": RULES_VERSION,
        "unwrapped": [*file.unwrapped, *prefixes],
        "cast_to_float32": dict(file.cast),
        "ignored": sorted(key for key in arrays if layout.ignores(key)),
        "adapted": adapted,
        "parts": sorted(_parts(covered)),
        "parts_not_in_source": sorted(_parts(shapes) - _parts(covered)),
        "arrays": len(covered),
        "parameters": sum(int(np.size(v)) for path, v in flat.items() if "params/" in path),
    }
    return VariablesFile(unflatten(flat), json.loads(json.dumps(dict(model))), clip, provenance)


def check_finite(variables: Mapping[str, Any], *, source: str) -> None:
    """Raise UserError for arrays that hold NaN or infinity; they are named."""
    found = flatten(variables).items()
    if wrong := [path for path, value in found if not np.isfinite(value).all()]:
        raise UserError(
            f"{source} holds NaN or infinity in {listed(wrong, 6)}",
            "its training had failed, or half precision was too small for it: take an earlier "
            "checkpoint, or one in float32",
        )


def _other_stem_channels(
    arrays: Mapping[str, np.ndarray], covered: Mapping[str, Any], layout: Layout
) -> int:
    """Input channels of the source's stem where they are 1 for 3 or 3 for 1, else 0."""
    for rule in layout.rules:
        kernel = arrays.get(rule.torch)
        if rule.flax == STEM and STEM in covered and kernel is not None and kernel.ndim == 5:
            channels = kernel.shape[1]
            return channels if {channels, covered[STEM].shape[3]} == {1, 3} else 0
    return 0


def adapt_stem_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A stem ``[1, 7, 7, 3, F]`` for grey clips (``channels`` 1), or the reverse.

    The rule keeps the response to a grey frame: three kernels that see the same frame act as their
    sum, so 3 to 1 sums, and 1 to 3 gives each channel a third.
    """
    total = kernel.astype(np.float64).sum(axis=3, keepdims=True)
    return np.repeat(total / channels, channels, axis=3).astype(kernel.dtype)


def to_layout(content: VariablesFile, layout: Layout) -> tuple[dict[str, np.ndarray], list[str]]:
    """Variables as a torch state dict, and the parts that are not in the layout.

    Raises:
        UserError: variables do not fit their model, or nothing of them is in the layout.
    """
    flat = flatten(content.variables)
    wanted = flatten(model_shapes(content.model, content.clip))
    if wrong := _misfits(flat, wanted):
        raise UserError(
            f"{len(wrong)} arrays do not fit the model they are said to be of: {listed(wrong, 6)}",
            "convert or train again; the file was put together by hand",
        )
    kept = {path: value for path, value in flat.items() if layout.torch_keys(path)}
    if not kept:
        raise UserError(
            f"nothing of these variables is part of the {layout.name!r} layout",
            "choose another --layout",
        )
    return to_torch(unflatten(kept), layout), sorted(_parts(flat) - _parts(kept))


def _parts(paths: Iterable[str]) -> set[str]:
    """Whole parts of a model (trunk, encoder, ...) that arrays belong to."""
    return {path.split("/")[1] for path in paths}


def _misfits(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Arrays that a model lacks or has in another shape."""
    problems = []
    for path, value in found.items():
        if path not in wanted:
            problems.append(f"{path}: the model has no such array")
        elif np.shape(value) != (needed := tuple(wanted[path].shape)):
            problems.append(f"{path} is {np.shape(value)}, not {needed}")
    return sorted(problems)


def write_converted(path: Path, content: VariablesFile) -> None:
    """Write variables as safetensors and their provenance beside as JSON, or raise UserError."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors", "name a .safetensors file")
    weight_files.write_variables(path, content)
    _write_provenance(path, content.provenance)


def write_exported(path: Path, content: VariablesFile, layout: Layout) -> list[str]:
    """Write variables in a torch layout, their provenance beside as JSON; returns parts left out.

    Raises:
        UserError: see ``to_layout``, or a file cannot be written.
    """
    arrays, left_out = to_layout(content, layout)
    weight_files.write_torch(path, arrays)
    provenance = {
        "source_sha256": content.sha256,
        "layout": layout.name,
        "rules_version": RULES_VERSION,
        "parts_left_out": left_out,
        "arrays": len(arrays),
        "source": content.provenance,
    }
    _write_provenance(path, provenance)
    return left_out


def _write_provenance(path: Path, provenance: Mapping[str, Any]) -> None:
    replace_file(path.with_name(path.name + ".json"), json.dumps(provenance, indent=1) + "\n")


def initial_variables(
    file: VariablesFile, shapes: Mapping[str, Any], *, source: str
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What of a file a new run starts from: whole parts of the model, each complete.

    Args:
        file: converted weights, or those of another run.
        shapes: abstract {'params', 'batch_stats'} of the run's model.
        source: the file's name in messages.

    Returns:
        (variables of the parts in the file, those parts, the parts that stay as initialised).

    Raises:
        UserError: arrays that the model lacks, has in another shape or dtype, or that are missing
            of a part. All are listed.
    """
    found, wanted = flatten(file.variables), flatten(shapes)
    parts, problems = _parts(found), _misfits(found, wanted)
    for path, leaf in wanted.items():
        if path not in found:
            if parts & _parts([path]):
                problems.append(f"{path} is missing")
        elif found[path].dtype != np.dtype(leaf.dtype):
            problems.append(f"{path} is {found[path].dtype}, not {np.dtype(leaf.dtype)}")
    check_finite(file.variables, source=source)
    if problems or not parts:
        raise UserError(
            f"{source} does not fit config.model: {listed(problems, 6) or 'it is empty'}",
            "convert the weights for this config.model (see python -m mvo_jax convert --help)",
        )
    return unflatten(found), sorted(parts), sorted(_parts(wanted) - parts)
