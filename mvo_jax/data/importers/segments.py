"""Segments with names, as segmentation software writes them, to the values of the project."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.cine import printable
from mvo_jax.data.labels import BACKGROUND, INFARCT, MVO, MYOCARDIUM
from mvo_jax.errors import UserError

# Where drawings meet the first of these counts: MVO before infarct before myocardium.
RANK = np.zeros(4, np.uint8)
RANK[[BACKGROUND, MYOCARDIUM, INFARCT, MVO]] = range(4)

# Whole names, after signs and "LV", "LGE" and the like are taken off; nothing is guessed of others.
_MEANING = {
    MVO: r"mvo|mo|micro ?vascular obstructions?( mvo| mo)?|no ?reflow( zone| area)?",
    INFARCT: r"(myocardial )?(infarct(ion|ed)?|scar)( zone| area| core| tissue| myocardium)?"
    r"|late enhancement|(hyper ?)?enhance(d|ment)( area)?",
    MYOCARDIUM: r"(normal |healthy |remote |viable )?(myocardium|myo|muscle|wall)",
    BACKGROUND: r"background|cavity|blood ?pool|(right ventric(le|ular)|rv)( .*)?",
}
_NO_NAME = re.compile(r"\b(lv|left ventricular|left ventricle(?= \w)|lge|segment(ation)? of)\b")


def join_drawings(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two drawings in one: MVO before infarct before myocardium."""
    return np.where(RANK[other] > RANK[one], other, one)


def meaning_of(name: str) -> int | None:
    """What a segment is by its name; None where the name does not say."""
    plain = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    plain = re.sub(r"  +", " ", _NO_NAME.sub(" ", plain)).strip() or plain
    return next((v for v, words in _MEANING.items() if re.fullmatch(words, plain)), None)


def segment_values(
    path: Path, names: Mapping[int, str], mask_values: Mapping[int, int]
) -> dict[int, int]:
    """What the segments of a file (number -> name) are in the project's values.

    ``mask_values`` is what the user says of the numbers, and counts for more than the names.

    Raises:
        UserError: a segment whose name says nothing, and nobody says what it is.
    """
    found = {n: mask_values.get(n, meaning_of(name)) for n, name in names.items()}
    unknown = [n for n, value in found.items() if value is None]
    if unknown:
        listed = ", ".join(f"{n} {printable(names[n])!r}" for n in unknown[:8])
        raise UserError(
            f"{printable(path)} has segments whose names do not say what they are: {listed}",
            "name them infarct, MVO and myocardium, or give their numbers, for example "
            "--mask_values 1=infarct,2=mvo",
        )
    return {n: value for n, value in found.items() if value is not None}


def join_segments(layers: Sequence[tuple[np.ndarray, int]], shape: Sequence[int]) -> np.ndarray:
    """Segments, each by where it is and its value, in one mask, uint8."""
    out = np.zeros(shape, np.uint8)
    for where, value in layers:
        out = join_drawings(out, np.where(where, np.uint8(value), np.uint8(BACKGROUND)))
    return out
