"""Pictures of cases: frames, masks, coarse maps and the beating heart, drawn with Pillow.

Nothing here imports matplotlib, which takes longer than reading a patient; no text of data is
drawn.
"""

import base64
import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mvo_jax.data.slices import Overview
from mvo_jax.data.splits import AnySplit
from mvo_jax.evaluation.predictions import Predictions

INK, MUTED = "#1a1f27", "#5b6470"
# LGE labels 0 background, 1 infarct, 2 MVO, 3 myocardium; the paper's Fig. 3 draws the
# myocardium blue and MVO white.
LGE_COLOURS = ("#000000", "#e69f00", "#ffffff", "#1f6fb4")
# Over a cine the blood is white too, so MVO takes another colour there.
OVERLAY_COLOURS = (*LGE_COLOURS[:2], "#d0006f", LGE_COLOURS[3])
BOX = "#f0e442"  # the paper's Fig. 3 marks MVO by yellow boxes
PANEL = 256  # width of a panel, pixels
_GAP = 6
# 18 evenly spaced colours of matplotlib's "inferno" (CC0).
_INFERNO = np.frombuffer(
    bytes.fromhex(
        "0000040a07221e0c45380962510e6c69166e801f6c982766b0315bc63d4dd94d3de9612bf47918fa9407"
        "fcb014f8cd37f2ea69fcffa4"
    ),
    np.uint8,
).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class CaseRecord:
    """One case of the gallery.

    Args:
        case_id: name; shown by the report, never drawn.
        video: uint8 [T, H, W], one heart beat; ValueError for another.
        label: 1 = MVO present; None where nobody knows.
        lge_mask: uint8 [H, W] with 0 background, 1 infarct, 2 MVO, 3 myocardium.
        coarse_target: float [m, m] in [0, 1].
        coarse_mask: float [m, m], the predicted map.
        role: why the case is shown, e.g. "most confident positive".
        source: where the clip was cut out of.
    """

    case_id: str
    video: np.ndarray
    label: int | None
    probability: float
    lge_mask: np.ndarray | None = None
    coarse_target: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None
    role: str = ""
    source: Overview | None = None

    def __post_init__(self):
        video = self.video
        if video.ndim != 3 or video.size == 0 or video.dtype != np.uint8:
            raise ValueError(
                f"case '{self.case_id}': video must be uint8 [T, H, W], "
                f"got {video.dtype} {video.shape}"
            )


class Pick(NamedTuple):
    """A case chosen for the gallery: its index in the predictions, and why."""

    index: int
    role: str


def pick_cases(predictions: Predictions, threshold: float) -> list[Pick]:
    """Best, worst and borderline case of either class, as in the paper's Fig. 3.

    Best has the probability farthest on the right side, worst farthest on the wrong side,
    borderline is nearest to the threshold of those left. Ties go to the earlier case. Fewer than
    six where a class is small; no case is shown twice.
    """
    picks = []
    for label, name in ((1, "positive"), (0, "negative")):
        members = np.flatnonzero(predictions.label == label)
        confidence = predictions.probability[members] * (1 if label else -1)
        order = [int(member) for member in members[np.argsort(-confidence, kind="stable")]]
        first, between, last = order[:1], order[1:-1], order[1:][-1:]
        distance = np.abs(predictions.probability[between] - threshold)
        nearest = [between[int(np.argmin(distance))]] if between else []
        roles = (("most confident", first), ("borderline", nearest), ("worst", last))
        picks += [Pick(index, f"{role} {name}") for role, found in roles for index in found]
    return picks


def gallery(split: AnySplit, predictions: Predictions, threshold: float) -> list[CaseRecord]:
    """The cases of a predicted split that ``pick_cases`` picks, with their images."""
    masks, targets = predictions.coarse_mask, predictions.coarse_target
    picked = pick_cases(predictions, threshold)
    clips = split.read([i for i, _ in picked])
    return [
        CaseRecord(
            case_id=split.case_id[i],
            video=clips["video"][row, ..., 0],
            label=int(split.label[i]),
            probability=float(predictions.probability[i]),
            lge_mask=clips["lge_mask"][row],
            coarse_target=None if targets is None else targets[i],
            coarse_mask=None if masks is None else masks[i],
            role=role,
        )
        for row, (i, role) in enumerate(picked)
    ]


def key_frames(video: np.ndarray) -> tuple[int, int, int]:
    """The first frame of a uint8 [T, H, W], halfway, and the most different one: (0, half, most).

    Simulated and most triggered clips start near end-diastole, and these are then diastole,
    mid-systole and systole; nothing says so of a clip of unknown origin. The most different frame
    is sought in the first two thirds, after a 2x2 average against noise.
    """
    frames = len(video)
    even = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2].astype(np.float64)
    if even.size:
        even = even.reshape(frames, even.shape[1] // 2, 2, even.shape[2] // 2, 2).mean((2, 4))
        distance = np.abs(even - even[0]).mean(axis=(1, 2))[: max(1, 2 * frames // 3)]
        most = int(np.argmax(distance))
    else:
        most = frames // 3
    return 0, most // 2, most


def case_picture(record: CaseRecord, *, map_maximum: float = 1.0) -> Image.Image:
    """One row as in the paper's Fig. 3: cine frames, LGE mask, target and predicted coarse map.

    A frame of the source with the outline of the crop comes first. Panels whose data the record
    lacks are left out; each is RGB, ``PANEL`` pixels wide. The yellow box holds the MVO of the LGE
    mask. ``map_maximum`` is the predicted value drawn in the brightest colour, one for all cases
    shown; the target always runs from 0 to 1.
    """
    frames, mask = key_frames(record.video), record.lge_mask
    beat = _enlarged(record.video[list(frames)], PANEL, limits=_grey_limits(record.video))
    panels = []
    if record.source is not None:
        tall, wide = record.source.image.shape
        panels.append(_Panel("Source and crop", f"{wide} x {tall} pixels", _crop(record.source)))
    titles = ("First frame", "Halfway", "Largest change")
    for frame, image, title in zip(frames, beat, titles, strict=True):
        panels.append(_Panel(title, f"frame {frame}", _box_mvo(image.copy(), mask)))
    if mask is not None:
        image = _painted(mask, LGE_COLOURS, 255).convert("RGB")
        image = image.resize(beat[0].size, Image.Resampling.NEAREST)
        panels.append(_Panel("LGE mask", "", _box_mvo(image, mask)))
    for values, top, title in (
        (record.coarse_target, 1.0, "Coarse target"),
        (record.coarse_mask, map_maximum, "Predicted map"),
    ):
        if values is not None:
            image = _laid_over(beat[0], _map_image(values, top))
            if values is record.coarse_mask:
                image = _box_mvo(image, mask)
            panels.append(_Panel(title, f"max {float(np.max(values)):.2f}", image))
    return _in_a_row(panels)


class _Panel(NamedTuple):
    title: str
    note: str
    image: Image.Image


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow


def _in_a_row(panels: list[_Panel]) -> Image.Image:
    """The panels side by side, each between its title and its note."""
    above, below = 34, 28
    height = max(panel.image.height for panel in panels)
    width = len(panels) * (PANEL + _GAP) - _GAP
    row = Image.new("RGB", (width, above + height + below), "white")
    draw = ImageDraw.Draw(row)
    for i, (title, note, image) in enumerate(panels):
        left = i * (PANEL + _GAP)
        middle, bottom = left + PANEL / 2, above + image.height + 4
        draw.text((middle, 4), title, INK, _font(23), anchor="ma")
        draw.text((middle, bottom), note, MUTED, _font(19), anchor="ma")
        row.paste(image, (left, above))
    return row


def map_maximum(maps: Iterable[np.ndarray]) -> float:
    """One brightest value for several predicted maps, so that these can be compared."""
    return max([0.05, *(float(np.max(value)) for value in maps)])


def _map_image(value: np.ndarray, maximum: float) -> Image.Image:
    """A coarse map as RGBA to lay over an image, one pixel a block.

    Opacity follows the value: the anatomy stays visible where the map is empty.
    """
    scaled = np.clip(np.asarray(value, np.float64) / max(maximum, 1e-6), 0, 1)
    at = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(scaled, at, _INFERNO[:, i]) for i in range(3)]
    rgba = np.stack([*channels, 255 * 0.95 * np.sqrt(scaled)], axis=-1)
    return Image.fromarray(np.round(rgba).astype(np.uint8))


def _laid_over(image: Image.Image, over: Image.Image) -> Image.Image:
    """A copy of the image under another one, whose pixels stay squares."""
    both = image.copy()
    over = over.resize(image.size, Image.Resampling.NEAREST)
    both.paste(over, (0, 0), over)
    return both


def _painted(lge_mask: np.ndarray, colours: tuple[str, ...], opacity: int) -> Image.Image:
    """An LGE mask as RGBA in the given colours."""
    table = np.full((256, 4), (255, 0, 255, 255), np.uint8)  # what means nothing must be seen
    table[: len(colours)] = [(*ImageColor.getrgb(colour), opacity) for colour in colours]
    if opacity < 255:
        table[0, 3] = 0
    return Image.fromarray(table[lge_mask])


def _crop(source: Overview) -> Image.Image:
    """The source with the outline of the crop, which may reach beyond it."""
    height, width = source.image.shape
    left, top = min(0.0, source.left), min(0.0, source.top)
    across, down = max(width, source.right) - left, max(height, source.bottom) - top
    scale = PANEL / across
    image = Image.new("RGB", (PANEL, max(1, round(down * scale))), "white")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(source.image).resize(size, Image.Resampling.BICUBIC)
    image.paste(small, (round(-left * scale), round(-top * scale)))
    box = source.left - left, source.top - top, source.right - left, source.bottom - top
    return _outlined(image, [scale * edge for edge in box])


def _box_mvo(image: Image.Image, lge_mask: np.ndarray | None) -> Image.Image:
    """The image with a yellow box around the MVO of the mask, if there is any."""
    if lge_mask is None or not (lge_mask == 2).any():
        return image
    where = np.argwhere(lge_mask == 2)[:, ::-1]  # (column, row)
    scale = np.array(image.size) / lge_mask.shape[::-1]
    margin = 1.5  # pixels of the mask
    low, high = (where.min(axis=0) - margin) * scale, (where.max(axis=0) + 1 + margin) * scale
    return _outlined(image, [*low, *high])


def _outlined(image: Image.Image, box: list[float]) -> Image.Image:
    """A yellow box, given by its left, upper, right and lower edge, drawn inside the image."""
    left, top, right, bottom = (round(edge) for edge in box)
    corners = max(0, left), max(0, top), min(image.width, right) - 1, min(image.height, bottom) - 1
    ImageDraw.Draw(image).rectangle(corners, outline=BOX, width=2)
    return image


def _grey_limits(video: np.ndarray) -> tuple[float, float]:
    """Grey values drawn black and white: half a percent lies outside at either end."""
    low, high = np.percentile(video, (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1)


def _enlarged(
    video: np.ndarray, side: int, *, limits: tuple[float, float] | None = None
) -> list[Image.Image]:
    """Frames as RGB, ``side`` pixels wide."""
    low, high = limits or _grey_limits(video)
    table = np.round(255 * np.clip((np.arange(256) - low) / (high - low), 0, 1)).astype(np.uint8)
    size = side, max(1, round(side * video.shape[1] / video.shape[2]))
    return [
        Image.fromarray(table[frame]).resize(size, Image.Resampling.BICUBIC).convert("RGB")
        for frame in video
    ]


def masked_frame(video: np.ndarray, lge_mask: np.ndarray | None, *, side: int) -> Image.Image:
    """The first frame, ``side`` pixels wide, with the LGE mask ``[H, W]`` laid over it."""
    (image,) = _enlarged(video[:1], side, limits=_grey_limits(video))
    if lge_mask is not None:
        image = _laid_over(image, _painted(lge_mask, OVERLAY_COLOURS, 140))
    return image


def animation(
    video: np.ndarray,
    coarse_mask: np.ndarray | None = None,
    *,
    map_maximum: float = 1.0,
    side: int = PANEL,
) -> bytes:
    """The beat, uint8 ``[T, H, W]``, as an animated WebP; beside it with a map ``[m, m]``.

    ``map_maximum`` is drawn in the brightest colour, an image is ``side`` pixels wide.
    """
    frames = _enlarged(video, side)
    if coarse_mask is not None:
        over = _map_image(coarse_mask, map_maximum)
        for i, plain in enumerate(frames):
            both = Image.new("RGB", (2 * plain.width + _GAP, plain.height), "white")
            both.paste(plain, (0, 0))
            both.paste(_laid_over(plain, over), (plain.width + _GAP, 0))
            frames[i] = both
    # A third of the time and half the bytes of a GIF, three grey levels of 256 from the frames. One
    # key frame (kmax): nobody seeks in a second.
    options = {"quality": 75, "method": 1, "kmax": 0, "duration": max(1, round(1000 / len(frames)))}
    return _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], loop=0, **options)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """The image as a PNG."""
    return _saved(image, "PNG", compress_level=3)  # 6 takes three times as long for a tenth


def webp(image: Image.Image) -> bytes:
    """The image as a WebP: a sixth of the PNG, for a page that holds it."""
    return _saved(image, "WEBP", quality=85, method=2)


def data_uri(content: bytes, kind: str) -> str:
    """A picture as a ``data:`` address; ``kind`` is 'png' or 'webp'."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
