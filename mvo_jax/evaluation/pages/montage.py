"""The page that ``inspect`` writes: what is there, what looks wrong, and a look at the clips."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mvo_jax.data.checks import MOST_DECISIONS
from mvo_jax.data.slices import Clip
from mvo_jax.evaluation.figures import pictures
from mvo_jax.evaluation.pages.render import render_page
from mvo_jax.files import replace_file

_TILE = 192  # pixels
_LABELS = {1: "MVO", 0: "no MVO", -1: "unlabelled"}


def write_montage(
    path: str | os.PathLike,
    *,
    table: Sequence[Mapping[str, Any]],
    tiles: Sequence[tuple[Clip, Sequence[str]]],
    decisions: Sequence[Mapping[str, str]] = (),
    rejected: Sequence[Mapping[str, Any]] = (),
    **values: Any,
) -> None:
    """Writes one HTML file that needs nothing else; UserError if it cannot.

    Args:
        table: one row a split: split, cases, patients, positive, negative, unknown,
            positive_patients.
        tiles: clips to show, each with what is wrong with it.
        decisions: how the slices were read.
        rejected: case_id, source, cause and remedy of what is not used.
        values: title (what was inspected), facts (what holds for all splits, e.g. the number of
            frames) and findings (what looks wrong, faults first).
    """
    shown = []
    for clip, wrong in tiles:
        video, spacing = clip.video[..., 0], clip.spacing_mm
        masked = pictures.webp(pictures.masked_frame(video, clip.lge_mask, side=_TILE))
        shown.append(
            {
                "case_id": clip.case_id,
                "split": clip.split,
                "label": _LABELS[clip.label],
                "spacing": "unknown spacing" if spacing is None else f"{spacing:.3g} mm",
                "source_frames": clip.source_frames,
                "beat": pictures.data_uri(pictures.animation(video, side=_TILE), "webp"),
                "masked": pictures.data_uri(masked, "webp"),
                "has_mask": clip.lge_mask is not None,
                "needs_review": clip.needs_review,
                "wrong": list(wrong),
            }
        )
    text = render_page(
        "inspection.html.j2",
        table=table,
        tiles=shown,
        decisions=decisions,
        cases=sum(row["cases"] for row in table),
        rejected=rejected[:MOST_DECISIONS],
        all_rejected=len(rejected),
        lge_colours=pictures.OVERLAY_COLOURS,
        **values,
    )
    replace_file(path, text)
