"""The PNG layout of the released code: ``<case>_FF_input.png`` and one ``<case>_FF_gt.png``.

FF is the frame, in two digits or more. Mask values 0 background, 1 infarct, 2 MVO, 3 myocardium,
255 ignored (taken as background). Inputs and masks may lie in one folder or in two (``img_dir``,
``ann_dir``), at any depth.
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
from mvo_jax.data.importers.walk import fault, files_below
from mvo_jax.data.names import composed
from mvo_jax.data.slices import CineSlice

_FILE = re.compile(r"(.+)_(\d+)_(input|gt)\.(?i:png)")
_VALUES = {0: 0, 1: 1, 2: 2, 3: 3, 255: 0}


def recognise(source: Path) -> bool:
    """A folder with a file that is named so."""
    return source.is_dir() and any(_FILE.fullmatch(p.name) for p in files_below(source))


def find(source: Path, _: Options) -> Iterator[Series]:
    """One series a case, with or without a mask."""
    inputs: dict[str, dict[int, Path]] = {}
    masks: dict[str, list[Path]] = {}
    twice: dict[str, tuple[Path, Path]] = {}
    for path in files_below(source):
        if (match := _FILE.fullmatch(composed(path.name))) is None:
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
    frames, masks, twice = (series.detail[key] for key in ("frames", "masks", "twice"))
    case, numbers = f"case {series.name}", sorted(frames)
    if twice:
        says = f" and {printable(twice[1])} are the same frame of {case}"
        raise fault(twice[0], says, "give each case a name of its own")
    if len(masks) > 1:
        raise fault(masks[1], f": {case} has {len(masks)} masks", "keep one _gt.png a case")
    if not numbers:
        remedy = "add the frames, or leave the mask out"
        raise fault(series.path, f": {case} has a mask and no _input.png", remedy)
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if missing:
        remedy = "add <case>_FF_input.png for every frame"
        raise fault(series.path, f": {case} lacks frames {missing[:8]}", remedy)
    images = [read_png(frames[n]) for n in numbers]
    if len({image.shape for image in images}) > 1:
        says = f": frames of {case} differ in size"
        raise fault(series.path, says, "export all frames in one size")
    if len({image.dtype for image in images}) > 1:
        says = f": frames of {case} have 8 bits and 16 bits"
        raise fault(series.path, says, "export all frames with the same number of bits")
    drawn: dict[str, Any] = {}
    if masks:
        stored = read_png(masks[0], is_mask=True)
        mask = map_mask(masks[0], stored, options.mask_values or _VALUES)
        if not options.mask_values and stored.any() and not mask.any():
            remedy = "say what it means, for example --mask_values 0=background,255=mvo"
            raise fault(masks[0], " has no other value than 255, which this layout ignores", remedy)
        notes = note_of_values(masks[0], [mask], options.mask_values)
        drawn = {"lge_mask": mask, "note": "; ".join((*notes, *_note_of_palette(masks[0])))}
    pixel_mm = square_pixel(options.pixel_mm)
    return [series.slice(0, 1, cine=np.stack(images), pixel_mm=pixel_mm, **drawn)]


def read_png(path: Path, *, is_mask: bool = False) -> np.ndarray:
    """A grey image of 8 or 16 bits, ``[H, W]``; the numbers of a mask's palette are its labels.

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
                says = " is a grey image with transparent pixels, or of 16 bits with an opacity"
                raise fault(path, says, "export grey images without an alpha channel")
            return np.asarray(grey)
        if image.mode not in ("L", "P", "1", "I;16", "I"):
            raise fault(path, f" is a colour image ({image.mode})", "export grey images")
        if image.mode == "P" and is_mask:
            _check_palette(path, image)
        elif image.mode == "P":
            grey = np.asarray(image.convert("RGB"))
            if np.ptp(grey, axis=-1).any():
                says = " is a colour image (its palette has colours)"
                raise fault(path, says, "export grey images")
            return grey[..., 0]
        pixels = np.asarray(image)
        return pixels.astype(np.uint8) if image.mode == "1" else pixels


def _shown(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of an image with a palette, and the colour of each, ``[N, 3]``."""
    numbers, first = np.unique(np.asarray(image), return_index=True)
    return numbers, np.asarray(image.convert("RGB")).reshape(-1, 3)[first]


def _note_of_palette(path: Path) -> tuple[str, ...]:
    """A note on the colours of a mask's numbers, by which other labels may have been meant."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode != "P":
            return ()
        colours = zip(*_shown(image), strict=True)
    listed = ", ".join(f"{number} #{bytes(colour).hex()}" for number, colour in colours)
    return (f"{printable(path.name)}: the numbers of its palette are its labels ({listed})",)


def _check_palette(path: Path, image: Any) -> None:
    """Check that the numbers of a mask are in the order of the greys, if any, they are shown by.

    Some software orders a palette by how often each grey is there.
    """
    numbers, colours = _shown(image)
    if not np.ptp(colours, axis=1).any() and (np.diff(colours[:, 0].astype(int)) <= 0).any():
        says = f" has the numbers {numbers.tolist()}, and its palette shows them as the greys "
        says += f"{colours[:, 0].tolist()}: which are the labels is not sure"
        raise fault(path, says, "save the mask without a palette, as a grey image of its labels")


PNG = Importer("png", "the released code's PNG layout", recognise, find, load)
