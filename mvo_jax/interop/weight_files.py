"""Weights on disk: torch checkpoints, and safetensors of Flax variables.

A file is read without running anything it contains: safetensors hold no code, and pickles are read
by torch's restricted loader, from a version on whose restriction is known to hold.
"""

import contextlib
import importlib.metadata
import json
import pickle
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
PICKLED = (".pth", ".pt", ".tar", ".ckpt", ".pyth")
SAFE_TORCH = (2, 6)  # weights_only could be deceived before (CVE-2025-32434)
# Where checkpoints keep the state dict: MMCV and Lightning, PySlowFast, timm.
WRAPPERS = ("state_dict", "model_state", "model")


@dataclass(frozen=True)
class TorchFile:
    """A torch checkpoint.

    Attributes:
        arrays: the state dict.
        sha256: of the file.
        unwrapped: what was taken off: the key the state dict lay under, 'module.' of data-parallel
            training.
    """

    arrays: StateDict
    sha256: str
    unwrapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class VariablesFile:
    """Flax variables of one of our models, or of whole parts of it.

    Attributes:
        variables: {'params': ..., 'batch_stats': ...}, numpy arrays.
        model: the ``model`` part of the config they belong to.
        clip: (T, H, W, C) of the clips the model was built for.
        provenance: where they come from.
        sha256: of the file; empty for variables that were not read from one.
    """

    variables: dict[str, Any]
    model: dict[str, Any]
    clip: tuple[int, int, int, int]
    provenance: dict[str, Any]
    sha256: str = ""


def is_variables_file(path: Path) -> bool:
    """Whether this is a safetensors file that ``write_variables`` wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with _reading(path):
        return ENTRY in _metadata(path)


def read_variables(path: Path) -> VariablesFile:
    """Read what ``write_variables`` wrote.

    Raises:
        UserError: missing, damaged, not of this kind, or of a newer format.
    """
    with _reading(path):
        metadata = json.loads(_metadata(path).get(ENTRY, "{}"))
        arrays = safetensors.numpy.load_file(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} does not hold Flax variables of this project ({FORMAT!r})",
            "make one with: python -m mvo_jax convert --source CHECKPOINT --layout NAME --out FILE",
        )
    return VariablesFile(
        variables=unflatten(arrays),
        model=metadata["model"],
        clip=tuple(metadata["clip"]),
        provenance=metadata["provenance"],
        sha256=sha256(path),
    )


def write_variables(path: Path, content: VariablesFile) -> None:
    """Write Flax variables as safetensors; names are paths such as 'params/trunk/.../kernel'.

    Raises:
        UserError: the file cannot be written.
    """
    flat = flatten(content.variables)
    arrays = {name: np.ascontiguousarray(flat[name]) for name in sorted(flat)}
    about = {
        "format": FORMAT,
        "model": content.model,
        "clip": content.clip,
        "provenance": content.provenance,
    }
    metadata = {ENTRY: json.dumps(about)}
    _write(path, lambda file: safetensors.numpy.save_file(arrays, file, metadata=metadata))


def read_torch(path: Path) -> TorchFile:
    """Read a torch checkpoint: a pickle or safetensors.

    Raises:
        UserError: missing, empty, truncated, no checkpoint, objects that could run code, entries
            that are no arrays, dtypes numpy does not have, torch missing or too old.
    """
    with _reading(path):
        if path.suffix == ".safetensors":
            return TorchFile(safetensors.numpy.load_file(path), sha256(path))
        if path.suffix not in PICKLED:
            raise UserError(
                f"{path} is no kind of checkpoint that is known here",
                f"name a file that ends in .safetensors, {', '.join(PICKLED)}",
            )
        content = _unpickle(path)
    unwrapped = []
    outer = content if isinstance(content, Mapping) else {}
    for key in [key for key in WRAPPERS if isinstance(outer.get(key), Mapping)][:1]:
        content = outer[key]
        unwrapped.append(key)
    arrays = _arrays(path, content)
    if arrays and all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): value for key, value in arrays.items()}
        unwrapped.append("module.")
    return TorchFile(arrays, sha256(path), tuple(unwrapped))


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
        about = [line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line]
        reason = about[0].strip()[:160] if about else "not a pickle of tensors"
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


def _arrays(path: Path, content: Any) -> StateDict:
    import torch

    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a state dict",
            "save model.state_dict() and convert that",
        )
    arrays, other = {}, []
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            other.append(f"{key} ({type(value).__name__})")
        elif value.dtype in (torch.bfloat16,) or value.is_sparse or value.is_quantized:
            other.append(f"{key} ({value.dtype}, {value.layout})")
        else:
            arrays[str(key)] = value.detach().numpy()
    if other:
        raise UserError(
            f"{path} has {len(other)} entries that are no plain arrays: {listed(other, 6)}",
            "save the state_dict alone, dense and in float32",
        )
    return arrays


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Save a whole file or none; torch and safetensors have errors of their own for a full disk."""

    def checked(temporary: Path) -> None:
        try:
            save(temporary)
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise OSError(str(error).splitlines()[0]) from error

    replace_with(path, checked)
