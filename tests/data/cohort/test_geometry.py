"""From a slice as scanned to a clip: time has no seam, what is drawn stays, the heart is found."""

import dataclasses

import numpy as np
import pytest

from mvo_jax.data.cohort.heart import heart_centre, heart_region
from mvo_jax.data.cohort.resample import resample_mask, resample_space, resample_time
from mvo_jax.data.cohort.series import prepare_series
from mvo_jax.data.cohort.window import choose_window
from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target, Window

FRAMES, SIZE = 20, 96


def beating(
    centre: tuple[float, float] = (48, 48), *, frames: int = FRAMES, size: int = SIZE, seed: int = 0
) -> np.ndarray:
    """A bright disc of 18 to 24 pixels in a dark ring on grey, with noise."""
    at = np.hypot(*(np.mgrid[:size, :size] - np.reshape(centre, (2, 1, 1))))
    radius = (21 + 3 * np.cos(2 * np.pi * np.arange(frames) / frames))[:, None, None]
    image = np.where(at < radius, 600.0, np.where(at < radius + 9, 100.0, 300.0))
    return image + np.random.default_rng(seed).normal(0, 15, image.shape)


def one(cine: np.ndarray, **changes) -> CineSlice:
    values = {"case_id": "a", "patient_id": "p", "slice_index": 0, "source": "a.npz"}
    return CineSlice(**(values | {"cine": cine, "pixel_mm": (1.5, 1.5)} | changes))


def prepared(slice_: CineSlice, target: Target | None = None, **options) -> Clip:
    (result,) = prepare_series([slice_], target or Target(), **options)
    assert isinstance(result, Clip), result
    return result


def where(clip: Clip) -> Window:
    assert clip.window is not None
    return clip.window


def rejected(slice_: CineSlice, target: Target | None = None, **options) -> Rejected:
    (result,) = prepare_series([slice_], target or Target(), **options)
    assert isinstance(result, Rejected)
    return result


# Time
@pytest.mark.parametrize("source", [12, 20, 25, 30, 32, 50])
def test_harmonics_of_the_beat_are_met(source):
    """Two harmonics through the spline; the bound is that of a cubic through 12 points."""

    def beat(frames: int) -> np.ndarray:
        phase = 2 * np.pi * np.arange(frames) / frames
        return (np.sin(phase) + 0.3 * np.cos(2 * phase + 1))[:, None, None]

    error = np.abs(resample_time(beat(source), 30) - beat(30)).max()
    assert error < 0.3 * (6 / source) ** 4


def test_the_beat_has_no_seam():
    """Where a recording starts does not matter: a rolled one gives the rolled clip."""
    clip = np.random.default_rng(0).normal(size=(25, 3, 4))
    for first in (1, 7, 24):
        rolled = resample_time(np.roll(clip, -first, axis=0), 30)
        # The same splines in float64, their knots counted from elsewhere: 9e-16 seen.
        assert np.allclose(resample_time(clip, 30, first=first), rolled, rtol=0, atol=1e-13)
    # The step over the seam is as large as the others of a smooth beat.
    phase = 2 * np.pi * np.arange(25) / 25
    smooth = resample_time(np.sin(phase)[:, None, None], 30)[:, 0, 0]
    steps = np.abs(np.diff(np.append(smooth, smooth[0])))
    assert steps[-1] == pytest.approx(steps[0], rel=1e-12)  # by symmetry; 2e-15 seen


def test_frames_that_coincide_are_kept():
    clip = np.random.default_rng(0).normal(size=(15, 2, 2)).astype(np.float32)
    # A spline passes through its knots; one rounding to float32 is allowed for.
    assert np.allclose(resample_time(clip, 30)[::2], clip, rtol=1e-6, atol=0)
    assert np.array_equal(resample_time(clip, 15), clip)
    assert np.array_equal(resample_time(clip, 15, first=4), np.roll(clip, -4, axis=0))


def test_a_clip_starts_at_end_diastole():
    cine = np.roll(beating(), 7, axis=0)  # largest at frame 7
    anatomy = {
        t: np.pad(np.full((n, n), 1, np.uint8), (SIZE - n) // 2) for t, n in ((7, 32), (16, 20))
    }
    target = Target(frames=FRAMES, end_diastole_first=True)
    drawn = prepared(one(cine, anatomy=anatomy), target)
    told = prepared(one(cine, end_diastole=7, centre=(47.5, 47.5)), target)
    left = prepared(one(cine, anatomy=anatomy), Target(frames=FRAMES))
    assert (drawn.first_frame, told.first_frame, left.first_frame) == (7, 7, 0)
    assert np.array_equal(drawn.video, told.video)
    assert np.array_equal(drawn.video, np.roll(left.video, -7, axis=0))
    assert drawn.video.sum(axis=(1, 2, 3)).argmax() in (0, 1, FRAMES - 1)
    # What is told counts for more than what is drawn.
    assert prepared(one(cine, anatomy=anatomy, end_diastole=3), target).first_frame == 3


def test_end_diastole_that_is_not_known_or_not_there():
    target = Target(end_diastole_first=True)
    assert "end-diastole is not known" in rejected(one(beating()), target).cause
    for frame in (-1, FRAMES):
        for each in (target, Target()):
            assert f"frame {frame} of" in rejected(one(beating(), end_diastole=frame), each).cause


# Space
def test_a_window_maps_points_there_and_back():
    window = Window((3.0, -7.0), (1.3, 0.9), 64, "given")
    points = np.random.default_rng(0).uniform(-50, 150, (20, 2))
    assert np.allclose(window.to_source(window.to_crop(points)), points)
    # The middle of the crop's first pixel lies half a step inside the window.
    assert np.allclose(window.to_source(np.zeros(2)), [3 + 0.65 - 0.5, -7 + 0.45 - 0.5])


@pytest.mark.parametrize("step", [0.6, 1.0, 1.5, 3.7])
def test_images_and_masks_lie_on_each_other(step):
    """A bright square and its label: their middles agree to a third of a pixel of the crop."""
    image, mask = np.full((1, 128, 128), 10.0), np.zeros((128, 128), np.uint8)
    image[:, 50:70, 60:75], mask[50:70, 60:75] = 110.0, 1
    size = int(80 / step)
    window = Window((20.0, 30.0), (step, step), size, "given")
    small, label = resample_space(image, window)[0], resample_mask(mask, window)
    assert small.min() >= 10 - 1e-3  # no ringing
    assert small.max() <= 110 + 1e-3
    for axis in (0, 1):
        places = np.arange(size)
        grey = (small - 10).sum(axis=1 - axis)
        drawn = (label == 1).sum(axis=1 - axis)
        bright = float((grey * places).sum() / grey.sum())
        assert float((drawn * places).sum() / drawn.sum()) == pytest.approx(bright, abs=0.34)


def test_a_constant_stays_constant_to_the_edge_and_beyond():
    window = Window((-20.0, 30.0), (1.7, 1.7), 64, "given")
    assert np.allclose(resample_space(np.full((2, 50, 70), 7.0), window), 7.0)
    assert resample_mask(np.ones((50, 70), np.uint8), window)[0].max() == 0  # nothing was drawn


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_drawn_is_inside(seed):
    """Rings anywhere in images of any spacing; the window stays in the image if that is enough."""
    draws = np.random.default_rng(seed)
    height, width = (int(n) for n in draws.integers(100, 260, 2))
    pixel = (float(draws.uniform(0.8, 1.9)), float(draws.uniform(0.8, 1.9)))
    mask = np.zeros((height, width), np.uint8)
    tall, wide = (int(draws.integers(10, int(100 / p))) for p in pixel)
    top, left = (
        int(draws.integers(0, max(n - s, 0) + 1)) for n, s in ((height, tall), (width, wide))
    )
    mask[top : top + tall, left : left + wide] = 3
    cine = np.zeros((10, height, width), np.uint8)
    case = one(cine, pixel_mm=pixel, lge_mask=mask, has_mvo=False)
    window = choose_window(case, Target())
    region = heart_region(case)
    assert region is not None
    at = window.to_crop(np.argwhere(region))
    assert (at > -0.5).all()
    assert (at < 63.5).all()
    assert window.start == tuple(np.round(window.start))
    for n, start, step in zip((height, width), window.start, window.step, strict=True):
        if n >= 64 * step + 2:
            assert -0.5 <= start <= n - 64 * step + 0.5


def test_what_does_not_fit_is_refused_with_the_spacing_that_would_do():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2:94, 40:50] = 3  # 138 mm
    case = one(beating(), lge_mask=mask, has_mvo=False)
    refusal = rejected(case)
    assert "138" in refusal.cause
    assert "--spacing_mm 2.2" in refusal.remedy
    assert prepared(case, Target(spacing_mm=2.2)).lge_mask is not None


@pytest.mark.parametrize("pixel", [0.7, 1.0, 1.9])
def test_the_smallest_obstruction_keeps_its_label(pixel):
    mask = np.zeros((192, 192), np.uint8)
    mask[80:112, 80:112] = 3
    mask[91, 87] = 2
    cine = beating((96, 96), size=192)
    case = one(cine, pixel_mm=(pixel, pixel), lge_mask=mask, has_mvo=True)
    result = prepared(case)
    assert result.label == 1
    assert 1 <= (result.lge_mask == 2).sum() <= np.ceil((pixel / 2) ** 2) + 3
    at = where(result).to_source(np.argwhere(result.lge_mask == 2).mean(axis=0))
    assert np.abs(at - [91, 87]).max() * pixel <= 2.0


@pytest.mark.parametrize(
    ("values", "told", "label"),
    [
        ((3, 1, 2), None, 1),
        ((3, 1), None, 0),
        ((3,), None, 0),
        ((), None, UNLABELLED),  # perhaps nobody has looked at it
        ((), 0, 0),
        (None, None, UNLABELLED),
        (None, 0, 0),
    ],
)
def test_labels(values, told, label):
    mask = None
    if values is not None:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for i, value in enumerate(values):
            mask[40 : 60 - 4 * i, 40 : 60 - 4 * i] = value
    case = one(beating(), lge_mask=mask, has_mvo=None if mask is None else bool((mask == 2).any()))
    assert prepared(case, label=told).label == label


# The heart
@pytest.mark.parametrize("centre", [(48, 48), (36, 60), (58, 40)])
@pytest.mark.parametrize("pixel", [(1.5, 1.5), (1.2, 1.6)])
def test_the_ventricle_is_found_by_its_motion(centre, pixel):
    found = heart_centre([one(beating(centre), pixel_mm=pixel)])
    assert np.hypot(*((found - 0.5 - centre) * pixel)) < 3.0


def test_a_brighter_ventricle_that_moves_more_does_not_draw_the_crop():
    """A crescent to the left that swings by 6 pixels, as the right ventricle does."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    cine = beating((48, 56))
    for t in range(FRAMES):
        swing = 6 * np.cos(2 * np.pi * t / FRAMES)
        outer = np.hypot(rows - 48, columns - 44) < 34 + swing
        inner = np.hypot(rows - 48, columns - 56) < 33
        cine[t][outer & ~inner] = 900
    found = heart_centre([one(cine)])
    assert np.hypot(*((found - 0.5 - [48, 56]) * 1.5)) < 8.0


def test_slices_help_each_other():
    """A slice of noise has the centre of its neighbours; one of another size is on its own."""
    noise = np.random.default_rng(1).normal(300, 20, (FRAMES, SIZE, SIZE))
    stack = [one(beating((36, 60), seed=s), slice_index=s) for s in range(3)]
    stack.append(one(noise, slice_index=3))
    results = prepare_series(stack, Target(image_size=32, locator=0))
    windows = [where(r) for r in results if isinstance(r, Clip)]
    assert len(windows) == 4
    assert len({w.start for w in windows}) == 1
    mixed = prepare_series([stack[0], one(beating((40, 40), size=80))], Target(image_size=32))
    assert all(isinstance(r, Clip) for r in mixed)


def test_a_damaged_slice_harms_no_other():
    sound = [one(beating((36, 60)), case_id=name) for name in "ab"]
    for damage in (np.nan, np.inf):
        cine = beating((36, 60))
        cine[2, 3, 4] = damage
        bad = one(cine, case_id="bad")
        first, middle, last = prepare_series([sound[0], bad, sound[1]], Target(image_size=32))
        assert isinstance(middle, Rejected)
        assert isinstance(first, Clip)
        assert isinstance(last, Clip)
        alone = prepared(sound[0], Target(image_size=32))
        assert first.window == alone.window
    for pixel in ((0.0, 1.5), (np.nan, np.nan), (-1.5, 1.5)):
        assert "mm" in rejected(one(beating(), pixel_mm=pixel)).cause


def test_where_nothing_moves_the_middle_is_taken():
    still = np.repeat(beating()[:1], FRAMES, axis=0)
    found = heart_centre([one(still)])
    assert np.hypot(*(found - SIZE / 2)) * 1.5 < 25  # harmonics of rounding at most
    nowhere = heart_centre([one(np.zeros((FRAMES, SIZE, SIZE)))])
    assert nowhere.tolist() == [SIZE / 2, SIZE / 2]


def test_grey_values_of_a_window_are_the_same_in_every_case():
    window = (0.0, 1000.0)
    for factor in (0.5, 1.0):
        case = one(factor * beating(), centre=(48, 48))
        video = prepared(case, Target(window=window)).video
        assert video.max() == pytest.approx(0.255 * factor * 650, abs=12)
    own = prepared(dataclasses.replace(case, cine=0.5 * beating())).video
    assert (int(own.min()), int(own.max())) == (0, 255)
