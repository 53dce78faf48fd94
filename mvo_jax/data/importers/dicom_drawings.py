"""What is drawn on the images of a DICOM folder: a mask beside it, segmentations, contours.

Contours of cvi42 on late enhancement are the myocardium and the MVO, without the infarct, which is
no contour but the result of a threshold.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mvo_jax.data.importers import cvi42
from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.contours import fill
from mvo_jax.data.importers.cvi42 import Contour
from mvo_jax.data.importers.dicom_files import grouped, late_enhancement
from mvo_jax.data.importers.dicom_headers import MIN_PHASES, Image
from mvo_jax.data.importers.dicom_seg import drawn_on, read_seg
from mvo_jax.data.importers.dicom_stack import Stack
from mvo_jax.data.importers.mask_files import read_mask
from mvo_jax.data.importers.sheets import even_grid
from mvo_jax.data.importers.volume import Volume, oriented_volume
from mvo_jax.data.labels import BACKGROUND, CAVITY, INFARCT, MVO, MYOCARDIUM, WALL
from mvo_jax.data.slices import Rejected
from mvo_jax.errors import UserError

_SAME_PLACE_MM = 0.5  # as slices of the cine are told apart
# What lies inside a contour; where several do, the later one counts.
_ANATOMY = {cvi42.EPICARDIUM: WALL, cvi42.ENDOCARDIUM: CAVITY}
_ON_LGE = {cvi42.EPICARDIUM: MYOCARDIUM, cvi42.ENDOCARDIUM: BACKGROUND, cvi42.NO_REFLOW: MVO}

_Drawn = tuple[Image, list[Contour]]


@dataclasses.dataclass
class Drawings:
    """What is drawn, and what of it is not read."""

    mask: Volume | None = None  # of the LGE, in the project's values
    # Slice -> frame -> uint8 [H, W] as displayed, 1 cavity, 2 myocardium.
    anatomy: dict[int, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    # Segmentations that cannot be read, and MVO on images which are not there.
    unplaced: list[Rejected] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def read_drawings(series: Series, options: Options, stack: Stack) -> Drawings:
    """The drawings of a patient; ``mask`` and ``workspace`` of ``series.detail`` are files beside.

    Raises:
        UserError: a file that cannot be read, or several masks of one LGE.
    """
    out = Drawings()
    named, workspace = series.detail.get("mask"), series.detail.get("workspace")
    if named is not None and cvi42.is_workspace(named):
        named, workspace = None, named
    masks: list[tuple[Path, Volume]] = []
    if named is not None:
        masks.append((named, read_mask(named, options)))
    if workspace is not None:
        out = _contours(series, workspace, stack)
        if out.mask is not None:
            masks.append((workspace, out.mask))
    segmentations = {image.path for image in stack.account.images if image.modality == "SEG"}
    for path in sorted(segmentations - {named}):
        _note_frame(path, (i for i in stack.account.images if i.path == path), stack, out)
        try:
            masks.append((path, _segmentation(path, series, options, stack)))
        except UserError as error:  # nobody named it: it may be of something else
            remedy = f"{error.remedy}; or take it out of the folder"
            lost = series.rejected(error.cause, remedy, part=f"_{path.stem}", source=path)
            out.unplaced.append(lost)
    if len(masks) > 1:
        listed = ", ".join(printable(path.name) for path, _ in masks)
        cause = f"{printable(series.path)} has {len(masks)} drawings of the LGE: {listed}"
        raise UserError(cause, "leave one of them in the source")
    out.mask = masks[0][1] if masks else None
    return out


def _segmentation(path: Path, series: Series, options: Options, stack: Stack) -> Volume:
    """A segmentation of the folder; one of the cine is refused: its muscle says nothing of MVO."""
    out = read_seg(path, options.mask_values)
    cine = {image.series for one in stack.slices for image in one.images}
    if not np.isin(out.data, (INFARCT, MVO)).any() and drawn_on(path) & cine:
        name = f"{printable(series.name)}_lge_mask.dcm"
        raise UserError(
            f"{printable(path)} is drawn on the cine and has neither MVO nor infarct: it is no "
            "drawing of the LGE",
            f"if it is one, name it {name} and put it beside the folder",
        )
    return out


def _contours(series: Series, workspace: Path, stack: Stack) -> Drawings:
    """The contours of a workspace on the images of the folder."""
    drawn = cvi42.read_workspace(workspace)
    names = Counter(c.name for contours in drawn.values() for c in contours)
    unknown = {name: n for name, n in names.items() if name not in cvi42.KNOWN}
    listed = ", ".join(f"{printable(name)} ({n})" for name, n in sorted(unknown.items()))
    if len(unknown) == len(names):
        cause = f"{printable(workspace)} has no contour that is known; there are {listed or 'none'}"
        raise UserError(cause, f"known are {', '.join(cvi42.KNOWN)}")
    out = Drawings()
    if unknown:
        out.notes.append(f"{printable(workspace.name)}: contours that are not read: {listed}")
    images = grouped(stack.account.images, lambda image: image.uid)
    phases = {i.uid: (z, t) for z, cine in stack.sound.items() for t, i in enumerate(cine)}
    on_lge: list[_Drawn] = []
    lost, without_image = 0, []

    def row(uid: str, cause: str, remedy: str) -> Rejected:
        part, cause = f"_lge_{printable(uid)[-12:]}", f"{printable(workspace)}: {cause}"
        return series.rejected(cause, remedy, part=part, source=workspace)

    for uid, contours in drawn.items():
        there = images.get(uid, [])
        doubtful = next((c.name for c in contours if c.may_be_mvo), None)
        has_mvo = any(c.name == cvi42.NO_REFLOW for c in contours)
        if doubtful is not None:  # without it the slice would say that there is none
            cause = f"{printable(doubtful)} may be MVO and is not read"
            unused = f"nothing that is drawn on {printable(uid)} is used"
            out.unplaced.append(row(uid, cause, f"known is {cvi42.NO_REFLOW}; {unused}"))
        elif len(there) == 1 and uid in phases and not has_mvo:
            z, t = phases[uid]
            mask = _drawn(contours, there[0], _ANATOMY)
            if mask.any():
                out.anatomy.setdefault(z, {})[t] = there[0].shown(mask)
        elif len(there) == 1 and _is_lge(there[0], contours, stack.account.images):
            on_lge.append((there[0], contours))
        elif has_mvo:
            why = "an image that is not in the folder"
            if there:
                what = "a cine image" if len(there) == 1 else "a file of several images"
                why = f"{what} ({there[0].name})"
            cause = f"MVO is drawn on {why}, {printable(uid)}"
            of = "the LGE images that belong to the workspace"
            without_image.append(row(uid, cause, f"put {of} into the folder, one image a file"))
        else:
            lost += any(c.name in cvi42.KNOWN for c in contours)
    out.unplaced += without_image
    if lost:
        where = f"{lost} images that are not used or not in the folder"
        out.notes.append(f"{printable(workspace.name)}: contours on {where}")
    if on_lge:
        _note_frame(workspace, (image for image, _ in on_lge), stack, out)
        out.mask = _lge_mask(workspace, on_lge, stack.account.images)
    return out


def _note_frame(path: Path, drawn_on: Iterable[Image], stack: Stack, out: Drawings) -> None:
    """Tell of drawings whose coordinates may not be those of the cine."""
    own = {image.frame_of_reference for one in stack.slices for image in one.images} - {""}
    if own and {image.frame_of_reference for image in drawn_on} - {"", *own}:
        out.notes.append(
            f"{printable(path.name)} has another frame of reference than the cine (was the patient "
            "moved?): it is placed by its coordinates all the same"
        )


def _is_lge(image: Image, contours: Sequence[Contour], images: Sequence[Image]) -> bool:
    """Whether an image is late enhancement: by its name, its contours, or as a still."""
    if late_enhancement(image) or any(c.name in cvi42.ON_LGE for c in contours):
        return True
    here, there = image.distance, [i.distance for i in images if i.series == image.series]
    same = [mm for mm in there if mm is None or here is None or abs(mm - here) < _SAME_PLACE_MM]
    return len(same) < MIN_PHASES


def _drawn(contours: Sequence[Contour], image: Image, values: Mapping[str, int]) -> np.ndarray:
    """The value of the last of the names inside whose contours a pixel lies, uint8 ``[H, W]``."""
    out = np.zeros(image.shape, np.uint8)
    for name, value in values.items():
        for contour in contours:
            if contour.name == name:
                out[fill(contour.points, image.shape)] = value
    return out


def _lge_mask(workspace: Path, drawn: Sequence[_Drawn], images: Sequence[Image]) -> Volume:
    """Myocardium and MVO of the late enhancement, on the stack of those images."""
    firsts = [image for image, _ in drawn]
    series = {image.series: image.name for image in firsts}
    if len(series) > 1:
        names = ", ".join(sorted(series.values()))
        cause = f"{printable(workspace)} has drawings on several LGE series: {names}"
        remedy = "leave one of those series in the folder, or export only its contours"
        raise UserError(cause, remedy)
    planes = [image.plane for image in firsts if image.plane is not None]
    if len(planes) < len(firsts):
        cause = f"{printable(workspace)}: the LGE images it is drawn on do not say where they lie"
        raise UserError(cause, "export them again with ImagePositionPatient")
    # Slices without a drawing belong to the stack: they tell how far its slices are apart.
    of_stack = (i for i in images if i.series in series and i.shape == firsts[0].shape)
    others = [i.plane for i in of_stack if i.plane is not None]
    try:
        affine, numbers = even_grid(workspace, [*planes, *others])
    except UserError:
        affine, numbers = even_grid(workspace, planes)
    out = np.zeros((max(numbers) + 1, *firsts[0].shape), np.uint8)
    for z, (image, contours) in zip(numbers, drawn, strict=False):
        if out[z].any():
            cause = f"{printable(workspace)}: two images of one place have drawings"
            raise UserError(cause, "export the contours of one of them")
        out[z] = _drawn(contours, image, _ON_LGE)
    return oriented_volume(workspace, out[None], affine, oriented=True)
