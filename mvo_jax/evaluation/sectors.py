"""Sectors of a short-axis slice, and which of them holds the infarct.

Six sectors of 60 degrees about the centre of the left ventricle, as the American Heart Association
divides a slice at mid level (Cerqueira et al., Circulation 2002, 105:539). Names, and names alone,
suppose the usual display: anterior above, septum to the left.
"""

from dataclasses import dataclass

import numpy as np

from mvo_jax.data.labels import INFARCT, MVO, MYOCARDIUM
from mvo_jax.data.splits import AnySplit

# Counter-clockwise as displayed, from the middle of the lateral wall.
SECTORS = (
    "anterolateral",
    "anterior",
    "anteroseptal",
    "inferoseptal",
    "inferior",
    "inferolateral",
)
NO_INFARCT = -1
_AT_A_TIME = 100  # masks in memory


@dataclass(frozen=True, eq=False)
class InfarctSectors:
    """Of the cases of a split, in its order.

    Attributes:
        centre: float64 [N, 2], (row, column) of the centre of the ventricle.
        sector: int64 [N], index into ``SECTORS`` of the one that holds most of the infarct, MVO
            included; -1 where none is drawn.
        share: float64 [N], infarct and MVO as a share of the drawn wall; nan where none is drawn.
        size: pixels of a side of the masks.
    """

    centre: np.ndarray
    sector: np.ndarray
    share: np.ndarray
    size: int

    def attributes(self) -> dict[str, list[str] | list[float]]:
        """Size and place of the infarct as masks show them, for a table of subgroups."""
        names = [SECTORS[i] if i != NO_INFARCT else "no infarct drawn" for i in self.sector]
        return {
            "infarct size, % of the drawn wall": (100 * self.share).tolist(),
            "sector of the infarct": names,
        }

    def blocks(self, mask_size: int) -> np.ndarray:
        """Blocks of a coarse map whose centre lies in the sector of the infarct, bool [N, m, m]."""
        block = -(-self.size // mask_size)
        middle = (np.arange(mask_size) + 0.5) * block - 0.5
        row, column = np.meshgrid(middle, middle, indexing="ij")
        found = sector_of(
            row - self.centre[:, 0, None, None], column - self.centre[:, 1, None, None]
        )
        return found == self.sector[:, None, None]


def sector_of(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Index into ``SECTORS`` of a place, as pixels down and right of the centre."""
    degrees = np.degrees(np.arctan2(-down, right)) % 360.0
    return np.minimum(degrees // 60.0, len(SECTORS) - 1).astype(np.int64)


def infarct_sectors(split: AnySplit) -> InfarctSectors:
    """Find the sector of the infarct of every case from its LGE mask.

    The centre is that of the drawn wall, or else of the image: clips are cut out about the
    ventricle.
    """
    centres, sectors, shares, size = [], [], [], 0
    for part in np.array_split(np.arange(len(split)), max(1, len(split) // _AT_A_TIME)):
        for mask in split.read(part)["lge_mask"]:
            size = len(mask)
            wall = np.argwhere(mask != 0)
            drawn = bool((mask == MYOCARDIUM).any())
            centre = wall.mean(axis=0) if drawn else (np.array(mask.shape) - 1) / 2
            infarct = np.argwhere((mask == INFARCT) | (mask == MVO))
            counts = np.bincount(sector_of(*(infarct - centre).T), minlength=len(SECTORS))
            centres.append(centre)
            shares.append(len(infarct) / len(wall) if drawn else np.nan)
            sectors.append(int(np.argmax(counts)) if len(infarct) else NO_INFARCT)
    return InfarctSectors(np.array(centres), np.array(sectors), np.array(shares), size)
