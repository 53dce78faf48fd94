"""Weights on disk, read without running anything they contain: torch's and our own.

Safetensors hold no code; pickles go through torch's restricted loader, where it is known to hold.
"""

import contextlib
import importlib.metadata
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mvo_jax.errors import UserError
from mvo_jax.files import replace_with, sha256
from mvo_jax.interop.weight_rules import StateDict, flatten, listed, unflatten

# Name of the one entry of the safetensors metadata: several would be written in random order.
ENTRY = "mvo_jax"
FORMAT = "mvo_jax variables 1"
_ABOUT = ("model", "clip", "provenance")  # of VariablesFile
PICKLED = (".pth", ".pt", ".tar", ".ckpt", ".pyth")
SAFE_TORCH = (2, 6)  # weights_only could be deceived before (CVE-2025-32434)
HALF = ("float16", "bfloat16")
# What data-parallel training, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
_AVERAGES = "n_averaged"  # a counter that torch's AveragedModel keeps beside its module


@dataclass(frozen=True)
class TorchFile:
    """A torch checkpoint."""

    arrays: StateDict  # the state dict
    sha256: str  # of the file
    unwrapped: tuple[str, ...]  # what was taken off: the key that the state dict lay under
    cast: Mapping[str, int]  # how many arrays were cast up to float32, by what they were


@dataclass(frozen=True)
class VariablesFile:
    """Flax variables of one of our models, or of whole parts of it."""

    variables: dict[str, Any]  # {'params': ..., 'batch_stats': ...}, numpy arrays
    model: dict[str, Any]  # the model part of the config they belong to
    clip: tuple[int, int, int, int]  # (T, H, W, C) of the clips the model was built for
    provenance: dict[str, Any]  # where they come from
    sha256: str = ""  # of the file; empty for variables that were not read from one


def is_variables_file(path: Path) -> bool:
    """Whether this is a safetensors file that ``write_variables`` wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with _reading(path):
        return ENTRY in _metadata(path)


def read_variables(path: Path) -> VariablesFile:
    """What ``write_variables`` wrote; UserError if missing, damaged, of another kind or format."""
    with _reading(path):
        metadata = json.loads(_metadata(path).get(ENTRY, "{}"))
        arrays = safetensors.numpy.load_file(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} does not hold Flax variables of this project ({FORMAT!r})",
            "make one with: python -m mvo_jax convert --source CHECKPOINT --layout NAME --out FILE",
        )
    model, clip, provenance = (metadata[name] for name in _ABOUT)
    return VariablesFile(unflatten(arrays), model, tuple(clip), provenance, sha256(path))


def write_variables(path: Path, content: VariablesFile) -> None:
    """Write safetensors named as 'params/trunk/.../kernel', or raise UserError."""
    flat = flatten(content.variables)
    arrays = {name: np.ascontiguousarray(flat[name]) for name in sorted(flat)}
    about = {name: getattr(content, name) for name in _ABOUT}
    metadata = {ENTRY: json.dumps({"format": FORMAT, **about})}
    _write(path, lambda file: safetensors.numpy.save_file(arrays, file, metadata=metadata))


def read_torch(path: Path, *, weights_key: str = "") -> TorchFile:
    """Read a torch checkpoint: a pickle or safetensors.

    Args:
        path: the file.
        weights_key: where it has several sets of weights, the key of the one to take; in
            safetensors, which have no levels, what the names begin with.

    Raises:
        UserError: missing, empty, truncated, no checkpoint, objects that could run code, entries
            that are no arrays, dtypes numpy does not have, torch missing or too old.
    """
    with _reading(path):
        if path.suffix == ".safetensors":
            arrays, unwrapped, cast = _safe_arrays(path, weights_key)
        elif path.suffix in PICKLED:
            content, unwrapped = _chosen_weights(path, _unpickle(path), weights_key)
            arrays, cast = _arrays(path, content)
        else:
            raise UserError(
                f"{path} is no kind of checkpoint that is known here",
                f"name a file that ends in .safetensors, {', '.join(PICKLED)}",
            )
    return TorchFile(arrays, sha256(path), unwrapped, dict(Counter(cast)))


def without_prefixes(
    arrays: StateDict, known: Callable[[str], Any]
) -> tuple[StateDict, tuple[str, ...]]:
    """Take off what stands before every name, until a name is known, and say what that was.

    A layout says whether it is known: the names of one begin with 'model.' themselves.
    """
    taken: list[str] = []
    while arrays and not any(known(key) for key in arrays):
        names = [key for key in arrays if key != _AVERAGES]
        found = [p for p in PREFIXES if names and all(key.startswith(p) for key in names)]
        if not found:
            break
        taken += [*arrays.keys() - names, found[0]]  # the counter alone can be left
        arrays = {key.removeprefix(found[0]): arrays[key] for key in names}
    return arrays, tuple(taken)


def write_torch(path: Path, arrays: StateDict) -> None:
    """Write a state dict: ``torch.save`` for '.pth' and '.pt', safetensors for '.safetensors'.

    Raises:
        UserError: another suffix, torch missing, or the file cannot be written.
    """
    if path.suffix == ".safetensors":
        _write(path, lambda file: safetensors.numpy.save_file(arrays, file))
    elif path.suffix in (".pth", ".pt"):
        torch = _safe_torch()
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        _write(path, lambda file: torch.save(tensors, file))
    else:
        raise UserError(
            f"{path} names no format to write torch weights in", "end it in .pth or .safetensors"
        )


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can be wrong with a file into one line."""
    remedy = "name a whole checkpoint file; copy or download it again"
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path} is empty", remedy)
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", remedy) from error
    except safetensors.SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is truncated or no safetensors file ({reason})", remedy) from error


def _safe_torch() -> Any:
    """The torch module, if it is installed and its restricted loader can be trusted."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "reading and writing .pth files needs PyTorch, which is not installed",
            "pip install -r requirements-dev.txt, or use .safetensors files",
        ) from error
    if tuple(int(n) for n in version.split(".")[:2]) < SAFE_TORCH:
        raise UserError(
            f"torch {version} can be made to run code by a checkpoint it reads",
            "pip install 'torch>=2.6'",
        )
    import torch

    return torch


def _unpickle(path: Path) -> Any:
    torch = _safe_torch()
    # Here, so that what torch raises is about the content: a truncated file can give an OSError.
    path.open("rb").close()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The first line of torch's message advises to switch the protection off.
        about = (line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line)
        reason = next(about, "not a pickle of tensors").strip()[:160]
        raise UserError(
            f"{path} holds more than tensors, and was not read: {reason}",
            "load it where it was made and save its state_dict alone",
        ) from error
    except Exception as error:  # zip, pickle and torch raise many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{path} is truncated or no torch checkpoint ({reason or type(error).__name__})",
            "name a whole checkpoint file; copy or download it again",
        ) from error


def _chosen_weights(path: Path, content: Any, weights_key: str) -> tuple[Any, tuple[str, ...]]:
    """The state dict in what a checkpoint holds, and the key it lay under."""
    import torch

    outer = content if isinstance(content, Mapping) else {}

    def is_weights(value: Any) -> bool:
        return isinstance(value, Mapping) and any(
            isinstance(entry, torch.Tensor) for entry in value.values()
        )

    inner = {
        f"{key}.{name}": value
        for key, below in outer.items()
        if isinstance(below, Mapping) and not is_weights(below)
        for name, value in below.items()
    }
    found = {str(key): value for key, value in {**outer, **inner}.items() if is_weights(value)}
    sets = list(found)
    if weights_key:
        if weights_key not in found:
            raise UserError(
                f"{path} has no weights under {weights_key!r}",
                f"its sets of weights: {', '.join(sets)}" if sets else "leave --weights_key out",
            )
        return found[weights_key], (weights_key,)
    if len(sets) > 1:
        raise UserError(
            f"{path} holds {len(sets)} sets of weights: {', '.join(sets)}",
            f"choose one, as in --weights_key={sets[0]}",
        )
    return (found[sets[0]], (sets[0],)) if sets else (content, ())


def _safe_arrays(path: Path, weights_key: str) -> tuple[StateDict, tuple[str, ...], list[str]]:
    """Arrays whose names begin with a key, that beginning, and what was cast up to float32."""
    try:
        arrays = safetensors.numpy.load_file(path)
    except AttributeError as error:  # numpy has no such type
        raise UserError(
            f"{path} holds arrays of a type that numpy does not have ({error})",
            "save them in float32 where it was made",
        ) from error
    first = f"{weights_key}." if weights_key else ""
    chosen = {key.removeprefix(first): a for key, a in arrays.items() if key.startswith(first)}
    if weights_key and not chosen:
        begins = sorted({key.partition(".")[0] for key in arrays})
        raise UserError(
            f"{path} has no names that begin with {first!r}", f"they begin with {listed(begins, 6)}"
        )
    halves = {key: str(a.dtype) for key, a in chosen.items() if str(a.dtype) in HALF}
    wide = {key: chosen[key].astype(np.float32) for key in halves}  # holds all their values
    return {**chosen, **wide}, (first,) if first else (), [*halves.values()]


def _arrays(path: Path, content: Any) -> tuple[StateDict, list[str]]:
    """The arrays of a state dict, and what was cast up to float32."""
    import torch

    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a state dict",
            "save model.state_dict() and convert that",
        )
    arrays, other, halves = {}, [], []
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            other.append(f"{key} ({type(value).__name__})")
        elif value.is_sparse or value.is_quantized:
            other.append(f"{key} ({value.dtype}, {value.layout})")
        elif value.dtype.is_floating_point and value.dtype.itemsize < 4:
            halves.append(str(value.dtype).removeprefix("torch."))
            arrays[str(key)] = value.detach().float().numpy()
        else:
            arrays[str(key)] = value.detach().resolve_conj().resolve_neg().numpy()
    if other:
        raise UserError(
            f"{path} has {len(other)} entries that are no plain arrays: {listed(other, 6)}",
            "save the state_dict alone, dense and in float32",
        )
    return arrays, halves


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Save a whole file or none; torch and safetensors have errors of their own for a full disk."""

    def checked(temporary: Path) -> None:
        try:
            save(temporary)
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise OSError(str(error).splitlines()[0]) from error

    replace_with(path, checked)
