"""One bundle for all tests of the room: of a tiny network, as a hospital would export it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax.runs.folder import RunFolder
from mvo_jax.trained_run import TrainedRun
from mvo_jax.training.setup import set_up
from tests.small_run import make_tiny_config

# What a run knows of where it was trained; none of it may leave.
SITE = {
    "data.name": "cohort",
    "data.dir": "/srv/st-elsewhere/cohort-of-dr-house",
    "init_from": "/home/gregory/pretrained.safetensors",
}
METRICS = {
    "split": "test",
    "confidence": 0.95,
    "checkpoint": {"which": "best", "step": 7},
    "threshold": {"value": 0.375, "origin": "highest Youden index on the validation split"},
    "patient_rule": {"rule": "max", "threshold": 0.5, "threshold_origin": "by patient"},
    "cases": 20,
    "patients": 10,
    "positive": 8,
    "negative": 12,
    "prevalence": 0.4,
    "confusion": {"true_positive": 6},
    "metrics": {
        "auc": {"value": 0.75, "low": 0.5, "high": 0.875},
        "f1": {"value": 0.5, "low": None, "high": None},
    },
    "patient_level": None,
    "features_of": "patient Cuddy",
}


def draw(draws: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels that keep the size of what goes through them; scales and variances about 1."""
    if len(shape) > 1:
        value = draws.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
    else:
        value = draws.uniform(0.5, 1.5, shape)
    return value.astype(np.float32)


def make_run(folder: Path, **changes: Any) -> TrainedRun:
    """A run with random weights and statistics; what is around it is as training leaves it."""
    config = make_tiny_config(**{"model.mask_size": 8}, **SITE, **changes)
    experiment = set_up(config, devices=jax.devices()[:1], train=False)
    draws = np.random.default_rng(0)
    shapes = experiment.state_shapes().eval_variables()
    variables = jax.tree.map(lambda leaf: draw(draws, leaf.shape), shapes)
    folder.mkdir()
    window = {"window": [20.0, 900.0], "end_diastole_first": True}
    geometry = {"frames": 8, "image_size": 32, "spacing_mm": 2.5, **window, "orientation": 2}
    (folder / "geometry.json").write_text(json.dumps(geometry))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return TrainedRun(RunFolder(folder), config, experiment, variables, "best", 7)


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return make_run(tmp_path_factory.mktemp("st-elsewhere") / "run-of-wilson")


@pytest.fixture(scope="package")
def bundle(trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    trained.save_pretrained(folder, check=3)
    return folder
