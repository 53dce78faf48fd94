"""Cards of cases, shown by `predict` and `eval`: the beating clip, a row of pictures, a verdict."""

from collections.abc import Sequence
from typing import Any

from mvo_jax.evaluation.figures import pictures
from mvo_jax.evaluation.figures.pictures import CaseRecord

_BEAT = 192  # width of the beating clip, pixels
_VERDICTS = {
    (1, True): "correct: MVO found",
    (0, False): "correct: no MVO",
    (1, False): "missed MVO",
    (0, True): "false alarm",
    (None, True): "MVO suspected",
    (None, False): "no MVO suspected",
}
_TRUTHS = {1: "truth: MVO", 0: "truth: no MVO", None: "truth unknown"}


def shared_maximum(cases: Sequence[CaseRecord]) -> float:
    """The value drawn in the brightest colour on all maps of a page."""
    maps = (record.coarse_mask for record in cases if record.coarse_mask is not None)
    return pictures.map_maximum(maps)


def case_card(
    record: CaseRecord, threshold: float, *, picture: str, animation: str, maximum: float
) -> dict[str, Any]:
    """What the macro ``case_card`` shows of a case, called MVO where probability >= threshold.

    ``picture`` (a row) and ``animation`` are addresses, ``maximum`` is of ``shared_maximum``.
    """
    called = bool(record.probability >= threshold)
    return {
        "case_id": record.case_id,
        "role": record.role,
        "probability": float(record.probability),
        "verdict": _VERDICTS[record.label, called],
        "right": None if record.label is None else bool(record.label) == called,
        "truth": _TRUTHS[record.label],
        "picture": picture,
        "animation": animation,
        "map_maximum": maximum if record.coarse_mask is not None else None,
        "lge": record.lge_mask is not None,
    }


def embedded_cards(cases: Sequence[CaseRecord], threshold: float) -> list[dict[str, Any]]:
    """Cards of a page that is to need no other file."""
    maximum, cards = shared_maximum(cases), []
    for record in cases:
        row = pictures.case_picture(record, map_maximum=maximum)
        beat = pictures.animation(record.video, record.coarse_mask, map_maximum=maximum, side=_BEAT)
        addresses = {
            "picture": pictures.data_uri(pictures.webp(row), "webp"),
            "animation": pictures.data_uri(beat, "webp"),
        }
        cards.append(case_card(record, threshold, **addresses, maximum=maximum))
    return cards
