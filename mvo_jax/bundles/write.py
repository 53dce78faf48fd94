"""A trained model into a bundle: every file is run before the folder has its name."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mvo_jax.bundles import jax_program
from mvo_jax.bundles.about import CARD, CHECK, MODELS, WEIGHTS, About, versions, write_about
from mvo_jax.bundles.bundle import load_bundle
from mvo_jax.bundles.card import model_card
from mvo_jax.data.phantom.case import CaseKey, simulate_case
from mvo_jax.data.slices import Target
from mvo_jax.data.stored import hashes
from mvo_jax.errors import UserError
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.files import new_folder
from mvo_jax.interop.weight_files import VariablesFile, write_variables
from mvo_jax.interop.weight_rules import flatten

CLIPS = 4
# Largest difference between a file and the run, relative to the largest value where that is above
# 1. Both add up some 40 layers in float32 in another order: 4e-7 for a probability was seen.
BOUNDS = {"probability": 5e-6, "logits": 2e-5, "coarse_mask": 1e-6}
_FIRST_PATIENT = 900_000  # of the check clips: far from the patients of every simulated cohort
_PACKAGES = {"onnx": ("torch", "onnx", "onnxscript", "onnxruntime"), "jax": ("jax", "flatbuffers")}


def write_bundle(
    out: str | Path,
    *,
    forms: Sequence[str],
    reference: Callable[[np.ndarray], Mapping[str, Any]],
    variables: Mapping[str, Any],
    config: dict[str, Any],
    geometry: Target,
    threshold: Threshold,
    checkpoint: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    check: int,
) -> About:
    """Write a bundle to a new folder.

    Args:
        out: the folder; must not exist or be empty.
        forms: keys of ``about.MODELS``.
        reference: uint8 clips ``[B, T, H, W, 1]`` to what the run itself predicts.
        variables: {'params', 'batch_stats'}, float32.
        config: of the run.
        geometry: see ``About``; so are ``threshold`` and ``checkpoint``.
        metrics: content of the run's ``metrics.json``, or None.
        check: simulated clips that every file is run on.

    Raises:
        UserError: a package is missing, the model cannot be exported, a file gives other results
            than the run, or the folder cannot be written. Nothing is written then.
    """
    flat = {name: np.asarray(value) for name, value in flatten(variables).items()}
    if other := {str(value.dtype) for value in flat.values()} - {"float32"}:
        raise UserError(
            f"the weights are {', '.join(sorted(other))}, a bundle holds float32",
            "train with config.model.dtype=float32 or bfloat16",
        )
    _check_installed(forms)
    config = json.loads(json.dumps(config))
    config["data"]["dir"], config["init_from"] = "", ""  # the paths in it name a site
    clip = (geometry.frames, geometry.image_size, geometry.image_size, 1)
    clips = check_clips(check, geometry)
    expected = {key: value for key, value in reference(clips).items() if value is not None}
    if not all(np.isfinite(value).all() for value in expected.values()):
        cause = "the model gives NaN for simulated clips"
        raise UserError(cause, "export another --checkpoint, or train again")
    packages = ["jax", "flax", "numpy", *(package for form in forms for package in _PACKAGES[form])]
    about = About(
        geometry=geometry,
        threshold=threshold,
        checkpoint=dict(checkpoint),
        config=config,
        batch_size=config["eval"]["batch_size"],
        outputs=[name for name in BOUNDS if name in expected],
        metrics=None if metrics is None else _figures(metrics),
        checked={},
        bounds=BOUNDS,
        versions=versions(dict.fromkeys(packages)),
        files={},
    )
    with new_folder(out) as work:
        (work / "models").mkdir()
        write_variables(work / WEIGHTS, VariablesFile(dict(variables), config["model"], clip, {}))
        np.savez_compressed(work / CHECK, video=clips, **expected)
        for form in forms:
            content = _model_file(form, config["model"], variables, flat, clip)
            (work / MODELS[form]).write_bytes(content)
        # safetensors makes files that only their owner reads.
        (work / WEIGHTS).chmod((work / CHECK).stat().st_mode)
        about.files.update(hashes(work, [work / CHECK, *sorted((work / "models").iterdir())]))
        write_about(work, about)
        about.checked.update(_differences(work, forms, flat, clips, expected))
        (work / CARD).write_text(model_card(about), encoding="utf-8")
        write_about(work, about)
    return about


def check_clips(count: int, geometry: Target) -> np.ndarray:
    """Simulated clips, every second with MVO, uint8 ``[count, T, H, W, 1]``."""
    keys = [CaseKey("paper", 0, _FIRST_PATIENT + i, 0, 1, bool(i % 2)) for i in range(count)]
    frames, size = geometry.frames, geometry.image_size
    return np.stack([simulate_case(key, frames=frames, image_size=size).video for key in keys])


def _model_file(
    form: str,
    model: Mapping[str, Any],
    variables: Mapping[str, Any],
    flat: Mapping[str, np.ndarray],
    clip: tuple[int, ...],
) -> bytes:
    if form == "jax":
        return jax_program.program(model, flat, clip)
    from mvo_jax.interop.onnx_graph import onnx_bytes, whole_model  # imports torch

    return onnx_bytes(whole_model(model, variables, clip), clip)


def _differences(
    work: Path,
    forms: Sequence[str],
    flat: Mapping[str, np.ndarray],
    clips: np.ndarray,
    expected: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Largest difference of every file from the run, by output; none is beyond its bound."""
    stored = safetensors.numpy.load_file(work / WEIGHTS)
    if stored.keys() != flat.keys() or any((stored[key] != flat[key]).any() for key in flat):
        raise UserError(f"{WEIGHTS} does not hold the weights of the run", "report this")
    found = {}
    for form in forms:
        bundle = load_bundle(work, form=form)
        # One clip by itself too: a batch of any size was promised.
        for batch in (clips, clips[:1]):
            given = bundle.predict(batch)
            apart = {
                name: float(np.abs(given[name] - value[: len(batch)]).max())
                / max(1.0, float(np.abs(value).max()))
                for name, value in expected.items()
            }
            for name, difference in apart.items():
                if not difference <= BOUNDS[name]:  # NaN is beyond every bound
                    raise UserError(
                        f"{MODELS[form]} gives another {name} than the run: {difference:.1e} on "
                        f"the check clips, {BOUNDS[name]:.0e} is allowed",
                        "nothing was written; export it on a machine with other versions of "
                        "torch, onnxruntime and jax, or report this",
                    )
            if len(batch) == len(clips):
                found[MODELS[form]] = apart
    return found


def _check_installed(forms: Sequence[str]) -> None:
    """Say what is missing before anything is computed."""
    wanted = [package for form in forms for package in _PACKAGES[form]]
    missing = []
    for package in wanted:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise UserError(
            f"export needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed",
            'pip install "mvo_jax[export]"',
        )


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``metrics.json`` is figures alone."""
    counts = ("cases", "patients", "positive", "negative", "prevalence", "confusion", "metrics")
    own = {key: metrics[key] for key in ("split", "confidence", "threshold", *counts)}
    patients = metrics["patient_level"]
    own["patient_level"] = None if patients is None else {key: patients[key] for key in counts}
    return json.loads(json.dumps(own))
