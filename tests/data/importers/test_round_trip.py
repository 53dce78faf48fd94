"""A simulated cohort in other people's formats, prepared, is the same cohort."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from mvo_jax.data.slices import Target
from mvo_jax.data.splits import Split, load_split
from tests.data.importers import reading, writers

PIXEL_MM = 1.875
WRITERS = {
    "nifti": writers.write_nifti, "dicom": writers.write_dicom, "mat7": writers.write_mat7,
    "mat73": writers.write_mat73, "png": writers.write_png, "npz": writers.write_npz,
}  # fmt: skip


def prepared(source, out, *, window=(0.0, 255.0), **options):
    target = Target(frames=16, spacing_mm=PIXEL_MM, window=window)
    return reading.prepared(source, out, target, strict=True, **options)


def config(path, **changes):
    values = {"name": "cohort", "dir": str(path), "frames": 16, "image_size": 64, "fold": 0}
    values["device_budget_mb"] = 2048
    return SimpleNamespace(**(values | changes))


def load(data_config, name: str) -> Split:
    split = load_split(data_config, name)
    assert isinstance(split, Split)
    return split


@pytest.mark.parametrize("name", WRITERS)
def test_same_clips_masks_and_labels(simulated, tmp_path, name):
    for case_id, video, mask, _ in simulated:
        keywords = {} if name == "png" else {"pixel_mm": PIXEL_MM}
        WRITERS[name](tmp_path / "source", case_id, video, mask, **keywords)
    options = {"pixel_mm": PIXEL_MM} if name == "png" else {}
    cohort = prepared(tmp_path / "source", tmp_path / "out", **options)
    assert dict(cohort.cases) == {"train": 16}
    split = load(config(tmp_path / "out"), "train")
    assert split.case_id == tuple(c[0] for c in simulated)
    # Same spacing, size, frames and window: nothing is resampled, so not a bit may differ.
    assert np.array_equal(split.video[..., 0], np.stack([c[1] for c in simulated]))
    assert split.label.tolist() == [c[3] for c in simulated]
    if name.startswith("mat"):  # contours have no holes and no notches, so the ring may be smoother
        for of in (1, 2):
            assert np.array_equal(split.lge_mask == of, np.stack([c[2] for c in simulated]) == of)
        agree = (split.lge_mask == np.stack([c[2] for c in simulated])).mean()
        assert agree > 0.995
    else:
        assert np.array_equal(split.lge_mask, np.stack([c[2] for c in simulated]))


def test_robust_window_keeps_the_clip_up_to_a_linear_map(simulated, tmp_path):
    for case_id, video, mask, _ in simulated[:4]:
        writers.write_nifti(tmp_path / "source", case_id, video, mask, pixel_mm=PIXEL_MM)
    prepared(tmp_path / "source", tmp_path / "out", window=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the four may be of one class
        split = load(config(tmp_path / "out"), "train")
    for (_, video, _, _), clip in zip(simulated, split.video[..., 0], strict=False):
        low, high = np.percentile(video, [0.5, 99.5])
        expected = np.clip((video - low) * 255 / (high - low), 0, 255)
        assert np.abs(expected - clip).max() <= 0.5 + 1e-3  # rounding to a grey level


def test_resampled_to_another_spacing_and_back(simulated, tmp_path):
    """At 1 mm and 32 frames in the source, the prepared clip is the original up to smoothing."""
    _, video, mask, _ = simulated[0]
    fine = video.repeat(2, axis=1).repeat(2, axis=2)
    large = mask.repeat(2, axis=0).repeat(2, axis=1)
    writers.write_nifti(tmp_path / "source", "a", fine, large, pixel_mm=PIXEL_MM / 2)
    prepared(tmp_path / "source", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = load(config(tmp_path / "out"), "train")
    assert np.array_equal(split.lge_mask[0], mask)
    # The triangle that averages two fine pixels reaches a quarter into the neighbours.
    error = np.abs(split.video[0, ..., 0].astype(float) - video)
    assert np.median(error) <= 4
    assert np.corrcoef(split.video[0].ravel(), video.ravel())[0, 1] > 0.99
