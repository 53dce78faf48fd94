"""A bundle, ready to predict: no JAX, unless its JAX program is asked for.

from mvo_jax import load_bundle

prediction = load_bundle("bundle").predict(video)  # uint8 [B, T, H, W]
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.bundles.about import (
    ABOUT,
    CARD,
    CHECK,
    MODELS,
    WEIGHTS,
    About,
    read_about,
    reason_of,
    versions,
    whole_file,
)
from mvo_jax.data.clips import clip_batch, in_batches
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
from mvo_jax.evaluation.thresholds import Threshold, given_threshold
from mvo_jax.files import new_folder

# Packages whose versions a result depends on, by form.
_COMPUTED_BY = {"onnx": ("onnxruntime", "numpy"), "jax": ("jax", "jaxlib", "numpy")}
# uint8 [b, T, H, W, 1] and whether the coarse map is wanted -> arrays by name
Compute = Callable[[np.ndarray, bool], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An exported model."""

    folder: Path  # where it lies
    about: About  # what it says of itself
    compute: Compute  # its model: see Compute
    form: str  # key of MODELS: what computes

    @property
    def geometry(self) -> Target:
        """Frames, size, spacing, grey window and orientation rule of the clips it takes."""
        return self.about.geometry

    @property
    def threshold(self) -> Threshold:
        """Where probabilities become decisions, for slices and for patients."""
        return self.about.threshold

    @property
    def batch_size(self) -> int:
        """Clips that are computed at a time."""
        return self.about.batch_size

    @property
    def simulated(self) -> bool:
        """Whether the model was trained on simulated images only."""
        return self.about.simulated

    @property
    def name(self) -> str:
        """What pages call it."""
        return f"the bundle {self.folder.name}"

    def decision(self, threshold: float | None = None) -> Threshold:
        """The thresholds: as given, in [0, 1], or those of the bundle."""
        if threshold is None:
            return self.threshold
        return given_threshold(threshold, self.threshold.patient_rule)

    def facts(self) -> dict[str, Any]:
        """What tables and pages say of it."""
        which, step = self.about.checkpoint["which"], self.about.checkpoint["step"]
        data = "simulated images only" if self.simulated else "a prepared cohort"
        return {
            "bundle": str(self.folder),
            "checkpoint": f"{which}, step {step}",
            "trained on": data,
            "model": MODELS[self.form],
            "model SHA-256": self.about.files[MODELS[self.form]]["sha256"],
            "exported by": ", ".join(f"{name} {it}" for name, it in self.about.versions.items()),
            "versions": versions(_COMPUTED_BY[self.form]),
        }

    def predict(self, video: np.ndarray) -> dict[str, Any]:
        """Predict clips of the bundle's geometry, uint8 ``[B, T, H, W]`` or ``[B, T, H, W, 1]``.

        The model normalises their grey values.

        Returns:
            'probability' ``[B]`` of MVO, 'logits' ``[B, K]`` and 'coarse_mask' ``[B, m, m]``, or
            None where the model has no mask branch.

        Raises:
            UserError: clips of another type or shape, or none.
        """
        clips = clip_batch(video, self.about.clip_shape, taken_by="the bundle")
        predict = self.predictor(self.batch_size, with_mask=True)
        return in_batches(predict, clips, self.batch_size)

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function of clips, uint8 ``[n, T, H, W, 1]``, to arrays by name.

        The model takes batches of every size. ``with_mask``: also the coarse mask where the model
        has the branch.
        """
        del batch_size
        return lambda clips: self.compute(clips, with_mask)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the bundle to a new folder, each file checked by its hash.

        Raises:
            UserError: a file has changed, or the folder cannot be written or holds something.
        """
        with new_folder(folder) as work:
            for name in (*self.about.files, ABOUT, CARD):
                (work / name).parent.mkdir(exist_ok=True)
                if name in self.about.files:
                    whole_file(self.folder, self.about, name)
                shutil.copyfile(self.folder / name, work / name)
            read_about(work)


def load_bundle(folder: str | Path, *, form: str = "onnx") -> Bundle:
    """Load an exported model; the hash of every file that is used is checked.

    Args:
        folder: written by ``export``.
        form: 'onnx' computes with onnxruntime and imports no JAX; 'jax' runs the exported JAX
            program.

    Raises:
        UserError: no bundle, one of a newer format, a missing or changed file, or a JAX that is
            older than the one that wrote the program.
    """
    if form not in MODELS:
        raise UserError(f"a bundle has no form {form!r}", f"choose from {', '.join(MODELS)}")
    folder = Path(folder).expanduser().resolve()
    about = read_about(folder)
    path = whole_file(folder, about, MODELS[form])
    if form == "onnx":
        return Bundle(folder, about, _onnx(path, about), form)
    from mvo_jax.bundles import jax_program

    weights = whole_file(folder, about, WEIGHTS)
    return Bundle(folder, about, jax_program.load(path, weights, about.versions), form)


def from_pretrained(name: str | Path, *, revision: str | None = None, form: str = "onnx") -> Bundle:
    """Load a bundle from a folder, or from the Hugging Face Hub.

    Args:
        name: a folder, or OWNER/NAME of a model on the Hub; a folder of that name comes first.
        revision: branch, tag or commit on the Hub.
        form: see ``load_bundle``.

    Raises:
        UserError: see ``load_bundle``; also if there is neither folder nor model.
    """
    folder = Path(name).expanduser()
    if os.path.isdir(folder) or str(name).count("/") != 1 or str(name)[0] in "./~":
        return load_bundle(folder, form=form)
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name} is no folder here, and huggingface_hub, which would look for it on the Hub, "
            "is not installed",
            "name the folder of a bundle, or pip install huggingface_hub",
        ) from error
    patterns = [ABOUT, CARD, CHECK, WEIGHTS, *MODELS.values()]
    try:
        found = huggingface_hub.snapshot_download(
            str(name), revision=revision, allow_patterns=patterns
        )
    except (OSError, ValueError, huggingface_hub.errors.HFValidationError) as error:
        raise UserError(
            f"{name} is no folder here and could not be had from the Hub: {reason_of(error)}",
            "correct the name of the folder, or of the model and its revision; the Hub needs a "
            "connection and, for a private model, `hf auth login`",
        ) from error
    return load_bundle(found, form=form)


def _onnx(path: Path, about: About) -> Compute:
    """What onnxruntime makes of a graph."""
    import onnxruntime

    # For Windows, and for a notebook that imported onnxruntime first; see mvo_jax/__init__.py.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session: Any = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has an exception of its own for each of its codes
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {reason_of(error)}",
            "pip install --upgrade onnxruntime",
        ) from error

    def compute(clips: np.ndarray, with_mask: bool) -> Mapping[str, np.ndarray]:
        wanted = [name for name in about.outputs if with_mask or name != "coarse_mask"]
        return dict(zip(wanted, session.run(wanted, {"video": clips}), strict=True))

    return compute
