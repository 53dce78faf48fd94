"""Metrics of the steps since the last training row of the log."""

import math
from collections.abc import Iterable, Mapping

import numpy as np


class MetricsWindow:
    """Collects what each step measured, and how long the steps took, until a row is logged.

    Args:
        rows: of steps that a start before this one did; how long they took is not known.

    Attributes:
        rows: metrics of each step, in order.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()):
        self.rows = [dict(row) for row in rows]
        self._clips, self._seconds = 0, 0.0

    def add(self, row: Mapping[str, float]) -> None:
        """Add the metrics of one step; all steps have the same keys."""
        self.rows.append(dict(row))

    def measure(self, clips: int, seconds: float) -> None:
        """Add a dispatch to the speed."""
        self._clips += clips
        self._seconds += seconds

    @property
    def clips_per_second(self) -> float:
        """Speed of the dispatches since the last row; nan before the first."""
        return self._clips / self._seconds if self._seconds else math.nan

    def mean(self, key: str) -> float:
        """Mean of one metric over the steps."""
        return float(np.mean([row[key] for row in self.rows]))

    def means(self) -> dict[str, float]:
        """Mean of every metric over the steps."""
        return {key: self.mean(key) for key in self.rows[0]}

    def clear(self) -> None:
        """Begin anew, after a row was logged."""
        self.rows.clear()
        self._clips, self._seconds = 0, 0.0
