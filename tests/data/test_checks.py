"""Integrity checks: each mistake is found, and what is right is left alone."""

import dataclasses

import numpy as np
import pytest

from mvo_jax.data.checks import Inspection
from mvo_jax.data.slices import Clip, Rejected


def clip(seed: int, label: int = 0, **changes) -> Clip:
    """A clip with a ring of myocardium, an infarct in it and MVO in that where labelled."""
    rows, columns = np.mgrid[:32, :32] - 15.5
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    mask = np.where((radius > 6) & (radius < 10), 3, 0).astype(np.uint8)
    mask[(mask == 3) & (np.abs(angle) < 1)] = 1
    if label == 1:
        mask[(mask == 1) & (np.abs(angle) < 0.4) & (radius < 8)] = 2
    video = np.random.default_rng(seed).integers(0, 256, (8, 32, 32, 1)).astype(np.uint8)
    values = {
        "case_id": f"c{seed}", "patient_id": f"p{seed}", "slice_index": 0, "source": "somewhere",
        "split": "train", "video": video, "lge_mask": mask, "label": label, "spacing_mm": 2.0,
        "source_frames": 8,
    }  # fmt: skip
    return Clip(**(values | changes))


def inspect(*clips: Clip) -> dict[str, bool]:
    """Names of the findings, and whether they are faults."""
    inspection = Inspection()
    for one in clips:
        inspection.add(one)
    return {finding.check: finding.is_fault for finding in inspection.findings()}


GOOD = (clip(0), clip(1, 1))


def drawn(seed: int, change, label: int = 0, **changes) -> Clip:
    """A clip whose mask ``change`` has altered."""
    one = clip(seed, 0, **changes)
    assert one.lge_mask is not None
    return dataclasses.replace(one, label=label, lge_mask=change(one.lge_mask))


def spot(mask: np.ndarray) -> np.ndarray:
    mask[2:5, 2:5] = 2
    return mask


EMPTY, STILL = np.zeros_like(GOOD[0].video), np.repeat(GOOD[0].video[:1], 8, axis=0)


@pytest.mark.parametrize(
    ("more", "findings"),
    [
        ([clip(2, split="test"), clip(3, 1, split="test")], {}),
        (
            [clip(5, 1, split="test", patient_id="p0"), clip(6, split="test")],
            {"patient in two splits": True},
        ),
        ([clip(7, video=GOOD[0].video)], {"same pixels as another case": True}),
        ([clip(7, case_id="c0")], {"same case id as another case": True}),
        ([clip(8, 0, split="test")], {"one class in a split": True}),
        ([clip(8, 1, split="test")], {"one class in a split": True}),
        ([clip(8, label=-1, split="unlabelled", lge_mask=None)], {}),
        ([dataclasses.replace(clip(9, 0), label=1)], {"label without MVO in the mask": True}),
        ([dataclasses.replace(clip(9, 1), label=0)], {"MVO in the mask without label": True}),
        ([clip(9, 1, lge_mask=None)], {"label without MVO in the mask": True}),
        ([clip(10, video=EMPTY)], {"constant image": True}),
        ([clip(10, video=STILL)], {"no motion": True}),
        ([drawn(11, lambda mask: np.where(mask == 3, 4, mask))], {"unexpected mask values": True}),
        ([drawn(12, spot, label=1)], {"MVO outside the myocardium": True}),
        (
            [drawn(13, lambda mask: np.roll(mask, 10, axis=0))],
            {"mask touches the edge of the crop": False},
        ),
        (
            [clip(14, source_frames=25, spacing_mm=None)],
            {"several frame counts": False, "several spacings": False, "no spacing": False},
        ),
    ],
)
def test_each_mistake_is_found_and_nothing_else(more, findings):
    assert inspect(*GOOD, *more) == findings


def test_a_constant_frame_is_named():
    video = clip(1001).video
    video[3] = 77
    assert Inspection().add(clip(1001, video=video)) == ["constant image frame 3"]


def anatomy(*, exchanged: bool) -> np.ndarray:
    """ACDC's labels as an importer reads them: 1 LV cavity, 2 LV myocardium, RV dropped."""
    rows, columns = np.mgrid[:32, :32] - 15.5
    left, right = np.hypot(rows, columns), np.hypot(rows, columns + 12)
    mask = np.where((left > 6) & (left < 9), 2, 0).astype(np.uint8)
    mask[(right < 5) & (mask == 0) & (left > 9) if exchanged else left <= 6] = 1
    return mask


def test_labels_of_the_two_ventricles_exchanged():
    right = [clip(s, s % 2, anatomy={0: anatomy(exchanged=False)}) for s in range(4)]
    assert inspect(*right) == {}
    wrong = [clip(s, s % 2, anatomy={0: anatomy(exchanged=True)}) for s in range(4)]
    assert inspect(*wrong) == {"myocardium does not enclose the cavity": True}
    # One odd contour among good ones is no exchanged map.
    assert inspect(*right[:3], wrong[3]) == {"myocardium does not enclose the cavity": False}


def test_what_cannot_be_read_is_a_fault():
    inspection = Inspection()
    inspection.add(clip(0))
    inspection.add_rejected(Rejected("x", "p", "x.npz", "x.npz: 3 pixels are NaN", "export again"))
    found = {finding.check: finding for finding in inspection.findings()}
    finding = found["cannot be read or prepared"]
    assert finding.is_fault
    assert finding.cases == ("x: x.npz: 3 pixels are NaN",)
