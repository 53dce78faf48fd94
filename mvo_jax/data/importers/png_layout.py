"""The PNG layout of the released code: ``<case>_FF_input.png`` and one ``<case>_FF_gt.png``.

FF is the frame in two digits or more; frames are taken in that order, the frame of the mask is the
key frame. Mask values 0 background, 1 infarct, 2 MVO, 3 myocardium, 255 ignored (taken as
background). Inputs and masks may lie in one folder or in two (``img_dir``, ``ann_dir``), at any
depth.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import (
    Importer,
    Options,
    Series,
    check_size,
    map_mask,
    note_of_values,
    printable,
    reading,
    square_pixel,
)
from mvo_jax.data.importers.walk import files_below
from mvo_jax.data.names import composed
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

_FILE = re.compile(r"(.+)_(\d+)_(input|gt)\.(?i:png)")
_VALUES = {0: 0, 1: 1, 2: 2, 3: 3, 255: 0}


def recognise(source: Path) -> bool:
    """A folder with a file that is named so."""
    return source.is_dir() and any(_FILE.fullmatch(p.name) for p in files_below(source))


def find(source: Path, options: Options) -> Iterator[Series]:
    """One series a case, with or without a mask."""
    del options
    inputs: dict[str, dict[int, Path]] = {}
    masks: dict[str, list[Path]] = {}
    twice: dict[str, tuple[Path, Path]] = {}
    for path in files_below(source):
        match = _FILE.fullmatch(composed(path.name))
        if match is None:
            continue
        case, frame = match[1], int(match[2])
        if match[3] == "gt":
            masks.setdefault(case, []).append(path)
        elif frame in inputs.setdefault(case, {}):
            twice[case] = path, inputs[case][frame]
        else:
            inputs[case][frame] = path
    for case in sorted(inputs.keys() | masks.keys()):
        frames, of_case = inputs.get(case, {}), masks.get(case, [])
        detail = {"frames": frames, "masks": of_case, "twice": twice.get(case)}
        yield Series(case, [*frames.values(), *of_case][0], detail=detail)


def load(series: Series, options: Options) -> list[CineSlice]:
    """Read the frames and the mask of a case."""
    frames, masks = series.detail["frames"], series.detail["masks"]
    case, name = f"case {series.name}", printable(series.path)
    if series.detail["twice"]:
        one, other = (printable(path) for path in series.detail["twice"])
        raise UserError(
            f"{one} and {other} are the same frame of {case}", "give each case a name of its own"
        )
    if len(masks) > 1:
        cause = f"{printable(masks[1])}: {case} has {len(masks)} masks"
        raise UserError(cause, "keep one _gt.png a case")
    numbers = sorted(frames)
    if not numbers:
        cause = f"{name}: {case} has a mask and no _input.png"
        raise UserError(cause, "add the frames, or leave the mask out")
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if missing:
        cause = f"{name}: {case} lacks frames {missing[:8]}"
        raise UserError(cause, "add <case>_FF_input.png for every frame")
    images = [read_png(frames[n]) for n in numbers]
    if len({image.shape for image in images}) > 1:
        cause = f"{name}: frames of {case} differ in size"
        raise UserError(cause, "export all frames in one size")
    if len({image.dtype for image in images}) > 1:
        cause = f"{name}: frames of {case} have 8 bits and 16 bits"
        raise UserError(cause, "export all frames with the same number of bits")
    drawn: dict[str, Any] = {}
    if masks:
        stored = read_png(masks[0], is_mask=True)
        mask = map_mask(masks[0], stored, options.mask_values or _VALUES)
        if not options.mask_values and stored.any() and not mask.any():
            raise UserError(
                f"{printable(masks[0])} has no other value than 255, which this layout ignores",
                "say what it means, for example --mask_values 0=background,255=mvo",
            )
        notes = note_of_values(masks[0], [mask], options.mask_values)
        note = "; ".join((*notes, *_note_of_palette(masks[0])))
        drawn = {"lge_mask": mask, "note": note}
    pixel_mm = square_pixel(options.pixel_mm)
    return [series.slice(0, 1, cine=np.stack(images), pixel_mm=pixel_mm, **drawn)]


def read_png(path: Path, *, is_mask: bool = False) -> np.ndarray:
    """A grey image of 8 or 16 bits, ``[H, W]``.

    Args:
        path: of the file.
        is_mask: the numbers of a palette are labels; otherwise they stand for its greys.

    Raises:
        UserError: damaged, too large, or colour.
    """
    from PIL import Image

    with reading(path, " as PNG"), Image.open(path, formats=["PNG"]) as image:
        check_size(path, image.width * image.height)
        if image.mode == "LA":
            grey, opacity = image.split()
            # Of 16 bits the library would keep 8; the depth of bits stands at this place.
            if np.asarray(opacity).min() < 255 or path.read_bytes()[24] != 8:
                raise UserError(
                    f"{printable(path)} is a grey image with transparent pixels, or of 16 bits "
                    "with an opacity",
                    "export grey images without an alpha channel",
                )
            return np.asarray(grey)
        if image.mode not in ("L", "P", "1", "I;16", "I"):
            raise UserError(
                f"{printable(path)} is a colour image ({image.mode})", "export grey images"
            )
        if image.mode == "P" and is_mask:
            _check_palette(path, image)
        elif image.mode == "P":
            grey = np.asarray(image.convert("RGB"))
            if (grey.max(axis=-1) - grey.min(axis=-1)).any():
                cause = f"{printable(path)} is a colour image (its palette has colours)"
                raise UserError(cause, "export grey images")
            return grey[..., 0]
        pixels = np.asarray(image)
        return pixels.astype(np.uint8) if image.mode == "1" else pixels


def _note_of_palette(path: Path) -> tuple[str, ...]:
    """A note on the colours of a mask's numbers, by which other labels may have been meant."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode != "P":
            return ()
        numbers, first = np.unique(np.asarray(image), return_index=True)
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)[first]
    shown = (f"{n} #{bytes(c).hex()}" for n, c in zip(numbers, colours, strict=True))
    name = printable(path.name)
    return (f"{name}: the numbers of its palette are its labels ({', '.join(shown)})",)


def _check_palette(path: Path, image: Any) -> None:
    """Check that the numbers of a mask are in the order of the greys they are shown by.

    Colours, and greys that only spread the labels for display, say nothing else.

    Raises:
        UserError: they are not: some software orders a palette by how often each grey is there.
    """
    pixels = np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    numbers, first = np.unique(pixels, return_index=True)
    shown = colours.reshape(-1, 3)[first].astype(int)
    if (np.ptp(shown, axis=1) == 0).all() and (np.diff(shown[:, 0]) <= 0).any():
        raise UserError(
            f"{printable(path)} has the numbers {numbers.tolist()}, and its palette shows them as "
            f"the greys {shown[:, 0].tolist()}: which are the labels is not sure",
            "save the mask without a palette, as a grey image of its labels",
        )


PNG = Importer("png", "the released code's PNG layout", recognise, find, load)
