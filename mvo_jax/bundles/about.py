"""What a bundle says of itself: ``configs/mvo_jax.json``, and the files that it vouches for.

No JAX is imported here, nor in anything that this module imports.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvo_jax import __version__
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.files import replace_file, sha256

FORMAT = "mvo_jax bundle"
VERSION = 1
ABOUT = "configs/mvo_jax.json"
CARD = "README.md"  # not vouched for: whoever shares a bundle writes into it
CHECK = "check.npz"
WEIGHTS = "models/model.safetensors"
# form of the computation -> its file
MODELS = {"onnx": "models/model.onnx", "jax": "models/model.jaxexport"}
_COPY_AGAIN = "copy or download the whole bundle again, or export it again"


@dataclasses.dataclass(frozen=True)
class About:
    """The content of ``configs/mvo_jax.json``."""

    geometry: Target  # frames, size, spacing, grey window and orientation rule of the clips
    threshold: Threshold  # for slices and for patients, and how it was chosen
    checkpoint: dict[str, Any]  # 'which' ('best' or 'latest') and 'step'
    config: dict[str, Any]  # of the run, without anything that names its site
    batch_size: int  # clips at a time
    outputs: list[str]  # names of what the model gives, in order
    # Of the run's evaluation on its test split, as metrics.json has them; None where it was never
    # evaluated.
    metrics: dict[str, Any] | None
    # Largest difference from the run on the check clips, by file and output.
    checked: dict[str, dict[str, float]]
    bounds: dict[str, float]  # of these differences
    versions: dict[str, str]  # of the packages that wrote it
    files: dict[str, dict[str, Any]]  # size and SHA-256 by path

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip."""
        return (self.geometry.frames, self.geometry.image_size, self.geometry.image_size, 1)

    @property
    def simulated(self) -> bool:
        """Whether the model was trained on simulated images only."""
        return self.config["data"]["name"] == "phantom"


def is_bundle(folder: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (folder / ABOUT).is_file()


def write_about(folder: Path, about: About) -> None:
    """Write ``configs/mvo_jax.json``, sealed with a hash of its own."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(about)}
    text = json.dumps({**content, "sha256": _seal(content)}, indent=1, allow_nan=False)
    replace_file(folder / ABOUT, text + "\n")


def read_about(folder: Path) -> About:
    """Read ``configs/mvo_jax.json`` and check that every file it names is there in full size.

    Raises:
        UserError: no bundle, one of a newer format, a missing file, or a changed one.
    """
    path = folder / ABOUT
    if not os.path.isfile(path):  # no error for a name that is too long
        raise UserError(
            f"{folder} is no bundle: it has no {ABOUT}",
            "make one with: python -m mvo_jax export --workdir RUN --out BUNDLE",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, version, seal = content["format"], content["version"], content.pop("sha256")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", _COPY_AGAIN) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}", _COPY_AGAIN) from error
    if kind != FORMAT or not isinstance(version, int):
        raise UserError(f"{path} does not say {FORMAT!r}", _COPY_AGAIN)
    if version > VERSION:
        raise UserError(
            f"the bundle {folder} has the format {version}, this mvo_jax knows {VERSION}",
            "install a newer mvo_jax",
        )
    if seal != _seal(content):
        raise UserError(f"{path} has changed since it was written", _COPY_AGAIN)
    del content["format"], content["version"]
    try:
        geometry = content.pop("geometry")
        geometry.setdefault("locator", 0)  # the first bundles do not say it
        window = geometry.pop("window")
        about = About(
            geometry=Target(**geometry, window=None if window is None else (window[0], window[1])),
            threshold=Threshold(**content.pop("threshold")),
            **content,
        )
    except (KeyError, TypeError) as error:  # another mvo_jax wrote it, of the same format
        raise UserError(
            f"{path} does not fit this version of mvo_jax: {error}",
            "install the version that wrote it (versions in that file), or a newer one",
        ) from error
    for name, facts in about.files.items():
        found = folder / name
        if not found.is_file():
            raise UserError(f"{found} is missing", _COPY_AGAIN)
        if (size := found.stat().st_size) != facts["bytes"]:
            raise UserError(f"{found} has {size} bytes instead of {facts['bytes']}", _COPY_AGAIN)
    return about


def whole_file(folder: Path, about: About, name: str) -> Path:
    """The path of a file of a bundle; UserError where there is none, or it has changed."""
    path = folder / name
    if name not in about.files:
        forms = [form for form, file in MODELS.items() if file in about.files]
        raise UserError(
            f"the bundle {folder} has no {name}, only the form {' and '.join(forms)}",
            "export it again with --format=onnx,jax",
        )
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", _COPY_AGAIN) from error
    if found != about.files[name]["sha256"]:
        raise UserError(f"{path} has changed since it was written", _COPY_AGAIN)
    return path


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this package, of Python and of others that are installed."""
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"mvo_jax": __version__, "python": platform.python_version(), **found}


def reason_of(error: Exception) -> str:
    """The first line of what another package raised, or the kind of it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _seal(content: Mapping[str, Any]) -> str:
    """Hash of the values, however they are laid out as text."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
