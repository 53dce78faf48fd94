"""A checkpoint of a run, or a bundle made of one, ready to predict with JAX."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.bundles.about import MODELS, WEIGHTS, About, is_bundle, read_about, whole_file
from mvo_jax.bundles.write import CLIPS, write_bundle
from mvo_jax.config_files import config_from_json
from mvo_jax.data.clips import clip_batch, geometry_of, in_batches
from mvo_jax.data.slices import Target
from mvo_jax.data.splits import AnySplit, load_split
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import Temperature, fit_temperature
from mvo_jax.evaluation.predict import ClipPredictor, Predictor
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.thresholds import Threshold, choose_thresholds, given_threshold
from mvo_jax.interop.weight_files import read_variables
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder, provenance, read_json
from mvo_jax.training.setup import Experiment, set_up

log = logging.getLogger(__name__)
GEOMETRY, TRAINING_MAP = "geometry.json", "training_map.json"
_DELETE = "delete it; the same training command writes it again"


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, ready to predict."""

    folder: RunFolder  # of the run
    config: Any  # what it was trained with
    experiment: Experiment  # what the config describes, on the devices to predict with
    variables: Mapping[str, Any]  # {'params', 'batch_stats'}
    checkpoint: str  # 'best' or 'latest'
    step: int  # of the checkpoint
    about: About | None = None  # of the bundle that it was read from; None for the folder of a run

    @property
    def batch_size(self) -> int:
        """Clips that are predicted at a time."""
        return self.config.eval.batch_size

    @property
    def simulated(self) -> bool:
        """Whether it was trained on simulated images only."""
        return self.config.data.name == "phantom"

    @property
    def name(self) -> str:
        """What pages call it."""
        kind = "run" if self.about is None else "bundle"
        return f"the {kind} {self.folder.path.name}"

    def facts(self) -> dict[str, Any]:
        """What tables and pages say of it."""
        about = provenance()
        data = "simulated images only" if self.simulated else f"cohort {self.config.data.dir}"
        return {
            "run": str(self.folder.path),
            "checkpoint": f"{self.checkpoint}, step {self.step}",
            "trained on": data,
            **{key: about[key] for key in ("git_revision", "backend", "versions")},
        }

    def predict(self, video: np.ndarray) -> dict[str, Any]:
        """Predict clips that have the geometry of the run's training data; as ``Bundle.predict``.

        uint8 ``[B, T, H, W]`` or ``[B, T, H, W, 1]``, as the data of the run store them; they are
        normalised here.
        """
        clips = clip_batch(video, self.experiment.clip_shape, taken_by="the run")
        size = min(len(clips), self.batch_size)
        predict = self.predictor(size, with_mask=True)
        return in_batches(predict, clips, size)

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function of up to ``batch_size`` clips, uint8 ``[n, T, H, W, 1]``, to arrays by name.

        Args:
            batch_size: clips that one compiled program takes; fewer are filled up.
            with_mask: also predict the coarse mask where the model has the branch.
        """
        key = batch_size, with_mask
        if key not in self._predictors:
            self._predictors[key] = ClipPredictor(
                self.experiment, batch_size=batch_size, with_mask=with_mask
            )
        return functools.partial(self._predictors[key], self._placed)

    def predict_split(self, split: AnySplit, *, with_mask: bool = True) -> Predictions:
        """Predict every case of a split, of the run's geometry, once.

        ``with_mask``: also the coarse mask where the model has the branch.
        """
        predict = Predictor(self.experiment, split, batch_size=self.batch_size, with_mask=with_mask)
        return predict(self.variables)

    @property
    def geometry(self) -> Target:
        """Frames, size, spacing and grey window of the clips that the run was trained on.

        UserError where the run's file on it is damaged.
        """
        if self.about is not None:
            return self.about.geometry
        path = self.folder.path / GEOMETRY
        if not path.exists():
            return geometry_of(self.config.data)
        content = read_json(path)
        try:
            window = content.pop("window")
            content.setdefault("orientation", 1)  # runs of version 1 do not say it
            content.setdefault("locator", 0)  # nor those of crops by motion
            return Target(**content, window=None if window is None else (window[0], window[1]))
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}", _DELETE) from error

    @property
    def training_map(self) -> np.ndarray | None:
        """Share of the training cases with MVO at each pixel; None for runs without the file.

        UserError where the file is damaged.
        """
        path = self.folder.path / TRAINING_MAP
        if not path.exists():
            return None
        try:
            share = np.array(read_json(path)["share_with_mvo"], np.float64)
            if share.ndim != 2 or len(share) != share.shape[1] or not np.isfinite(share).all():
                raise ValueError(f"it has the shape {share.shape}")
        except (TypeError, KeyError, ValueError) as error:
            cause = f"{path} is damaged: {type(error).__name__}: {error}"
            raise UserError(cause, _DELETE) from error
        return share

    def decision(self, threshold: float | None = None) -> Threshold:
        """The thresholds: as given, in [0, 1], as eval.py or the bundle has them, or chosen now.

        Raises:
            UserError: the run was never evaluated and its validation split cannot be read.
        """
        if threshold is not None:
            return given_threshold(threshold, self.config.eval.patient_aggregation)
        if self.about is not None:
            return self.about.threshold
        name, metrics = self._evaluated("metrics*.json")
        if metrics is not None:
            own, patients = metrics["threshold"], metrics["patient_rule"]
            return Threshold(
                value=own["value"],
                origin=f"{own['origin']}, as in {name}",
                patient_rule=patients["rule"],
                patient_value=patients["threshold"],
                patient_origin=f"{patients['threshold_origin']}, as in {name}",
            )
        log.info("this checkpoint was never evaluated: choosing the threshold on validation")
        validation = self._validation("threshold", "give --threshold")
        return choose_thresholds(self.config, validation)

    def temperature(self) -> Temperature:
        """What logits are divided by to be calibrated: as eval.py fitted it, or fitted now.

        Raises:
            UserError: the run is a bundle, or was never evaluated and its validation split cannot
                be read.
        """
        if self.about is not None:
            raise UserError(
                f"the bundle {self.folder.path} holds no temperature",
                "leave out --calibrated, or name the run that the bundle was made of",
            )
        name, metrics = self._evaluated("metrics*.json")
        if metrics is not None and metrics.get("temperature"):
            found = metrics["temperature"]
            return Temperature(found["value"], f"{found['origin']}, as in {name}")
        log.info("this checkpoint has no temperature yet: fitting it on validation")
        return fit_temperature(self._validation("temperature", "leave out --calibrated"))

    def _validation(self, what: str, otherwise: str) -> Predictions:
        """Predictions of validation, to choose ``what``; ``otherwise`` is what a user can do."""
        try:
            validation = load_split(self.config.data, "validation")
        except UserError as error:
            raise UserError(
                f"no {what} is known: the run was never evaluated, and {error.cause}",
                f"run eval.py --workdir {self.folder.path} where its data are, name them with "
                f"--data_dir, or {otherwise}",
            ) from error
        return self.predict_split(validation, with_mask=False)

    def save_pretrained(
        self, folder: str | Path, *, forms: Sequence[str] = tuple(MODELS), check: int = CLIPS
    ) -> About:
        """Write a bundle: weights, ONNX graph, JAX program, model card (docs/bundles.md).

        Args:
            folder: to write; must not exist or be empty.
            forms: keys of ``bundles.about.MODELS``.
            check: simulated clips that every file is run on.

        Raises:
            UserError: no threshold is known, or as ``write_bundle``. Nothing is written then.
        """
        run = self
        if self.config.model.get("dtype") == "bfloat16":
            log.info("the run computes in bfloat16, its bundle in float32")
            config = copy.deepcopy(self.config).unlock()
            config.model.dtype = "float32"
            experiment = set_up(config, devices=self.experiment.devices, train=False)
            run = dataclasses.replace(self, config=config.lock(), experiment=experiment)
        return write_bundle(
            folder,
            forms=forms,
            reference=run.predict,
            variables=run.variables,
            config=run.config.to_dict(),
            geometry=run.geometry,
            threshold=run.decision(),
            checkpoint={"which": run.checkpoint, "step": run.step},
            metrics=run._evaluated("metrics.json")[1],
            check=check,
        )

    def _evaluated(self, pattern: str) -> tuple[str, dict[str, Any] | None]:
        """Name and content of what eval.py wrote of this very checkpoint; None if nothing."""
        for path in sorted(self.folder.path.glob(pattern)):
            content = read_json(path)
            which = {"which": self.checkpoint, "step": self.step}
            if content.get("checkpoint") == which and content.get("patient_rule"):
                return path.name, content
        return "", None

    @functools.cached_property
    def _predictors(self) -> dict[tuple[int, bool], ClipPredictor]:
        return {}

    @functools.cached_property
    def _placed(self) -> Any:
        """The variables on the devices."""
        return parallel.replicate(self.variables, self.experiment.devices)


def load_run(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    data_dir: str | None = None,
    num_devices: int = 1,
) -> TrainedRun:
    """Load a checkpoint of a run, or a bundle.

    Args:
        workdir: folder of the run, or of a bundle.
        checkpoint: 'best' (validation AUC) or 'latest'.
        data_dir: replaces ``config.data.dir``: where the run's own data lie now.
        num_devices: devices to predict on.

    Raises:
        UserError: no run, no such checkpoint, or a damaged one.
    """
    if checkpoint not in ("best", "latest"):
        raise UserError(f"checkpoint is {checkpoint!r}", "choose best or latest")
    folder = RunFolder(workdir)
    if is_bundle(folder.path):
        return _of_bundle(folder, num_devices)
    config = config_from_json(folder.config())
    config.data.dir = folder.data_dir(config.data.dir) if data_dir is None else data_dir
    experiment = set_up(config, devices=parallel.devices(num_devices), train=False)
    checkpoints = Checkpoints(folder.path, create=False)
    variables, step = checkpoints.restore_variables(experiment.state_shapes(), checkpoint)
    return TrainedRun(folder, config, experiment, variables, checkpoint, step)


def _of_bundle(folder: RunFolder, num_devices: int) -> TrainedRun:
    """The weights of a bundle in the model that its config describes."""
    about = read_about(folder.path)
    variables = read_variables(whole_file(folder.path, about, WEIGHTS)).variables
    # A bundle tells no path, and a config with an empty one is refused.
    data = {**about.config["data"], "dir": "not-in-the-bundle"}
    config = config_from_json({**about.config, "data": data})
    experiment = set_up(config, devices=parallel.devices(num_devices), train=False)
    which, step = about.checkpoint["which"], about.checkpoint["step"]
    return TrainedRun(folder, config, experiment, variables, which, step, about)
