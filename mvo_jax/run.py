"""A run from its config to its results: what train.py, eval.py, compare, tools and notebooks call.

from mvo_jax import load_run, train_and_evaluate

result = train_and_evaluate(config, "runs/mine")
prediction = load_run("runs/mine").predict(video)  # uint8 [B, T, H, W]
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mvo_jax.bundles.about import WEIGHTS, is_bundle, read_about, whole_file
from mvo_jax.data.attributes import attributes
from mvo_jax.data.clips import geometry_of
from mvo_jax.data.cohort_card import cohort_card, split_card
from mvo_jax.data.splits import (
    AnySplit,
    check_patients_disjoint,
    content_hash,
    dataset_line,
    describe,
    load_split,
    split_bytes,
)
from mvo_jax.devices import computation, distributed
from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import fit_temperature
from mvo_jax.evaluation.claim import Artefacts, fill, write_claim
from mvo_jax.evaluation.figures.pictures import gallery
from mvo_jax.evaluation.localisation import mean_mvo
from mvo_jax.evaluation.predict import Predictor, validation_metrics
from mvo_jax.evaluation.predictions import (
    Predictions,
    write_patient_predictions,
    write_predictions,
)
from mvo_jax.evaluation.sectors import infarct_sectors
from mvo_jax.evaluation.statistics import by_patient
from mvo_jax.evaluation.thresholds import Threshold, choose_thresholds
from mvo_jax.files import check_folder, check_writable, local_path
from mvo_jax.interop.convert import initial_variables
from mvo_jax.interop.weight_files import read_variables
from mvo_jax.interop.weight_sources import read_start
from mvo_jax.runs.folder import OnMetrics, RunFolder, provenance, read_json, write_json
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.lock import RunLock
from mvo_jax.runs.resume import Identity
from mvo_jax.runs.signals import Interruption
from mvo_jax.runs.watchdog import Watchdog
from mvo_jax.trained_run import GEOMETRY, TRAINING_MAP, TrainedRun, load_run
from mvo_jax.training.loop import train
from mvo_jax.training.lowering_trial import settle_lowering
from mvo_jax.training.recorder import Supervision
from mvo_jax.training.setup import Experiment, set_up

log = logging.getLogger(__name__)
_COHORT_CARD = "cohort_card.json"


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    evaluate_on: str | None = "test",
    splits: Mapping[str, AnySplit] | None = None,
    profile_steps: int = 0,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
    allow_settings_change: bool = False,
    clock: Clock | None = None,
    on_metrics: OnMetrics | None = None,
) -> dict[str, Any]:
    """Train the run of a folder, or go on with it, and evaluate its best checkpoint.

    The config decides everything; the same call, repeated, goes on from the last checkpoint and
    ends in the same bytes.

    Args:
        config: resolved experiment config, as ``load_config`` returns it.
        workdir: folder of the run; made where it is missing.
        evaluate_on: split that is scored at the end and reported; None leaves that to
            ``evaluate``.
        splits: cases by the name of their split, in place of those that ``config.data`` names.
        profile_steps: steps to trace into the folder 'profile' of the run; 0 for none.
        allow_config_change: go on with a run under another config.
        allow_data_change: go on with a run on other data.
        allow_settings_change: go on with a run under other settings of JAX, such as its x64 mode.
        clock: where the time goes; started by the caller.
        on_metrics: called with step, kind ('train', 'validation', 'goodput') and values of every
            row of ``metrics.jsonl``, for a tracker of experiments; see docs/runs.md.

    Returns:
        What ``training.loop.train`` returns, and 'evaluation': what ``evaluate`` returns, or None.

    Raises:
        UserError: see ``training.loop.train``; also a mistake in the config or the data, and a run
            folder that another process trains in.
        RunInterrupted: a signal asked the run to stop, and it has saved.
    """
    folder, clock = RunFolder(workdir), clock or Clock()
    with contextlib.ExitStack() as held:
        interruption = held.enter_context(Interruption())

        # 1. What can be found wrong before a folder is left behind.
        config = settle_lowering(config, folder)
        experiment = set_up(config)
        if splits is None:
            for name in ("train", "validation"):
                split_bytes(config.data, name)
            check_folder(config.data.dir, "config.data.dir")
        settings, rounding = computation.settings(), computation.rounding(experiment.devices)
        distributed.check_same(
            {"config": config.to_dict(), **settings, **rounding}, distributed.SAME_START
        )
        initial, about = _initial(config.init_from, folder, experiment)
        if splits is None:
            about["data_dir"] = str(Path(config.data.dir).expanduser().absolute())

        # 2. The folder, held by the first of several processes for all.
        distributed.first_then_others(folder.create)
        lock = held.enter_context(RunLock(folder.path)) if distributed.is_first() else None
        held.enter_context(
            Watchdog(
                clock,
                folder.path,
                seconds=config.train.watchdog_seconds,
                leave=config.train.watchdog_leaves,
                record=lock.record if lock else lambda row: None,
            )
        )
        folder.open_for_training(
            config.to_dict(), about=about, allow_config_change=allow_config_change
        )

        # 3. Data: of one content in all processes, no patient in both splits.
        training, validation, data = _Cases(config.data, splits).for_training(folder)

        # 4. Training, with the best checkpoint chosen on the validation split.
        result = train(
            experiment,
            folder,
            training,
            _validation(experiment, validation),
            Identity(
                config.to_dict(),
                data,
                settings,
                rounding,
                allow_config_change=allow_config_change,
                allow_data_change=allow_data_change,
                allow_settings_change=allow_settings_change,
            ),
            initial=initial,
            profile_steps=profile_steps,
            supervision=Supervision(clock, interruption, lock, on_metrics),
        )
    if evaluate_on is None:
        return {**result, "evaluation": None}
    return {**result, "evaluation": evaluate(folder.path, split=evaluate_on, splits=splits)}


def _validation(experiment: Experiment, split: AnySplit) -> Callable[[Any], Any]:
    """Variables to their metrics on the validation split."""
    predict = Predictor(experiment, split, batch_size=experiment.eval_batch_size, with_mask=True)

    def validate(variables: Any) -> Any:
        also = experiment.train.best_metric
        return validation_metrics(predict(variables), also=also, loss=experiment.loss)

    return validate


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data_dir: str | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    splits: Mapping[str, AnySplit] | None = None,
) -> dict[str, Any]:
    """Evaluate one checkpoint of a run on one split and write everything beside it.

    The thresholds are chosen on the validation split; the evaluated split is scored once. Several
    processes share the cases, and the first one writes
    ``predictions_SPLIT.csv``, ``predictions_validation.csv`` (what the thresholds were chosen on),
    ``metrics.json`` and ``report.html`` for the test split, and ``metrics_SPLIT.json`` and
    ``report_SPLIT.html`` for others, each with ``claim.md``, the CLAIM checklist; where a patient
    has several slices ``predictions_patients_SPLIT.csv`` too. Those of the latest checkpoint end in
    ``_latest``.

    Args:
        workdir: folder of a trained run.
        split: split to evaluate.
        checkpoint: 'best' (validation AUC) or 'latest'.
        data_dir: replaces ``config.data.dir``.
        batch_size: replaces ``config.eval.batch_size``; results differ by rounding at most.
        out: folder for the files, in place of the run's.
        splits: see ``train_and_evaluate``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: no run, no checkpoint, or data that cannot be read.
    """
    # Imports matplotlib and scikit-learn, which prediction does without.
    from mvo_jax.evaluation.pages.report import summarise

    # Inference gains little from many devices; of several processes each takes a share.
    run = load_run(
        workdir, checkpoint=checkpoint, data_dir=data_dir, num_devices=distributed.count()
    )
    if run.about is not None:
        raise UserError(
            f"{workdir} is a bundle, and an evaluation is written into the folder of its run",
            "evaluate the run; or predict the cohort: python -m mvo_jax predict --bundle BUNDLE",
        )
    distributed.check_same(
        {**computation.settings(), **computation.rounding(run.experiment.devices)},
        distributed.SAME_START,
    )
    config, folder = run.config, run.folder
    if batch_size is not None:
        config.eval.batch_size = batch_size
    written = folder.path if out is None else Path(local_path(out, "the folder to write")).resolve()
    distributed.first_then_others(lambda: check_writable(written))
    cases = _Cases(config.data, splits)
    evaluated = cases.load(split)
    chosen_on = evaluated if split == "validation" else cases.load("validation")
    if split != "validation":
        check_patients_disjoint(chosen_on, evaluated)
    trained = folder.data_hashes().get("validation")
    if trained not in (None, content_hash(chosen_on)) and distributed.is_first():
        log.warning(
            f"the validation split of {config.data.dir} is not the one that {folder.path} was "
            "trained with: its thresholds are chosen on other cases"
        )
    if distributed.is_first():
        log.info(describe(evaluated))

    validation = run.predict_split(chosen_on)
    chosen = choose_thresholds(config, validation)
    predictions = run.predict_split(evaluated)
    history, sectors = folder.history(), infarct_sectors(evaluated)
    known = {} if splits is not None else attributes(config.data, evaluated)
    if config.data.name == "cohort":  # of a simulated one the simulator knows better
        known = {**known, **sectors.attributes()}
    summary = summarise(
        predictions,
        chosen,
        features=evaluated.features or None,
        training_map=run.training_map,
        sectors=sectors,
        temperature=fit_temperature(validation),
        attributes=known,
        training_history=history,
    )
    summary["checkpoint"] = {"which": checkpoint, "step": run.step}
    if not distributed.is_first():
        return summary  # all processes have the same; one writes it

    for one in (chosen_on, evaluated):
        cases.note(folder, one, written)
    _write_evaluation(
        written, split, run, chosen, validation, predictions, evaluated, summary, history
    )
    return summary


def _write_evaluation(
    written: Path,
    split: str,
    run: TrainedRun,
    chosen: Threshold,
    validation: Predictions,
    predictions: Predictions,
    evaluated: AnySplit,
    summary: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write the files of an evaluation."""
    from mvo_jax.evaluation.pages.report import write_report, write_summary

    config, checkpoint = run.config, run.checkpoint
    which = "" if checkpoint == "best" else f"_{checkpoint}"
    suffix = report_suffix(split, checkpoint)
    write_predictions(written / f"predictions_validation{which}.csv", validation, chosen.value)
    write_predictions(written / f"predictions_{split}{which}.csv", predictions, chosen.value)
    if summary["patient_level"] is not None:
        write_patient_predictions(
            written / f"predictions_patients_{split}{which}.csv",
            by_patient(predictions, summary["patient_rule"]["rule"]),
            predictions,
            chosen.patient_value,
        )
    write_summary(written / f"metrics{suffix}.json", summary)
    checklist = fill(Artefacts(run.folder.path, suffix, written))
    write_claim(written / f"claim{suffix}.md", checklist)
    write_report(
        written / f"report{suffix}.html",
        summary=summary,
        predictions=predictions,
        cases=gallery(evaluated, predictions, chosen.value),
        history=history,
        config_text=str(config),
        provenance={"checkpoint": f"{checkpoint}, step {run.step}", **provenance()},
        dataset=dataset_line(config.data),
        simulated=config.data.name == "phantom",
        claim=checklist,
    )


def report_suffix(split: str, checkpoint: str) -> str:
    """What stands between ``report`` and ``.html``: nothing of the split 'test' and the best."""
    parts = ("" if split == "test" else split, "" if checkpoint == "best" else checkpoint)
    return "".join(f"_{part}" for part in parts if part)


@dataclasses.dataclass(frozen=True)
class _Cases:
    """The splits of a run: those that ``config.data`` names, or those that the caller gave."""

    data: Any
    given: Mapping[str, AnySplit] | None

    def load(self, name: str) -> AnySplit:
        """A split; one process makes a simulated cohort before the others read it."""
        if self.given is None:
            return distributed.first_then_others(lambda: load_split(self.data, name))
        if name not in self.given:
            raise UserError(f"there is no split {name!r}", f"given were {', '.join(self.given)}")
        return self.given[name]

    def for_training(self, folder: RunFolder) -> tuple[AnySplit, AnySplit, dict[str, str]]:
        """Training split, validation split and their content hashes, which the folder notes."""
        training = self.load("train")
        # Images predicted later must be made as these were, wherever the cohort is then.
        if self.given is None and distributed.is_first():
            write_json(folder.path / GEOMETRY, dataclasses.asdict(geometry_of(self.data)))
        if distributed.is_first() and not (folder.path / TRAINING_MAP).exists():
            share = mean_mvo(training)  # what a predicted map has to beat
            write_json(folder.path / TRAINING_MAP, {"share_with_mvo": share.round(6).tolist()})
        validation = self.load("validation")
        check_patients_disjoint(training, validation)
        if distributed.is_first():
            for split in (training, validation):
                self.note(folder, split)
        data = {split.name: content_hash(split) for split in (training, validation)}
        distributed.check_same({"content of data": data}, "give all processes the same data")
        folder.note({"data": data})
        if distributed.is_first():
            for split in (training, validation):
                log.info(describe(split))
        return training, validation, data

    def note(self, folder: RunFolder, split: AnySplit, written: Path | None = None) -> None:
        """Add a split to what the folder says of its cohort."""
        known = self.given is None
        path = (written or folder.path) / _COHORT_CARD
        before = path if path.exists() else folder.path / _COHORT_CARD
        card = read_json(before) if before.exists() else {}
        about = cohort_card(self.data) if known else {"data": "cases given by the caller"}
        splits = card.get("splits", {})
        splits[split.name] = split_card(self.data, split, known=known)
        write_json(path, {**about, "splits": splits})


def _initial(
    path: str, folder: RunFolder, experiment: Experiment
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Variables that ``config.init_from`` names, and what the run folder keeps about them."""
    if not path or folder.has_checkpoint():
        return None, {}
    folder_or_file = Path(local_path(path, "config.init_from"))
    if is_bundle(folder_or_file):
        weights = whole_file(folder_or_file, read_about(folder_or_file), WEIGHTS)
        file = read_variables(weights)
    else:
        file = read_start(path)
    shapes = experiment.state_shapes().eval_variables()
    variables, parts, rest = initial_variables(file, shapes, source=path)
    if distributed.is_first():
        from_seed = f"; from the seed: {', '.join(rest)}" if rest else ""
        log.info(f"starting from {path}: {', '.join(parts)}{from_seed}")
    return variables, {"init_from": {"sha256": file.sha256, "parts": parts, **file.provenance}}
