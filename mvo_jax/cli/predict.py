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

from mvo_jax.cli.flags import define_source_flags, parse, source_options
from mvo_jax.data.clips import batched, open_source, read_clips
from mvo_jax.data.importers.cine import printable
from mvo_jax.data.slices import Clip, Rejected
from mvo_jax.data.splits import load_split
from mvo_jax.devices import parallel
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.pages.case_results import (
    RESEARCH_ONLY,
    Pictured,
    case_row,
    draw_pictures,
    patient_rows,
    write_page,
    write_tables,
)
from mvo_jax.evaluation.predict import ClipPredictor
from mvo_jax.evaluation.thresholds import Threshold, choose_thresholds
from mvo_jax.files import new_folder
from mvo_jax.run import TrainedRun, load_run
from mvo_jax.runs.folder import RunFolder, provenance, read_json


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


def _evaluated(folder: RunFolder, checkpoint: dict[str, Any]) -> Threshold | None:
    """Thresholds that eval.py chose for this very checkpoint, from the files it left."""
    for path in sorted(folder.path.glob("metrics*.json")):
        content = read_json(path)
        if content.get("checkpoint") == checkpoint and content.get("patient_rule"):
            threshold, patients = content["threshold"], content["patient_rule"]
            return Threshold(
                value=threshold["value"],
                origin=f"{threshold['origin']}, as in {path.name}",
                patient_rule=patients["rule"],
                patient_value=patients["threshold"],
                patient_origin=f"{patients['threshold_origin']}, as in {path.name}",
            )
    return None


def _decision(values: flags.FlagValues, run: TrainedRun) -> Threshold:
    """The thresholds: as told, as eval.py chose them, or chosen on validation now."""
    if values.threshold is not None:
        told = "given on the command line"
        rule = run.config.eval.patient_aggregation
        return Threshold(values.threshold, told, rule, values.threshold, told)
    found = _evaluated(run.folder, {"which": run.checkpoint, "step": run.step})
    if found is not None:
        return found
    print(
        "this checkpoint was never evaluated: choosing the threshold on the validation split",
        file=sys.stderr,
    )
    try:
        validation = load_split(run.config.data, "validation")
    except UserError as error:
        raise UserError(
            f"no threshold is known: the run was never evaluated, and {error.cause}",
            f"run eval.py --workdir {run.folder.path} where its data are, name them with "
            "--data_dir, or give --threshold",
        ) from error
    return choose_thresholds(run.config, run.predict_split(validation, with_mask=False))


def _good(read: Iterator[Clip | Rejected], failed: list[Rejected]) -> Iterator[Clip]:
    """The clips of what was read; what could not be read goes to ``failed``."""
    for one in read:
        if isinstance(one, Rejected):
            failed.append(one)
        else:
            yield one


def _predict(
    clips: Iterator[Clip],
    run: TrainedRun,
    decision: Threshold,
    *,
    overlay: bool | None,
    pictured: Pictured,
) -> list[dict[str, Any]]:
    """Rows of all clips; the clips themselves are dropped unless ``pictured`` keeps them."""
    first = list(itertools.islice(clips, run.config.eval.batch_size))
    if not first:
        return []
    # A single slice need not pay for a whole batch.
    predict = ClipPredictor(run.experiment, batch_size=len(first), with_mask=overlay is not False)
    variables = parallel.replicate(run.variables, run.experiment.devices)
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
    run = load_run(values.workdir, checkpoint=values.checkpoint, data_dir=values.data_dir)
    config, folder, target = run.config, run.folder, run.geometry
    options = source_options(values)
    failed: list[Rejected] = []
    with new_folder(values.out) as work:
        scratch = work / "unpacked"
        source = open_source(
            Path(values.source), form=values.format, options=options, scratch=scratch
        )
        decision = _decision(values, run)
        pictured = Pictured(values.pictures)
        cases = _predict(
            _good(read_clips(source, target), failed),
            run,
            decision,
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
            "checkpoint": f"{run.checkpoint}, step {run.step}",
            "trained on": "simulated images only" if simulated else f"cohort {config.data.dir}",
            "input": f"{printable(source.path)} ({source.kind})",
            "clips": f"{target.frames} frames of {target.image_size}x{target.image_size} pixels, "
            f"{target.spacing_mm:.3g} mm",
            **{
                key: value
                for key, value in provenance().items()
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
            threshold=decision,
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
