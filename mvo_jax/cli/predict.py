"""``python -m mvo_jax predict --workdir RUN INPUT --out OUT``: a trained run on new images."""

import dataclasses
import itertools
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from mvo_jax.cli.eval import choose_thresholds
from mvo_jax.cli.flags import config_from_json, define_source_flags, parse, source_options
from mvo_jax.cli.train import GEOMETRY, SOURCE
from mvo_jax.data.clips import Clip, batched, geometry_of, open_source, read_clips
from mvo_jax.data.cohort.geometry import Rejected, Target
from mvo_jax.data.importers.cine import printable
from mvo_jax.data.splits import load_split
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.case_results import (
    RESEARCH_ONLY,
    Decision,
    Pictured,
    case_row,
    draw_pictures,
    patient_rows,
    write_page,
    write_tables,
)
from mvo_jax.evaluation.predict import ClipPredictor, Predictor
from mvo_jax.files import new_folder
from mvo_jax.training import parallel
from mvo_jax.training.checkpoint import Checkpoints
from mvo_jax.training.run_folder import RunFolder, provenance, read_json
from mvo_jax.training.setup import Experiment, set_up


def _define(values: flags.FlagValues) -> None:
    define_source_flags(values)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values, required=True)
    flags.DEFINE_string("out", None, "Folder to write.", flag_values=values, required=True)
    flags.DEFINE_enum(
        "checkpoint", "best", ["best", "latest"], "Which checkpoint.", flag_values=values
    )
    flags.DEFINE_float(
        "threshold",
        None,
        "Decision threshold, in place of the one chosen on the validation split.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where the run's own data lie now; read only if the run was never evaluated.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "overlay", None, "Predict the coarse map and lay it over the pictures.", flag_values=values
    )
    flags.DEFINE_integer(
        "pictures",
        100,
        "Most cases to draw, those of the highest probability.",
        lower_bound=0,
        flag_values=values,
    )


def _geometry(folder: RunFolder, config: Any) -> Target:
    """Geometry of the clips that a run was trained on."""
    path = folder.path / GEOMETRY
    if not path.exists():
        return geometry_of(config.data)
    content = read_json(path)
    try:
        window = content.pop("window")
        return Target(**content, window=None if window is None else (window[0], window[1]))
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}",
            "delete it; the same training command writes it again",
        ) from error


def _evaluated(folder: RunFolder, checkpoint: dict[str, Any]) -> Decision | None:
    """Thresholds that eval.py chose for this very checkpoint, from the files it left."""
    for path in sorted(folder.path.glob("metrics*.json")):
        content = read_json(path)
        if content.get("checkpoint") == checkpoint and content.get("patient_rule"):
            threshold, patients = content["threshold"], content["patient_rule"]
            return Decision(
                value=threshold["value"],
                origin=f"{threshold['origin']}, as in {path.name}",
                patient_rule=patients["rule"],
                patient_value=patients["threshold"],
                patient_origin=f"{patients['threshold_origin']}, as in {path.name}",
            )
    return None


def _decision(
    values: flags.FlagValues,
    folder: RunFolder,
    config: Any,
    experiment: Experiment,
    variables: Any,
    step: int,
) -> Decision:
    """The thresholds: as told, as eval.py chose them, or chosen on validation now."""
    if values.threshold is not None:
        told = "given on the command line"
        rule = config.eval.patient_aggregation
        return Decision(values.threshold, told, rule, values.threshold, told)
    found = _evaluated(folder, {"which": values.checkpoint, "step": step})
    if found is not None:
        return found
    print(
        "this checkpoint was never evaluated: choosing the threshold on the validation split",
        file=sys.stderr,
    )
    try:
        validation = load_split(config.data, "validation")
    except UserError as error:
        raise UserError(
            f"no threshold is known: the run was never evaluated, and {error.cause}",
            f"run eval.py --workdir {folder.path} where its data are, name them with --data_dir, "
            "or give --threshold",
        ) from error
    predict = Predictor(experiment, validation, batch_size=config.eval.batch_size, with_mask=False)
    chosen = choose_thresholds(config, predict(variables))
    return Decision(
        chosen.value,
        chosen.origin,
        chosen.patients.rule,
        chosen.patients.threshold,
        chosen.patients.threshold_origin,
    )


def _good(read: Iterator[Clip | Rejected], failed: list[Rejected]) -> Iterator[Clip]:
    """The clips of what was read; what could not be read goes to ``failed``."""
    for one in read:
        if isinstance(one, Rejected):
            failed.append(one)
        else:
            yield one


def _predict(
    clips: Iterator[Clip],
    experiment: Experiment,
    variables: Any,
    decision: Decision,
    *,
    batch_size: int,
    overlay: bool | None,
    pictured: Pictured,
) -> list[dict[str, Any]]:
    """Rows of all clips; the clips themselves are dropped unless ``pictured`` keeps them."""
    first = list(itertools.islice(clips, batch_size))
    if not first:
        return []
    # A single slice need not pay for a whole batch.
    predict = ClipPredictor(experiment, batch_size=len(first), with_mask=overlay is not False)
    variables = parallel.replicate(variables, experiment.devices)
    rows: list[dict[str, Any]] = []
    with tqdm(unit="slice", desc="Predicting", disable=not sys.stderr.isatty()) as bar:
        for batch in itertools.chain([first], batched(clips, predict.batch_size)):
            result = predict(variables, np.stack([clip.video for clip in batch]))
            masks = result.get("coarse_mask")
            if overlay and masks is None:
                raise UserError(
                    "--overlay was asked for, but the model of this run has no mask branch",
                    "leave it out, or name a run of the variant full or cgmr",
                )
            for i, clip in enumerate(batch):
                probability = float(result["probability"][i])
                if not math.isfinite(probability):
                    raise UserError(
                        f"the model gives {probability} for {clip.case_id}",
                        "the checkpoint holds NaN; name another with --checkpoint, or train again",
                    )
                pictured.add(len(rows), probability, clip, None if masks is None else masks[i])
                rows.append(case_row(clip, probability, decision))
            bar.update(len(batch))
    return rows


def main(arguments: list[str]) -> list[dict[str, Any]]:
    """Predict every slice of the input and write the results; returns the rows of the table."""
    values = parse(arguments, _define, positional=("source",))
    folder = RunFolder(values.workdir)
    config = config_from_json(folder.config())
    if values.data_dir is not None:
        config.data.dir = values.data_dir
    experiment = set_up(config, devices=parallel.devices(1))
    checkpoints = Checkpoints(folder.path, create=False)
    variables, step = checkpoints.restore_variables(experiment.state_shapes(), values.checkpoint)
    target = _geometry(folder, config)
    options = source_options(values)
    failed: list[Rejected] = []
    with new_folder(values.out) as work:
        scratch = work / "unpacked"
        source = open_source(
            Path(values.source), form=values.format, options=options, scratch=scratch
        )
        decision = _decision(values, folder, config, experiment, variables, step)
        pictured = Pictured(values.pictures)
        cases = _predict(
            _good(read_clips(source, target), failed),
            experiment,
            variables,
            decision,
            batch_size=config.eval.batch_size,
            overlay=values.overlay,
            pictured=pictured,
        )
        shutil.rmtree(scratch, ignore_errors=True)
        if not cases:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise UserError(
                f"nothing could be predicted: {failed[0].cause}{more}", failed[0].remedy
            )
        patients = patient_rows(cases, decision)
        records = draw_pictures(work, pictured, cases)
        simulated = config.data.name == "phantom"
        facts = {
            "run": str(folder.path),
            "checkpoint": f"{values.checkpoint}, step {step}",
            "trained on": "simulated images only" if simulated else f"cohort {config.data.dir}",
            "input": f"{printable(source.path)} ({source.kind})",
            "clips": f"{target.frames} frames of {target.image_size}x{target.image_size} pixels, "
            f"{target.spacing_mm:.3g} mm",
            **{
                key: value
                for key, value in provenance(SOURCE).items()
                if key in ("git_revision", "python", "backend", "versions")
            },
        }
        write_tables(
            work,
            about={**facts, "threshold": dataclasses.asdict(decision)},
            cases=cases,
            patients=patients,
            failed=failed,
        )
        write_page(
            work / "summary.html",
            decision=decision,
            simulated=simulated,
            lead=f"{len(cases)} slices of {len(patients)} patients from {facts['input']}, by the "
            f"run {folder.path.name}, checkpoint {facts['checkpoint']}.",
            cases=cases,
            patients=patients,
            failed=failed,
            records=records,
            provenance=facts,
        )
    suspected = sum(row["decision"] for row in patients)
    print(f"MVO suspected in {suspected} of {len(patients)} patients ({len(cases)} slices)")
    print(f"results: {Path(values.out) / 'summary.html'}")
    print(RESEARCH_ONLY)
    if failed:
        raise UserError(
            f"{len(failed)} cases could not be predicted, {failed[0].case_id} for one: "
            f"{failed[0].cause}",
            f"{failed[0].remedy}; all are in {Path(values.out) / 'failed.csv'}",
            exit_code=EXIT_FINDINGS,
        )
    return cases
