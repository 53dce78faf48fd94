"""A trained model on new images: probabilities, tables, pictures and a page in a folder.

The model is a run (``trained_run.TrainedRun``, computed with JAX), several (``ensemble.Ensemble``),
or a bundle (``bundles.bundle.Bundle``, computed with onnxruntime): nothing here imports JAX.
"""

import dataclasses
import logging
import math
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from mvo_jax.data.clips import batched, open_source, read_clips
from mvo_jax.data.importers.cine import Options, printable
from mvo_jax.data.map_files import MapWriter
from mvo_jax.data.slices import Clip, Rejected, Target
from mvo_jax.errors import UserError
from mvo_jax.evaluation.pages.case_results import (
    Pictured,
    case_row,
    draw_pictures,
    patient_rows,
    write_page,
    write_tables,
)
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.files import new_folder

log = logging.getLogger(__name__)


class Model(Protocol):
    """What predicts: see ``TrainedRun`` and ``Bundle`` for each of these."""

    @property
    def geometry(self) -> Target: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def simulated(self) -> bool: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    def facts(self) -> dict[str, Any]: ...  # noqa: D102
    def decision(self, threshold: float | None = None) -> Threshold: ...  # noqa: D102
    def predictor(  # noqa: D102
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What was predicted."""

    cases: list[dict[str, Any]]  # rows of ``predictions.csv``, one a slice
    patients: list[dict[str, Any]]
    failed: list[Rejected]  # what could not be read or prepared
    probability: str  # whether and how probabilities were scaled


def predict_images(
    model: Model,
    source: Path,
    out: Path,
    *,
    form: str = "auto",
    options: Options | None = None,
    threshold: float | None = None,
    overlay: bool | None = None,
    pictures: int = 100,
    nifti: bool = False,
) -> Predicted:
    """Predict every slice of a source and write the results to a new folder.

    Args:
        model: from ``load_run`` or ``load_bundle``, or an ``Ensemble``.
        source: folder, image file, .zip or cohort.
        out: folder to write; must not exist or be empty.
        form: format of the source; see ``data.importers.formats``.
        threshold: by default that of the bundle, the one that the evaluation of this checkpoint
            chose, or that its validation split gives.
        overlay: predict the coarse map and lay it over the pictures; None where the model can.
        pictures: most cases to draw, those of the highest probability.
        nifti: write the coarse maps as NIfTI on the voxels of the source.

    Raises:
        UserError: nothing could be predicted, or no threshold is known; ``out`` stays as it was.
    """
    target, failed = model.geometry, []
    with new_folder(out) as work:
        scratch = work / "unpacked"
        opened = open_source(source, form=form, options=options or Options(), scratch=scratch)
        if nifti and opened.is_cohort:
            cause = f"--nifti writes on the voxels of the source; the cohort {printable(source)}"
            remedy = "predict the images it was prepared from, or leave --nifti out"
            raise UserError(f"{cause} holds crops alone", remedy)
        maps = MapWriter(work / "maps") if nifti else None
        decision, pictured = model.decision(threshold), Pictured(pictures)
        clips = _good(read_clips(opened, target), failed)
        cases = _predict(clips, model, decision, overlay=overlay, pictured=pictured, maps=maps)
        if maps is not None and maps.without_place:
            told = f"{maps.without_place} slices have no place in space in {printable(source)}"
            log.warning(f"{told} and no map as NIfTI")
        shutil.rmtree(scratch, ignore_errors=True)
        if not cases:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            cause = f"nothing could be predicted: {failed[0].cause}{more}"
            raise UserError(cause, failed[0].remedy)
        predicted = {"cases": cases, "patients": patient_rows(cases, decision), "failed": failed}
        cards = draw_pictures(work, pictured, cases, decision.value)
        facts = {
            "probability": "as the network gives it, not scaled",
            **model.facts(),
            "input": f"{printable(opened.path)} ({opened.kind})",
            "clips": f"{target.frames} frames of {target.image_size}x{target.image_size} pixels, "
            f"{target.spacing_mm:.3g} mm",
            "python": platform.python_version(),
        }
        about = {**facts, "threshold": dataclasses.asdict(decision)}
        write_tables(work, about=about, **predicted)
        write_page(
            work / "summary.html",
            threshold=decision,
            simulated=model.simulated,
            lead=f"{len(cases)} slices of {len(predicted['patients'])} patients from "
            f"{facts['input']}, by {model.name}, checkpoint {facts['checkpoint']}.",
            cards=cards,
            provenance=facts,
            **predicted,
        )
    return Predicted(**predicted, probability=facts["probability"])


def _good(read: Iterator[Clip | Rejected], failed: list[Rejected]) -> Iterator[Clip]:
    """The clips of what was read; what could not be read goes to ``failed``."""
    for one in read:
        if isinstance(one, Rejected):
            failed.append(one)
        else:
            yield one


def _predict(
    clips: Iterator[Clip],
    model: Model,
    decision: Threshold,
    *,
    overlay: bool | None,
    pictured: Pictured,
    maps: MapWriter | None,
) -> list[dict[str, Any]]:
    """Rows of all clips; the clips themselves are dropped unless ``pictured`` keeps them."""
    with_mask = overlay is not False or maps is not None
    predict, rows = None, []
    with tqdm(unit="slice", desc="Predicting", disable=not sys.stderr.isatty()) as bar:
        for batch in batched(clips, model.batch_size):
            if predict is None:  # a single slice need not pay for a whole batch
                predict = model.predictor(len(batch), with_mask=with_mask)
            result = predict(np.stack([clip.video for clip in batch]))
            masks = result.get("coarse_mask")
            members = result.get("members", [None] * len(batch))
            if masks is None and (overlay or maps is not None):
                asked = "--overlay" if overlay else "--nifti"
                cause = f"{asked} was asked for, but this model has no mask branch"
                raise UserError(cause, "leave it out, or name a model of the variant full or cgmr")
            for i, clip in enumerate(batch):
                probability = float(result["probability"][i])
                if not math.isfinite(probability):
                    remedy = "its weights hold NaN; name another --checkpoint, or train again"
                    raise UserError(f"the model gives {probability} for {clip.case_id}", remedy)
                shown = None if masks is None or overlay is False else masks[i]
                pictured.add(len(rows), probability, clip, shown)
                rows.append(case_row(clip, probability, decision, members=members[i]))
                if maps is not None and masks is not None:
                    name = maps.add(clip, np.asarray(masks[i]))
                    rows[-1]["map"] = name and f"maps/{name}"
            bar.update(len(batch))
    if maps is not None:
        maps.close()
    return rows
