"""Pictures of a heart: the cine and the label mask of its LGE image.

Every sub-pixel of every frame is traced back to its material point in closed form, so tissue moves
with the wall. Sub-pixels are averaged, which gives partial volume at every border.
"""

import math
from typing import NamedTuple

import numpy as np

from mvo_jax.data.labels import BACKGROUND, INFARCT, MVO, MYOCARDIUM
from mvo_jax.data.phantom.draws import Draws, smooth_field
from mvo_jax.data.phantom.heart import ANGLES, N_ANGLE, N_DEPTH, Heart, angle_between
from mvo_jax.data.phantom.kinematics import through_plane_stretch, time_curve
from mvo_jax.data.phantom.patient import Acquisition, Anatomy

_VIDEO_SUBPIXELS, _MASK_SUBPIXELS = 2, 4
# Signals relative to remote muscle (phantom of MRXCAT tissues at flip angle 50).
_LUNG, _LIVER, _SKELETAL = 0.13, 1.4, 0.76
_TEXTURE_SD = 0.05
_RV_WALL_MM = 3.0


def _grid(image_size: int, subpixels: int, field_of_view: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the sub-pixel centres, mm: x to the right [1, n], y upwards [n, 1]."""
    n = image_size * subpixels
    line = ((np.arange(n) + 0.5) / n - 0.5) * field_of_view
    return line[None, :], -line[:, None]


def _average(values: np.ndarray, subpixels: int) -> np.ndarray:
    """Mean over the sub-pixels of each pixel."""
    n = values.shape[0] // subpixels
    return values.reshape(n, subpixels, n, subpixels).mean(axis=(1, 3))


def _index(angle: np.ndarray) -> np.ndarray:
    """Table position of an angle in radians."""
    # Shifted by whole turns, so that cutting off the fraction rounds down.
    return (angle * (N_ANGLE / (2.0 * math.pi)) + 8 * N_ANGLE).astype(np.int64) & (N_ANGLE - 1)


class Deformed:
    """A heart at one contraction, ready to trace points back to their material."""

    def __init__(self, heart: Heart, contraction: float):
        self.endo = heart.radius(heart.endo, contraction)  # [N_ANGLE], mm, by material angle
        self.epi = heart.radius(heart.epi, contraction)
        self._twist = heart.twist * contraction
        self._stretch = 1.0 + (through_plane_stretch(heart.strain) - 1.0) * contraction
        self._start = heart.endo
        self._endo_squared, self._start_squared = self.endo**2, heart.endo**2
        self._per_wall = 1.0 / (heart.epi - heart.endo)

    def _depth(self, radius_squared: np.ndarray, at: np.ndarray) -> np.ndarray:
        squared = (
            self._start_squared[at]
            + (radius_squared - self._endo_squared[at]) * (self._stretch[at])
        )
        return (np.sqrt(np.maximum(squared, 0.0)) - self._start[at]) * self._per_wall[at]

    def trace(self, radius: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Material point that lies now at a radius, mm, and an angle in the heart's frame.

        Returns:
            Depth in the wall (below 0 in the cavity, above 1 outside) and table position of the
            material angle.
        """
        squared = radius * radius
        at = _index(angle - 0.8 * self._twist)
        # The rotation depends on depth and depth, weakly, on the rotation: one correction is
        # enough, what is left is under 0.1 degrees.
        depth = np.clip(self._depth(squared, at), 0.0, 1.0)
        at = _index(angle - self._twist * (1.3 - depth))
        return self._depth(squared, at), at


def _cover(distance: np.ndarray, width: float) -> np.ndarray:
    """How much of a sub-pixel lies inside a border, from the distance inside it, mm."""
    cover = distance * (1.0 / width)
    cover += 0.5
    return np.clip(cover, 0.0, 1.0, out=cover)


def _blend(image: np.ndarray, signal: np.ndarray | float, cover: np.ndarray) -> None:
    """Paint a signal over part of each sub-pixel, in place."""
    image += (signal - image) * cover


def _span(wanted: np.ndarray) -> slice:
    """The stretch of a line over which a condition holds."""
    places = np.flatnonzero(wanted)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _around(nodes: np.ndarray) -> np.ndarray:
    """Smooth random curve over ANGLES from nodes spaced evenly around."""
    return smooth_field(nodes[None, :], np.zeros(N_ANGLE), ANGLES / (2.0 * math.pi) * nodes.size)


class _View(NamedTuple):
    """The sub-pixel grid as seen from the heart's centre at one time, mm and radians."""

    contraction: float
    dx: np.ndarray  # [1, n]
    dy: np.ndarray  # [n, 1]
    radius: np.ndarray  # [n, n], as the others
    angle: np.ndarray  # in the heart's frame
    blood: np.ndarray  # signal

    def part(self, box: tuple[slice, slice]) -> "_View":
        """Some rows and columns of it."""
        rows, columns = box
        whole = (self.radius[box], self.angle[box], self.blood[box])
        return _View(self.contraction, self.dx[:, columns], self.dy[rows], *whole)


class _Scene:
    """What does not change over the beat: surroundings, textures and tables of one slice."""

    def __init__(
        self, heart: Heart, anatomy: Anatomy, scan: Acquisition, d: Draws, image_size: int
    ):
        self.heart, self.anatomy, self.scan = heart, anatomy, scan
        self.x, self.y = _grid(image_size, _VIDEO_SUBPIXELS, anatomy.field_of_view)
        self.edge = anatomy.field_of_view / (image_size * _VIDEO_SUBPIXELS)
        muscle = np.ones((N_DEPTH, N_ANGLE))
        muscle[heart.infarct] = scan.infarct
        muscle[heart.core] = scan.core
        fine = smooth_field(
            d.normals(6, 60),
            np.linspace(0.0, 5.0, N_DEPTH)[:, None],
            np.arange(N_ANGLE)[None, :] * (60 / N_ANGLE),
        )
        self.muscle = (muscle * (1.0 + _TEXTURE_SD * 1.3 * fine)).reshape(-1)

        # Right ventricle: a crescent between the insertions, zero outside them.
        from_septum = angle_between(ANGLES, math.pi)
        across = np.abs(from_septum) / anatomy.rv_half_angle
        skew = 1.0 + d.uniform(-0.35, 0.15) * np.sin(from_septum)
        self.rv_depth = anatomy.rv_width * skew * np.clip(1.0 - across**2, 0.0, None) ** 0.8
        self.rv_wall = _RV_WALL_MM * np.clip((1.12 - across) / 0.12, 0.0, 1.0)
        rv_ridges = _around(d.normals(36))
        self.rv_ridges = 1.6 * np.clip(rv_ridges, 0.0, 1.5) * np.clip(1.2 - across, 0.0, 1.0)
        # Fat and pericardium around the heart, thick in the grooves, thin beside the lung.
        groove = np.exp(-0.5 * ((across - 1.1) / 0.22) ** 2)
        self.fat_depth = np.clip(0.7 + 1.0 * _around(d.normals(14)) + 3.4 * groove, 0.0, 6.0)
        self.pericardium = heart.epi + self.rv_depth + self.rv_wall + self.fat_depth
        self.rv_trabeculae = [
            (math.pi + d.uniform(-0.6, 0.6), d.uniform(0.45, 0.9), d.uniform(1.5, 2.8))
            for _ in range(1 + d.integer(3))
        ]
        # Trabeculae line the free wall of the left ventricle, the septum is smooth.
        self.ridges = (
            1.5
            * np.clip(_around(d.normals(40)), 0.0, 2.0)
            * np.clip(0.35 + np.cos(ANGLES), 0.05, 1.0)
        )
        self.papillary_lobes = [
            [
                (d.uniform(0.85, 1.05), d.uniform(0.35, 0.95), 0.0),
                (d.uniform(0.55, 0.85), d.uniform(0.0, 0.9), d.uniform(0.10, 0.24)),
                (d.uniform(0.45, 0.75), d.uniform(0.0, 0.9), -d.uniform(0.10, 0.24)),
            ]
            for _ in range(2)
        ]
        self.flow = [
            smooth_field(d.normals(9, 9), self.y / 11.0 + 4.0, self.x / 11.0 + 4.0)
            for _ in range(2)
        ]
        self.surroundings = self._paint_surroundings(d)
        self.shading = self._coil_shading()
        # The left ventricle never leaves this part of the grid.
        furthest_drift = float(np.max(scan.drift[:, 0] + 0.5 * np.abs(scan.drift[:, 2])))
        reach = float(heart.epi.max()) * 1.05 + 2.0 * self.edge + furthest_drift
        self.box = (
            _span(np.abs(self.y[:, 0] - anatomy.centre[1]) < reach),
            _span(np.abs(self.x[0] - anatomy.centre[0]) < reach),
        )

    def _paint_surroundings(self, d: Draws) -> np.ndarray:
        """Lung, diaphragm with liver and stomach, chest wall: ours, after anatomy, [n, n]."""
        cos, sin = math.cos(self.anatomy.rotation), math.sin(self.anatomy.rotation)
        right, up = self.x - self.anatomy.centre[0], self.y - self.anatomy.centre[1]
        x, y = cos * right + sin * up, cos * up - sin * right

        def field(cell_mm: float) -> np.ndarray:
            return smooth_field(d.normals(24, 24), y / cell_mm + 12.0, x / cell_mm + 12.0)

        relief, coarse, fine, speckle = field(24.0), field(13.0), field(6.0), field(2.5)

        def beyond(degrees: float, distance: float) -> np.ndarray:
            """Distance past a wavy line that lies in this direction from the heart, mm."""
            angle = math.radians(degrees)
            return math.cos(angle) * x + math.sin(angle) * y - distance

        image = _LUNG * (1.0 + 0.4 * fine + 0.4 * speckle)
        # Lung vessels in cross-section.
        _blend(image, 0.6 * self.scan.blood, np.clip(1.6 * (fine + 0.5 * speckle) - 2.5, 0.0, 0.9))
        # Mediastinal fat with vessels on the side of the right ventricle, in patches.
        medial = beyond(d.normal(170.0, 14.0), d.uniform(30.0, 42.0)) + 5.0 * relief
        patches = np.clip(1.5 * (coarse + 0.4 * fine) + d.uniform(-0.6, 0.8), 0.0, 1.0)
        _blend(image, self.scan.fat * (0.72 + 0.15 * fine), patches * _cover(medial, 4.0))
        # Chest wall in front: fat, then muscle with ribs.
        wall = beyond(d.normal(118.0, 10.0), d.uniform(46.0, 58.0)) + 2.0 * relief + 1.0 * coarse
        layer = d.uniform(3.0, 10.0)
        _blend(image, self.scan.fat * (0.85 + 0.12 * fine), _cover(wall, 1.5))
        muscle = _SKELETAL * (1.0 + 0.35 * coarse + 0.15 * speckle)
        _blend(image, np.maximum(muscle, 0.2), _cover(wall - layer + 1.5 * fine, 2.0))
        # Diaphragm below: liver on the side of the right ventricle, stomach or spleen opposite.
        below = beyond(d.normal(262.0, 9.0), d.uniform(39.0, 50.0)) + 2.5 * relief + 0.6 * coarse
        organ = _LIVER * (1.0 + 0.06 * fine + 0.05 * speckle)
        _blend(organ, 0.75 * self.scan.blood, np.clip(1.2 - 9.0 * np.abs(coarse + fine), 0.0, 0.7))
        side = beyond(d.normal(0.0, 25.0), d.uniform(-8.0, 25.0)) + 6.0 * relief
        stomach = d.uniform(0.3, 1.9) * (1.0 + 0.3 * coarse + 0.1 * fine)
        _blend(organ, np.maximum(stomach, 0.1), _cover(side, 2.0))
        _blend(image, self.scan.fat * 0.75, _cover(below + 1.2 + 1.6 * coarse, 1.5))
        _blend(image, organ, _cover(below, 1.5))
        return image

    def _coil_shading(self) -> np.ndarray:
        """Sensitivity over the field of view, 1 at the heart, at most threefold overall."""
        total = np.zeros((self.y.size, self.x.size))
        for x, y, reach, weight in self.scan.coils:
            total += weight * np.exp(-np.hypot(self.x - x, self.y - y) / reach)
        ratio = total.max() / total.min()
        if ratio > 3.0:
            total = total ** (math.log(3.0) / math.log(ratio))
        row = int(np.argmin(np.abs(self.y - self.anatomy.centre[1])))
        column = int(np.argmin(np.abs(self.x - self.anatomy.centre[0])))
        return total / total[row, column]

    def frame(self, contraction: float, phase: float, drift: np.ndarray) -> np.ndarray:
        """Noise-free image at one time on the sub-pixel grid, [n, n]."""
        now = Deformed(self.heart, contraction)
        dx = self.x - (self.anatomy.centre[0] + drift[0])
        dy = self.y - (self.anatomy.centre[1] + drift[1])
        radius = np.hypot(dx, dy)
        angle = np.arctan2(dy, dx) - self.anatomy.rotation
        swirl = 2.0 * math.pi * phase
        blood = (0.035 * math.cos(swirl)) * self.flow[0] + (0.035 * math.sin(swirl)) * self.flow[1]
        blood = (blood + (1.0 - 0.05 * contraction)) * self.scan.blood

        view = _View(contraction, dx, dy, radius, angle, blood)
        image = self.surroundings.copy()
        self._paint_outside(image, now, view)
        self._paint_left_ventricle(image[self.box], now, view.part(self.box))
        return image

    def _paint_outside(self, image: np.ndarray, now: Deformed, view: _View) -> None:
        """Pericardium, fat and right ventricle, in place; the twist hardly reaches them."""
        scan, anatomy = self.scan, self.anatomy
        rv_depth = self.rv_depth * (1.0 - anatomy.rv_shortening * view.contraction)
        outer = now.epi + rv_depth + self.rv_wall
        # The pericardium follows the heart half-way: fat and lung fill the gap.
        pericardium = 0.5 * (self.pericardium + outer + self.fat_depth)
        gap = np.maximum(pericardium - outer, 1e-6)
        filling = np.clip(self.fat_depth / gap, 0.0, 1.0) * np.clip(self.fat_depth / 3.0, 0.25, 1.0)
        rv_blood = np.where(rv_depth > 0.5, now.epi + rv_depth - self.rv_ridges, -np.inf)

        at = _index(view.angle)
        inside_pericardium = pericardium[at] - view.radius
        _blend(image, 0.25, _cover(inside_pericardium + 1.0, self.edge))
        _blend(image, (scan.fat * 0.85 * filling)[at], _cover(inside_pericardium, self.edge))
        _blend(image, 0.95, _cover(outer[at] - view.radius, self.edge))
        cover = _cover(rv_blood[at] - view.radius, 1.5 * self.edge)
        for where, how_far, size in self.rv_trabeculae:
            i = int(_index(np.array(where)))
            r = now.epi[i] + rv_depth[i] * how_far
            self._carve(cover, view, r, where, size, 0.7)
        _blend(image, 0.97 * view.blood, cover)

    def _carve(
        self,
        cover: np.ndarray,
        view: _View,
        distance: float,
        angle: float,
        size: float,
        strength: float,
    ) -> None:
        """Take a disc of muscle, at a distance and angle from the centre, out of blood."""
        x = distance * math.cos(angle + self.anatomy.rotation)
        y = distance * math.sin(angle + self.anatomy.rotation)
        near = size + 2.0 * self.edge
        part = _span(np.abs(view.dy[:, 0] - y) < near), _span(np.abs(view.dx[0] - x) < near)
        from_middle = np.hypot(view.dx[:, part[1]] - x, view.dy[part[0]] - y)
        cover[part] *= 1.0 - strength * _cover(size - from_middle, 1.5 * self.edge)

    def _paint_left_ventricle(self, image: np.ndarray, now: Deformed, view: _View) -> None:
        """Wall, papillary muscles and cavity, in place."""
        depth, at = now.trace(view.radius, view.angle)
        cell = np.clip(depth * N_DEPTH, 0, N_DEPTH - 1).astype(np.int64)
        _blend(
            image, self.muscle[cell * N_ANGLE + at], _cover(now.epi[at] - view.radius, self.edge)
        )
        cavity = _cover((now.endo - self.ridges)[at] - view.radius, self.scan.trabecula)
        turn = self.heart.twist * view.contraction
        for i, lobes in enumerate(self.papillary_lobes):
            where = float(self.anatomy.papillary_angle[i])
            thick = float(self.anatomy.papillary_radius[i]) * (1.0 + 0.1 * view.contraction)
            for part, gap, aside in lobes:
                endo = float(now.endo[int(_index(np.array(where + aside)))])
                r = max(endo - gap * thick, 0.45 * endo)
                self._carve(cavity, view, r, where + aside + turn, part * thick, 0.92)
        _blend(image, view.blood, cavity)


def render_video(
    heart: Heart, anatomy: Anatomy, scan: Acquisition, *, draws: Draws, frames: int, image_size: int
) -> np.ndarray:
    """The cine of a slice over one beat from near end-diastole, uint8 [frames, size, size, 1].

    ``draws`` is the stream of texture and noise.
    """
    scene = _Scene(heart, anatomy, scan, draws, image_size)
    phases = (np.arange(frames) + scan.start) / frames % 1.0
    contractions = time_curve(
        phases, end_systole=anatomy.end_systole, filling_delay=anatomy.filling_delay
    )
    elapsed = np.arange(frames) / frames
    amplitude, offset, slope = scan.drift.T
    signal = np.empty((frames, image_size, image_size))
    for k in range(frames):
        drift = amplitude * np.sin(2.0 * np.pi * (0.6 * elapsed[k] + offset))
        drift += slope * (elapsed[k] - 0.5)
        view = scene.frame(float(contractions[k]), float(phases[k]), drift)
        signal[k] = _average(view * scene.shading, _VIDEO_SUBPIXELS)

    if scan.blur:
        signal = 0.5 * signal + 0.25 * (np.roll(signal, 1, axis=0) + np.roll(signal, -1, axis=0))
    if scan.ghost:
        shift = round(scan.ghost_shift * image_size)
        signal = signal + scan.ghost * np.roll(signal, shift, axis=1 + scan.ghost_axis)
    noise = draws.normals(2, *signal.shape) * (scan.blood / scan.blood_snr)
    magnitude = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
    level = np.clip(magnitude * (scan.exposure / scan.blood), 0.0, 1.0) ** scan.gamma
    return np.rint(level * 255.0).astype(np.uint8)[..., None]


def render_mask(
    heart: Heart, anatomy: Anatomy, scan: Acquisition, *, image_size: int
) -> np.ndarray:
    """The label mask of the slice's LGE image, laid over the cine, uint8 [size, size].

    The LGE image is read near end-diastole and registered to the cine; what registration leaves
    (shift, rotation, scale, now and then a wrong phase, an uneven border) is in ``scan``. Every
    pixel takes the class that covers most of it; a heart with a core keeps at least one such pixel.
    """
    x, y = _grid(image_size, _MASK_SUBPIXELS, anatomy.field_of_view)
    dx = (x - anatomy.centre[0] - scan.mask_shift[0]) / scan.mask_scale
    dy = (y - anatomy.centre[1] - scan.mask_shift[1]) / scan.mask_scale
    angle = np.arctan2(dy, dx) - anatomy.rotation - scan.mask_rotation
    nodes = scan.mask_border[None, :]
    pixel_mm = anatomy.field_of_view / 64.0  # a fixed length: the paper's pixel, at any image size
    uneven = 0.5 * pixel_mm * smooth_field(nodes, np.zeros_like(angle), angle / (2 * math.pi) * 16)
    depth, at = Deformed(heart, scan.mask_contraction).trace(np.hypot(dx, dy) + uneven, angle)
    cell = np.clip(np.floor(depth * N_DEPTH), 0, N_DEPTH - 1).astype(np.int64)
    wall = (depth >= 0.0) & (depth < 1.0)
    infarct, core = wall & heart.infarct[cell, at], wall & heart.core[cell, at]
    parts = core, infarct & ~core, wall & ~infarct
    mvo, rim, muscle = (_average(part.astype(np.float64), _MASK_SUBPIXELS) for part in parts)
    classes = np.array([MVO, INFARCT, MYOCARDIUM, BACKGROUND], dtype=np.uint8)
    mask = classes[np.argmax([mvo, rim, muscle, 1.0 - mvo - rim - muscle], axis=0)]
    if heart.core.any() and not np.any(mask == MVO):
        mask.reshape(-1)[np.argmax(mvo)] = MVO
    return mask
