"""Sectors of a slice, and the pointing game by sector."""

import dataclasses

import numpy as np
import pytest

from mvo_jax.evaluation.localisation import SECTOR_FIGURE, localise
from mvo_jax.evaluation.sectors import NO_INFARCT, SECTORS, infarct_sectors, sector_of

# (row, column) of an infarct in a 32 x 32 image whose ventricle is in the middle.
PLACES = {
    "anterior": (5, 15),
    "anteroseptal": (12, 6),
    "inferoseptal": (19, 6),
    "inferior": (26, 16),
    "inferolateral": (19, 25),
    "anterolateral": (12, 25),
}


@pytest.fixture
def split(random_split):
    """A ring with an infarct in one sector a case, shifted from case to case; the last has none."""
    at = np.hypot(*(np.mgrid[:32, :32] - 15.5))
    masks = []
    for row, column in [*PLACES.values(), (0, 0)]:
        mask = np.where((at > 8) & (at < 12), 3, 0).astype(np.uint8)
        if row:
            near = np.hypot(*(np.mgrid[:32, :32] - np.array([row, column])[:, None, None])) < 4
            mask[near & (mask == 3)] = 1
        masks.append(np.roll(mask, (2, -1), axis=(0, 1)))
    return dataclasses.replace(random_split(cases=len(masks)), lge_mask=np.stack(masks))


def test_each_sector_is_found_wherever_the_heart_lies(split, on_disk):
    found = infarct_sectors(split)
    assert [SECTORS[i] for i in found.sector[:-1]] == list(PLACES)
    assert found.sector[-1] == NO_INFARCT
    np.testing.assert_allclose(found.centre, [[17.5, 14.5]] * len(split), atol=0.01)
    np.testing.assert_array_equal(infarct_sectors(on_disk(split)).sector, found.sector)
    infarct, wall = (split.lge_mask == 1).sum(axis=(1, 2)), (split.lge_mask > 0).sum(axis=(1, 2))
    known = found.attributes()
    assert known["infarct size, % of the drawn wall"] == pytest.approx(100 * infarct / wall)
    assert known["sector of the infarct"] == [*PLACES, "no infarct drawn"]


def test_without_a_drawn_wall_the_middle_of_the_image_counts(split):
    infarct = np.where(split.lge_mask == 1, 1, 0).astype(np.uint8)
    found = infarct_sectors(dataclasses.replace(split, lge_mask=infarct))
    np.testing.assert_array_equal(found.centre, [[15.5, 15.5]] * len(split))
    assert np.isnan(found.share).all()


def test_directions_as_displayed():
    names = [SECTORS[i] for i in sector_of(np.array([-5, 5, 1, -1, 0]), np.array([0, 0, -5, 5, 5]))]
    assert names == ["anterior", "inferior", "inferoseptal", "anterolateral", "anterolateral"]


@pytest.mark.parametrize("size", [5, 16, 32])
def test_blocks_share_the_map_among_the_sectors(split, size):
    blocks = infarct_sectors(split).blocks(size)
    assert blocks.shape == (len(split), size, size)
    assert not blocks[-1].any()  # without an infarct no block lies in its sector
    # The same centre in all cases: six sectors, each block in one of them.
    assert (blocks[:-1].sum(axis=0) == 1).all()


def test_the_pointing_game_by_sector(split):
    found = infarct_sectors(split)
    target = np.zeros((7, 16, 16))
    inside = found.blocks(16)
    for case in range(6):
        target[case][np.unravel_index(np.argmax(inside[case]), (16, 16))] = 0.5
    names = [f"p{i}" for i in range(7)]
    right = localise(target, target, names, target.mean(axis=0), inside)
    assert right["map"][SECTOR_FIGURE]["value"] == 1
    # Chance: the share of blocks in the sector. The mean map's highest blocks tie over the sectors.
    expected = inside[:6].mean(axis=(1, 2)).mean()
    assert right["chance"][SECTOR_FIGURE]["value"] == pytest.approx(expected)
    assert right["mean_training_map"][SECTOR_FIGURE]["value"] == pytest.approx(1 / 6)
    assert right["map_minus_mean_map"][SECTOR_FIGURE]["low"] > 0
    # Away from the infarct, beside a sector that holds it.
    away = localise(target[::-1], target, names, None, inside)
    assert away["map"][SECTOR_FIGURE]["value"] < 1
    assert SECTOR_FIGURE not in localise(target, target, names, None)["map"]
