"""What prediction leaves behind: tables, pictures and a page about cases without a known answer."""

import dataclasses
import heapq
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.processes import available_cores
from mvo_jax.data.slices import Clip, Rejected
from mvo_jax.evaluation.figures.pictures import CaseRecord, animation, case_picture, data_uri, png
from mvo_jax.evaluation.pages.cards import case_card, shared_maximum
from mvo_jax.evaluation.pages.render import render_page
from mvo_jax.evaluation.statistics import patient_probability
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.files import replace_file, write_csv

RESEARCH_ONLY = (
    "Research software. Not a medical device and not for clinical use: do not base the care of a "
    "patient on it."
)
FAILED_COLUMNS = ("case_id", "patient_id", "source", "cause", "remedy")
_ROWS_ON_PAGE = 1000
_EMBEDDED = 12  # cases whose pictures the page itself holds, so that it can be sent alone
_KINDS = {"picture": "png", "animation": "webp"}


class Pictured:
    """Keeps the clips of the highest probabilities, ``limit`` of them at most."""

    def __init__(self, limit: int):
        self._limit, self._heap = limit, []

    def add(self, row: int, probability: float, clip: Clip, coarse_mask: np.ndarray | None) -> None:
        """Offer the clip of a row of the table."""
        if self._limit > 0:
            # Of equal probabilities the earlier row stays.
            item = (probability, -row, clip, coarse_mask)
            push = heapq.heappush if len(self._heap) < self._limit else heapq.heappushpop
            push(self._heap, item)

    def in_order(self) -> list[tuple[int, float, Clip, np.ndarray | None]]:
        """(row, probability, clip, coarse map) by row."""
        kept = [(-row, probability, clip, mask) for probability, row, clip, mask in self._heap]
        return sorted(kept, key=lambda one: one[0])


def case_row(
    clip: Clip,
    probability: float,
    threshold: Threshold,
    *,
    members: np.ndarray | None = None,
) -> dict[str, Any]:
    """Row of the table of cases; pictures are added when they are drawn.

    ``members`` are the probabilities of each member of an ensemble.
    """
    return {
        "case_id": clip.case_id,
        "patient_id": clip.patient_id or clip.case_id,
        "slice_index": clip.slice_index,
        "source": clip.source,
        "split": clip.split,
        "label": None if clip.label == UNLABELLED else clip.label,
        "probability": probability,
        **_spread(members),
        "decision": int(probability >= threshold.value),
        "threshold": threshold.value,
        "centre_from": clip.centre_from,
        "confidence": clip.confidence,
        "crop_to_review": int(clip.needs_review),
        "picture": None,
        "animation": None,
        "map": None,
    }


def _spread(members: Sequence[float] | np.ndarray | None) -> dict[str, Any]:
    """Columns of an ensemble: standard deviation, least and most of its members, and these."""
    if members is None:
        return {}
    values = np.asarray(members, np.float64)
    return {
        "probability_sd": float(values.std(ddof=1)),
        "probability_low": float(values.min()),
        "probability_high": float(values.max()),
        "members": values.tolist(),
    }


def patient_rows(cases: Sequence[Mapping[str, Any]], threshold: Threshold) -> list[dict[str, Any]]:
    """One row a patient, in the order of their first slices."""
    slices: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        slices.setdefault(case["patient_id"], []).append(case)
    rule = threshold.patient_rule or "max"
    rows = []
    for patient, own in slices.items():
        probability = patient_probability([case["probability"] for case in own], rule)
        members = None
        if "members" in own[0]:
            by_member = zip(*(case["members"] for case in own), strict=True)
            members = [patient_probability(values, rule) for values in by_member]
        rows.append(
            {
                "patient_id": patient,
                "slices": len(own),
                "probability": probability,
                **_spread(members),
                "decision": int(probability >= threshold.patient_value),
                "threshold": threshold.patient_value,
            }
        )
    return rows


def draw_pictures(
    folder: Path, pictured: Pictured, cases: Sequence[dict[str, Any]], threshold: float
) -> list[dict[str, Any]]:
    """Draw picture and animation of the kept clips into ``pictures``; name them in their rows.

    Returns:
        The cards of the page: of a few cases they hold the pictures, of many the files' names.
    """
    kept = pictured.in_order()
    if not kept:
        return []
    records = [
        CaseRecord(
            case_id=clip.case_id,
            video=clip.video[..., 0],
            label=None if clip.label == UNLABELLED else clip.label,
            probability=probability,
            lge_mask=clip.lge_mask,
            coarse_mask=mask,
            role=f"patient {clip.patient_id}, slice {clip.slice_index}",
            source=clip.overview,
        )
        for _, probability, clip, mask in kept
    ]
    maximum, taken = shared_maximum(records), set()
    (folder / "pictures").mkdir()
    cards = []

    def draw(record: CaseRecord) -> tuple[bytes, bytes]:
        row = case_picture(record, map_maximum=maximum)
        return png(row), animation(record.video, record.coarse_mask, map_maximum=maximum)

    # Pillow works on several cores: it leaves Python while it scales and encodes.
    with ThreadPoolExecutor(available_cores()) as pool:
        drawn = pool.map(draw, records)
        for (row, *_), record, content in zip(kept, records, drawn, strict=True):
            name = _file_name(record.case_id, taken)
            addresses = {}
            for key, kind, data in zip(_KINDS, _KINDS.values(), content, strict=True):
                cases[row][key] = addresses[key] = f"pictures/{name}.{kind}"
                (folder / cases[row][key]).write_bytes(data)
                if len(kept) <= _EMBEDDED:
                    addresses[key] = data_uri(data, kind)
            cards.append(case_card(record, threshold, **addresses, maximum=maximum))
    return cards


def _file_name(case_id: str, taken: set[str]) -> str:
    """A name that any file system takes, and that no other case has."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", case_id).strip("_")[:80] or "case"
    name, number = base, 1
    while name.lower() in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name.lower())
    return name


def write_tables(
    folder: Path,
    *,
    about: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    patients: Sequence[Mapping[str, Any]],
    failed: Sequence[Rejected],
) -> None:
    """Write ``predictions.csv``, ``predictions.json`` and, where they say more, two other tables.

    ``predictions_patients.csv`` where a patient has several slices, ``failed.csv`` where a case
    could not be predicted. ``about``, plain JSON types, comes on top of the JSON.
    """
    failed_rows = [dataclasses.asdict(one) for one in failed]
    # Without cases nothing is written at all.
    for name, rows in (("predictions.csv", cases), ("predictions_patients.csv", patients)):
        if rows is cases or len(patients) < len(cases):
            columns = [column for column in rows[0] if column != "members"]  # those are in the JSON
            write_csv(folder / name, columns, rows)
    if failed:
        write_csv(folder / "failed.csv", FAILED_COLUMNS, failed_rows)
    content = {
        "note": RESEARCH_ONLY,
        **about,
        "cases": list(cases),
        "patients": list(patients),
        "failed": failed_rows,
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    replace_file(folder / "predictions.json", text + "\n")


def write_page(
    path: Path,
    *,
    cases: Sequence[Mapping[str, Any]],
    patients: Sequence[Mapping[str, Any]],
    **values: Any,
) -> None:
    """Write the summary: one HTML file that needs no network; it names pictures beside it.

    Its other ``values`` are threshold, simulated (trained on such images), lead (a line on run and
    input), failed, cards and provenance.
    """
    text = render_page(
        "prediction.html.j2",
        research_only=RESEARCH_ONLY,
        cases=cases,
        patients=patients,
        several=len(patients) < len(cases),
        limit=_ROWS_ON_PAGE,
        **values,
    )
    replace_file(path, text)
