"""One slice on its way: as scanned (importers), as trained on and shown (cohorts, clips, pages).

``Slice`` says which slice it is: ``CineSlice`` adds what lies in the source, ``Clip`` what was made
of it. A ``Target`` says what clips become, a ``Window`` where one was cut out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mvo_jax.data.labels import has_mvo
from mvo_jax.errors import UserError

MIN_FRAMES = 8  # fewer cannot show a heart beat
MIN_PIXELS = 16
PIXEL_MM = (0.2, 6.0)
# Version of the rule by which images are turned, see importers/orientation.py; cohorts and runs
# carry it. 1: rows and columns as stored, only reversed. 2: rows, columns and slices by the affine.
# 3: so too of images that are read one by one, as DICOM.
ORIENTATION_RULE = 3
# Version of what places crops where nothing is drawn or given, carried alike. 0: the motion of the
# heart. From 1: the network of data/locator, and motion, flagged, where that is unsure. 2: weights
# of more training; those of 1 are no longer here.
LOCATOR = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a source, one object for its slices: where a result is written back to."""

    shape: tuple[int, ...]  # (X, Y, Z) as stored
    affine: np.ndarray  # float ``[4, 4]`` of these to RAS mm
    order: tuple[int, int, int] = (0, 1, 2)  # stored axis shown as columns, rows and slices
    flips: tuple[bool, bool, bool] = (False, False, False)  # which of these are then reversed
    oriented: bool = True  # whether the source states where it lies

    @property
    def is_plain(self) -> bool:
        """Whether it is shown as it is stored."""
        return (self.order, self.flips) == ((0, 1, 2), (False, False, False))

    def __str__(self) -> str:
        """What was done to the stored axes, as "columns -Y, rows +X, slices +Z"."""
        if self.is_plain:
            return "as stored" if self.oriented else "as stored: it says nothing"
        shown = zip(("columns", "rows", "slices"), self.order, self.flips, strict=True)
        return ", ".join(
            f"{name} {'-' if flip else '+'}{'XYZ'[axis]}" for name, axis, flip in shown
        )

    def stored(self, planes: Mapping[int, np.ndarray]) -> np.ndarray:
        """A float32 volume on these voxels: slice as shown -> ``[H, W]``; the others become 0."""
        shown = np.zeros([self.shape[axis] for axis in self.order], np.float32)
        for z, plane in planes.items():
            shown[..., z] = plane.T
        shown = np.flip(shown, tuple(axis for axis, flip in enumerate(self.flips) if flip))
        return np.ascontiguousarray(shown.transpose(np.argsort(self.order)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Which slice it is."""

    case_id: str  # unique in its source
    patient_id: str  # slices of one patient share it
    slice_index: int  # 0-based position in the stack
    source: str  # file or folder it came from, for messages and the manifest
    note: str = ""  # what a user should know: what was left out or taken for granted
    # Its images: ``used``, or why not -> how many; empty of formats that hold one cine a file.
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drawn_on: str = ""  # which slices of the LGE it has its mask from, for the page
    grid: Grid | None = None  # voxels of the source; None where it has no place in space
    plane: int = 0  # number of the slice in ``grid``, as shown

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of ``Slice``, for the record of the next stage."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Slice)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CineSlice(Slice):
    """One short-axis slice over one heart beat, as it lies in the source.

    Rows run down and columns to the right as the image is displayed.
    """

    cine: np.ndarray  # ``[T, H, W]``, any real dtype, in time order, evenly spaced over one beat
    pixel_mm: tuple[float, float] | None  # (row, column); None where the format does not say
    # uint8 ``[H, W]`` on the grid of the cine: 0 background, 1 infarct, 2 MVO, 3 myocardium.
    lge_mask: np.ndarray | None = None
    # Of the mask as drawn, before resampling; read from ``lge_mask`` where it is not given.
    has_mvo: bool | None = None
    # Annotated source frames -> uint8 ``[H, W]``: 0 background, 1 LV cavity, 2 LV myocardium.
    anatomy: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    centre: tuple[float, float] | None = None  # (row, column) of the crop, given by the user
    end_diastole: int | None = None  # 0-based frame
    position_mm: float | None = None  # along the normal of the slice; None where unknown
    label: int | None = None  # what a table says of this very slice
    orientation_rule: int = 1  # first version of the rule under which it looks so
    unplaced: tuple["Rejected", ...] = ()  # drawings of the LGE that lie on no slice of the cine
    refusal: tuple[str, str] | None = None  # (cause, remedy) of one without use; no ``cine``

    def __post_init__(self):
        if self.has_mvo is None and self.lge_mask is not None:
            object.__setattr__(self, "has_mvo", has_mvo(self.lge_mask))


@dataclasses.dataclass(frozen=True)
class Target:
    """What every prepared clip has in common.

    Raises:
        UserError: a number out of range.
    """

    frames: int = 30  # over the beat
    image_size: int = 64  # pixels along each side
    spacing_mm: float = 2.0  # side of a pixel
    window: tuple[float, float] | None = None  # grey to 0 and 255; None: each clip's percentiles
    end_diastole_first: bool = False  # roll the cycle so that it starts there
    orientation: int = ORIENTATION_RULE
    locator: int = LOCATOR

    def __post_init__(self):
        for name, value, low, high in (
            ("frames", self.frames, MIN_FRAMES, 256),
            ("image_size", self.image_size, MIN_PIXELS, 512),
            ("spacing_mm", self.spacing_mm, *PIXEL_MM),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"{name} is {value}, which no cine has", f"give {name} of {low} to {high}"
                )
        for did, what, version, least, known in (
            ("images were turned", "orientation rule", self.orientation, 1, ORIENTATION_RULE),
            ("crops were placed", "locator", self.locator, 0, LOCATOR),
        ):
            if not least <= version <= known:
                raise UserError(
                    f"{did} by version {version} of the {what}, this version of mvo_jax knows "
                    f"{known}",
                    "use the version of mvo_jax that prepared or trained it, or a newer one",
                )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise UserError(f"the window {self.window} is empty", "give the lower grey value first")


@dataclasses.dataclass(frozen=True)
class Window:
    """The square of the source that becomes the crop.

    Output pixel k covers source pixels ``start + k * step`` to ``start + (k + 1) * step``, counted
    from the outer edge of pixel 0.
    """

    start: tuple[float, float]  # (row, column)
    step: tuple[float, float]  # source pixels an output pixel, (row, column)
    size: int  # output pixels along each side
    centre_from: str  # given, mask, contours, locator, motion or whole image
    # Of the locator, 0 to 1, also where motion was taken because it is low; None: it was not asked.
    confidence: float | None = None

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``[..., 2]`` of the source (row, column; centres are integers) in the crop."""
        return (np.asarray(points) + 0.5 - np.array(self.start)) / np.array(self.step) - 0.5

    def to_source(self, points: np.ndarray) -> np.ndarray:
        """The inverse of ``to_crop``."""
        return (np.asarray(points) + 0.5) * np.array(self.step) + np.array(self.start) - 0.5


class Overview(NamedTuple):
    """A frame of the source, uint8 ``[H, W]``, and the crop's edges from the edge of pixel 0."""

    image: np.ndarray
    top: float
    left: float
    bottom: float
    right: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Slice):
    """A slice in the geometry of a model: what is stored, trained on, predicted and shown."""

    video: np.ndarray  # uint8 ``[T, H, W, 1]``
    lge_mask: np.ndarray | None  # uint8 ``[H, W]``; None where nothing is drawn
    label: int  # 1 MVO, 0 none, -1 unlabelled; of the mask before resampling and cropping
    spacing_mm: float | None  # side of a pixel; None where the source does not say
    source_frames: int  # phases in the source
    # Source frame -> uint8 ``[H, W]``, 1 LV cavity, 2 LV myocardium.
    anatomy: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    window: Window | None = None  # where the crop lies in the source; None where nobody knows
    first_frame: int = 0  # source frame (0-based) that the clip starts at
    intensity: tuple[float, float] | None = None  # grey to 0 and 255; None of stored clips
    source_pixels: str = ""  # hash before crop and grey scale; empty of stored clips
    split: str | None = None  # stored split of a cohort; None of other sources
    overview: Overview | None = None  # the source around; None of cohorts, which store crops only

    @property
    def centre_from(self) -> str | None:
        """What placed the crop, see ``Window``; None where nobody knows."""
        return None if self.window is None else self.window.centre_from

    @property
    def confidence(self) -> float | None:
        """Of the locator, see ``Window``."""
        return None if self.window is None else self.window.confidence

    @property
    def needs_review(self) -> bool:
        """Whether the locator was not sure of the ventricle, so that its motion placed the crop."""
        return self.centre_from == "motion"


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A case that could not be prepared, and why: a row of ``rejected.csv``."""

    case_id: str
    patient_id: str
    source: str
    cause: str
    remedy: str
    images: int = 0  # that were found and are not used for it
