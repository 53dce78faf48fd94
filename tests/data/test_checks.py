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
        "case_id": f"c{seed}",
        "patient_id": f"p{seed}",
        "slice_index": 0,
        "source": "somewhere",
        "split": "train",
        "video": video,
        "lge_mask": mask,
        "label": label,
        "spacing_mm": 2.0,
        "source_frames": 8,
    }
    return Clip(**(values | changes))


def inspect(*clips: Clip) -> dict[str, bool]:
    """Names of the findings, and whether they are faults."""
    inspection = Inspection()
    for one in clips:
        inspection.add(one)
    return {finding.check: finding.is_fault for finding in inspection.findings()}


GOOD = (clip(0), clip(1, 1))


def test_a_good_cohort_has_no_finding():
    others = [dataclasses.replace(clip(s, s % 2), split="test") for s in (2, 3)]
    assert inspect(*GOOD, *others) == {}


def test_a_patient_in_two_splits():
    other = clip(5, 1, split="test", patient_id="p0")
    found = inspect(*GOOD, other, clip(6, split="test"))
    assert found == {"patient in two splits": True}


def test_the_same_pixels_under_two_ids():
    again = clip(7, video=GOOD[0].video)
    assert inspect(*GOOD, again) == {"same pixels as another case": True}


def test_the_same_case_id_twice():
    assert inspect(*GOOD, clip(7, case_id="c0")) == {"same case id as another case": True}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_in_a_split(label):
    assert inspect(*GOOD, clip(8, label, split="test")) == {"one class in a split": True}


def test_unlabelled_cases_are_no_class():
    assert inspect(*GOOD, clip(8, label=-1, split="unlabelled", lge_mask=None)) == {}


def test_label_against_mask():
    without = dataclasses.replace(clip(9, 0), label=1)
    assert inspect(*GOOD, without) == {"label without MVO in the mask": True}
    denied = dataclasses.replace(clip(9, 1), label=0)
    assert inspect(*GOOD, denied) == {"MVO in the mask without label": True}
    no_mask = clip(9, 1, lge_mask=None)
    assert inspect(*GOOD, no_mask) == {"label without MVO in the mask": True}


def test_constant_images():
    empty = np.zeros_like(GOOD[0].video)
    assert inspect(*GOOD, clip(1000, video=empty)) == {"constant image": True}
    one_frame = clip(1001).video.copy()
    one_frame[3] = 77
    inspection = Inspection()
    assert inspection.add(clip(1001, video=one_frame)) == ["constant image frame 3"]


def test_a_still_image_is_no_cine():
    still = np.repeat(GOOD[0].video[:1], 8, axis=0)
    assert inspect(*GOOD, clip(10, video=still)) == {"no motion": True}


def test_unexpected_mask_values():
    mask = clip(11).lge_mask
    assert mask is not None
    mask[mask == 3] = 4
    assert inspect(*GOOD, clip(11, lge_mask=mask))["unexpected mask values"]


def test_mvo_outside_the_myocardium():
    mask = clip(12, 0).lge_mask
    assert mask is not None
    mask[2:5, 2:5] = 2
    found = inspect(*GOOD, dataclasses.replace(clip(12, 0), label=1, lge_mask=mask))
    assert found == {"MVO outside the myocardium": True}


def test_a_mask_at_the_edge_is_worth_a_look_but_no_fault():
    mask = clip(13).lge_mask
    assert mask is not None
    found = inspect(*GOOD, clip(13, lge_mask=np.roll(mask, 10, axis=0)))
    assert found == {"mask touches the edge of the crop": False}


def test_several_frame_counts_and_spacings():
    other = clip(14, source_frames=25, spacing_mm=None)
    assert inspect(*GOOD, other) == {
        "several frame counts": False,
        "several spacings": False,
        "no spacing": False,
    }


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
