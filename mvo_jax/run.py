"""A run from its config to its results: what train.py, eval.py, compare, tools and notebooks call.

from mvo_jax import load_run, train_and_evaluate

result = train_and_evaluate(config, "runs/mine")
prediction = load_run("runs/mine").predict(video)  # uint8 [B, T, H, W]
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from mvo_jax.devices import distributed
from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import fit_temperature
from mvo_jax.evaluation.claim import Artefacts, fill, write_claim
from mvo_jax.evaluation.figures.pictures import gallery
from mvo_jax.evaluation.localisation import mean_mvo
from mvo_jax.evaluation.predict import Predictor, validation_metrics
from mvo_jax.evaluation.predictions import (
    write_patient_predictions,
    write_predictions,
)
from mvo_jax.evaluation.sectors import infarct_sectors
from mvo_jax.evaluation.statistics import by_patient
from mvo_jax.evaluation.thresholds import choose_thresholds
from mvo_jax.interop.convert import initial_variables
from mvo_jax.interop.weight_files import read_variables
from mvo_jax.runs.folder import RunFolder, provenance, read_json, write_json
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.lock import RunLock
from mvo_jax.runs.resume import Identity
from mvo_jax.runs.signals import Interruption
from mvo_jax.runs.watchdog import Watchdog
from mvo_jax.trained_run import GEOMETRY, TRAINING_MAP, load_run
from mvo_jax.training.loop import train
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
    clock: Clock | None = None,
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
        clock: where the time goes; started by the caller.

    Returns:
        {'step', 'loss', 'best_step', 'best_auc', 'seconds', 'evaluation'}: see ``training.loop``;
        'evaluation' is what ``evaluate`` returns, or None.

    Raises:
        UserError: see ``training.loop.train``; also a mistake in the config or the data, and a run
            folder that another process trains in.
        RunInterrupted: a signal asked the run to stop, and it has saved.
    """
    folder, clock = RunFolder(workdir), clock or Clock()
    with contextlib.ExitStack() as held:
        interruption = held.enter_context(Interruption())

        # 1. What can be found wrong before a folder is left behind.
        experiment = set_up(config)
        if splits is None:
            for name in ("train", "validation"):
                split_bytes(config.data, name)
        distributed.check_same(
            {"config": config.to_dict(), "versions": distributed.versions()},
            "start all processes with one command and one installation",
        )
        initial, about = _initial(config, folder, experiment)

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
        training, validation, data = _load_for_training(config, folder, splits)

        # 4. Training, with the best checkpoint chosen on the validation split.
        predict = Predictor(
            experiment, validation, batch_size=config.eval.batch_size, with_mask=True
        )
        result = train(
            config,
            experiment,
            folder,
            training,
            validate=lambda variables: validation_metrics(predict(variables)),
            identity=Identity(config.to_dict(), data, allow_config_change, allow_data_change),
            initial=initial,
            profile_steps=profile_steps,
            supervision=Supervision(clock, interruption, lock),
        )
    if evaluate_on is None:
        return {**result, "evaluation": None}
    return {**result, "evaluation": evaluate(folder.path, split=evaluate_on, splits=splits)}


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data_dir: str | None = None,
    splits: Mapping[str, AnySplit] | None = None,
) -> dict[str, Any]:
    """Evaluate one checkpoint of a run on one split and write everything beside it.

    The thresholds are chosen on the validation split; the evaluated split is scored once. Several
    processes share the cases, and the first one writes
    ``predictions_SPLIT.csv``, ``predictions_validation.csv`` (what the thresholds were chosen on),
    ``metrics.json`` and ``report.html`` for the test split, and ``metrics_SPLIT.json`` and
    ``report_SPLIT.html`` for others, each with ``claim.md``, the CLAIM checklist; where a patient
    has several slices ``predictions_patients_SPLIT.csv`` too.

    Args:
        workdir: folder of a trained run.
        split: split to evaluate.
        checkpoint: 'best' (validation AUC) or 'latest'.
        data_dir: replaces ``config.data.dir``.
        splits: see ``train_and_evaluate``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: no run, no checkpoint, or data that cannot be read.
    """
    # Imports matplotlib and scikit-learn, which prediction does without.
    from mvo_jax.evaluation.pages.report import summarise, write_report, write_summary

    # Inference gains little from many devices; of several processes each takes a share.
    run = load_run(
        workdir, checkpoint=checkpoint, data_dir=data_dir, num_devices=distributed.count()
    )
    if run.about is not None:
        raise UserError(
            f"{workdir} is a bundle, and an evaluation is written into the folder of its run",
            "evaluate the run; or predict the cohort: python -m mvo_jax predict --bundle BUNDLE",
        )
    config, folder = run.config, run.folder
    evaluated = _load(config, split, splits)
    chosen_on = evaluated if split == "validation" else _load(config, "validation", splits)
    if split != "validation":
        check_patients_disjoint(chosen_on, evaluated)
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

    suffix = "" if split == "test" else f"_{split}"
    write_predictions(folder.path / "predictions_validation.csv", validation, chosen.value)
    write_predictions(folder.path / f"predictions_{split}.csv", predictions, chosen.value)
    if summary["patient_level"] is not None:
        write_patient_predictions(
            folder.path / f"predictions_patients_{split}.csv",
            by_patient(predictions, summary["patient_rule"]["rule"]),
            predictions,
            chosen.patient_value,
        )
    write_summary(folder.path / f"metrics{suffix}.json", summary)
    for one in (chosen_on, evaluated):
        _note_split(folder, config, one, known=splits is None)
    checklist = fill(Artefacts(folder.path, suffix))
    write_claim(folder.path / f"claim{suffix}.md", checklist)
    write_report(
        folder.path / f"report{suffix}.html",
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
    return summary


def _load_for_training(
    config: Any, folder: RunFolder, splits: Mapping[str, AnySplit] | None
) -> tuple[AnySplit, AnySplit, dict[str, str]]:
    """Training split, validation split and their content hashes by name, noted in the folder."""
    training = _load(config, "train", splits)
    # Images predicted later must be made as these were, wherever the cohort is then.
    if splits is None and distributed.is_first():
        write_json(folder.path / GEOMETRY, dataclasses.asdict(geometry_of(config.data)))
    if distributed.is_first() and not (folder.path / TRAINING_MAP).exists():
        share = mean_mvo(training)  # what a predicted map has to beat
        write_json(folder.path / TRAINING_MAP, {"share_with_mvo": share.round(6).tolist()})
    validation = _load(config, "validation", splits)
    check_patients_disjoint(training, validation)
    if distributed.is_first():
        for split in (training, validation):
            _note_split(folder, config, split, known=splits is None)
    data = {split.name: content_hash(split) for split in (training, validation)}
    distributed.check_same({"content of data": data}, "give all processes the same data")
    folder.note({"data": data})
    if distributed.is_first():
        for split in (training, validation):
            log.info(describe(split))
    return training, validation, data


def _note_split(folder: RunFolder, config: Any, split: AnySplit, *, known: bool) -> None:
    """Add a split to what the folder says of its cohort; ``known``: the config names its cases."""
    path = folder.path / _COHORT_CARD
    card = read_json(path) if path.exists() else {}
    about = cohort_card(config.data) if known else {"data": "cases given by the caller"}
    splits = card.get("splits", {})
    splits[split.name] = split_card(config.data, split, known=known)
    write_json(path, {**about, "splits": splits})


def _load(config: Any, name: str, splits: Mapping[str, AnySplit] | None) -> AnySplit:
    """A split; one process makes a simulated cohort before the others read it."""
    if splits is None:
        return distributed.first_then_others(lambda: load_split(config.data, name))
    if name not in splits:
        raise UserError(f"there is no split {name!r}", f"given were {', '.join(splits)}")
    return splits[name]


def _initial(
    config: Any, folder: RunFolder, experiment: Experiment
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Variables that ``config.init_from`` names, and what the run folder keeps about them."""
    if not config.init_from or folder.has_checkpoint():
        return None, {}
    path = config.init_from
    file = read_variables(Path(path).expanduser())
    shapes = experiment.state_shapes().eval_variables()
    variables, parts, rest = initial_variables(file, shapes, source=path)
    if distributed.is_first():
        from_seed = f"; from the seed: {', '.join(rest)}" if rest else ""
        log.info(f"starting from {path}: {', '.join(parts)}{from_seed}")
    return variables, {"init_from": {"sha256": file.sha256, "parts": parts, **file.provenance}}
