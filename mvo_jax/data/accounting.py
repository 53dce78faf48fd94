"""What became of the images of a source: the line that says so, and notes of how they were read."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from mvo_jax.data.slices import Rejected

log = logging.getLogger(__name__)
_MOST_NOTES = 20


class Reading:
    """Counts the images of a source and keeps the first notes, to be logged at its end."""

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._notes: list[str] = []
        self._more = 0

    def add(self, case_id: str, note: str, images: Mapping[str, int]) -> None:
        """A slice that is used; see ``Slice.note`` and ``Slice.images``."""
        self._images.update(images)
        if note and len(self._notes) < _MOST_NOTES:
            self._notes.append(f"{case_id}: {note}")
        elif note:
            self._more += 1

    def add_rejected(self, rejected: Iterable[Rejected]) -> None:
        """Cases that are not used."""
        self._images["of rejected cases"] += sum(one.images for one in rejected)

    def __str__(self) -> str:
        """As "212 images: 180 used, 30 copies, 2 colour"; empty of formats without such a count."""
        total = self._images.total()
        others = sorted(self._images.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{n} {what}" for what, n in others if n and what != "used"]
        listed = ", ".join([f"{self._images['used']} used", *parts])
        return f"{total} images: {listed}" if total else ""

    def log(self) -> None:
        """Say it."""
        for note in self._notes:
            log.info(note)
        if self._more:
            log.info(f"... and {self._more} more notes")
        if str(self):
            log.info(str(self))
