"""How the locator is trained: whom a fold does not see, what is drawn, a kill."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from mvo_jax.errors import UserError
from tools import train_locator
from tools.locator.real_cine import PATIENT_OF
from tools.locator.samples import (
    SIDE,
    Frames,
    draw_batch,
    fold_of,
    read_sunnybrook,
    simulated_frames,
    without_heart,
)
from tools.train_locator import STAGES, Stage, train

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(os.environ.get("MVO_JAX_SAMPLES", ROOT.parent / "shared" / "samples"))
DATA = SAMPLES / "sunnybrook" / "lv_cavity.npz"


@pytest.fixture(scope="module")
def simulated() -> Frames:
    return simulated_frames(3, seed=1)


def test_no_stage_of_a_fold_has_seen_its_patients():
    for fold in range(5):
        name: str | None = f"fold{fold}"
        while name is not None:
            assert fold in STAGES[name].unseen
            name = STAGES[name].start
    assert STAGES["all"].unseen == ()


def test_patients_of_the_dicom_samples_are_in_the_file_and_in_known_folds():
    if not DATA.is_file():
        pytest.skip(f"the Sunnybrook samples are not at {SAMPLES} (set MVO_JAX_SAMPLES)")
    frames = read_sunnybrook(DATA)
    folds = fold_of(list(frames.patient))
    assert len(folds) == 36
    assert sorted(np.bincount(list(folds.values()))) == [7, 7, 7, 7, 8]
    assert [folds[patient] for patient in PATIENT_OF.values()] == [0, 1, 2]
    groups = {patient.rsplit("-", 1)[0] for patient in folds}
    for fold in range(5):
        mine = {p.rsplit("-", 1)[0] for p, of in folds.items() if of == fold}
        assert mine == groups  # every kind of heart in every fold


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros(3))
    for name in ("a.npz", "missing.npz"):
        with pytest.raises(UserError, match="cannot be read as the frames to train on"):
            read_sunnybrook(tmp_path / name)


def test_what_is_drawn_is_blood_and_depends_on_the_seed_alone(simulated):
    drawn = simulated.image[simulated.cavity].mean()
    assert drawn > 1.5 * simulated.image[~simulated.cavity].mean()
    images, targets = draw_batch(None, simulated, 12, (3, 4), empty=0.0)
    again, _ = draw_batch(None, simulated, 12, (3, 4), empty=0.0)
    assert np.array_equal(images, again)
    assert images.shape == targets.shape == (12, SIDE, SIDE)
    assert 0 <= images.min() < images.max() < 1
    assert (targets.sum(axis=(1, 2)) > 5).all()
    # Whatever the scanner, the cavity is brighter than the muscle and lung around it.
    inside = (images * targets).sum((1, 2)) / targets.sum((1, 2))
    assert (inside > [image[image > 0].mean() for image in images]).mean() > 0.8


def test_empty_images_have_no_target(simulated):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cavity = simulated.cavity[0].astype(np.float32)
        image = simulated.image[0].astype(np.float32)
        shown, target = without_heart(image, cavity, float(simulated.spacing_mm[0]), rng)
        assert not target.any()
        assert np.isfinite(shown).all()


@pytest.mark.slow(reason="trains three times")
def test_training_goes_on_where_it_was_killed(simulated, tmp_path, monkeypatch):
    """To the bit: the same program and the same batches."""
    monkeypatch.setattr(train_locator, "BATCH", 2)
    stage = Stage(None, (), 3)
    whole = train(tmp_path / "whole.msgpack", None, simulated, stage, seed=0, start=None)

    class Killed(Exception):
        pass

    def killed(*arguments, **options):
        if arguments[3][1] == 2:
            raise Killed
        return draw_batch(*arguments, **options)

    with monkeypatch.context() as during:
        during.setattr(train_locator, "draw_batch", killed)
        during.setattr(train_locator, "SAVE_SECONDS", -1.0)
        with pytest.raises(Killed):
            train(tmp_path / "part.msgpack", None, simulated, stage, seed=0, start=None)
    part = train(tmp_path / "part.msgpack", None, simulated, stage, seed=0, start=None)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)
    done = train(tmp_path / "part.msgpack", None, simulated, stage, seed=0, start=None)
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(done), strict=True):
        np.testing.assert_array_equal(a, b)
