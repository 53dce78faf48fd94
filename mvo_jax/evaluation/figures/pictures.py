"""Pictures of cases: frames, masks, coarse maps, film strips and animations.

As in ``curves``: no pyplot, no global state, no text that comes from data.
"""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mvo_jax.data.slices import Overview
from mvo_jax.data.splits import AnySplit
from mvo_jax.evaluation.figures.curves import INK, MUTED
from mvo_jax.evaluation.predictions import Predictions

# LGE labels 0 background, 1 infarct, 2 MVO, 3 myocardium; the paper's Fig. 3 draws the
# myocardium blue and MVO white.
LGE_COLOURS = ("#000000", "#e69f00", "#ffffff", "#1f6fb4")
# Over a cine the blood is white too, so MVO takes another colour there.
OVERLAY_COLOURS = (*LGE_COLOURS[:2], "#d0006f", LGE_COLOURS[3])
BOX = "#f0e442"  # the paper's Fig. 3 marks MVO by yellow boxes


@dataclass(frozen=True, eq=False)
class CaseRecord:
    """One case of the gallery.

    Args:
        case_id: name; shown by the report, never drawn.
        video: uint8 [T, H, W], one heart beat.
        label: 1 = MVO present; None where nobody knows.
        probability: predicted probability of MVO.
        lge_mask: uint8 [H, W] with 0 background, 1 infarct, 2 MVO, 3 myocardium, or None.
        coarse_target: float [m, m] in [0, 1], or None.
        coarse_mask: float [m, m], the predicted map, or None.
        role: why the case is shown, e.g. "most confident positive".
        source: where the clip was cut out of, or None.

    Raises:
        ValueError: the video is not a non-empty uint8 [T, H, W].
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
        if not order:
            continue
        chosen = [Pick(order.pop(0), f"most confident {name}")]
        if order:
            chosen.append(Pick(order.pop(), f"worst {name}"))
        if order:
            distance = np.abs(predictions.probability[order] - threshold)
            nearest = order[int(np.argmin(distance))]
            chosen.insert(1, Pick(nearest, f"borderline {name}"))
        picks.extend(chosen)
    return picks


def gallery(split: AnySplit, predictions: Predictions, threshold: float) -> list[CaseRecord]:
    """The cases that ``pick_cases`` picks, with their images.

    Args:
        split: that was predicted.
        predictions: of it.
        threshold: decision threshold.
    """
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
    """The first frame, the one that differs most from it, and the one halfway: (0, half, most).

    Simulated and most triggered clips start near end-diastole, and these are then diastole,
    mid-systole and systole; nothing says so of a clip of unknown origin. The most different frame
    is sought in the first two thirds, after a 2x2 average against noise.

    Args:
        video: uint8 [T, H, W].
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


def case_figure(record: CaseRecord, *, map_maximum: float = 1.0) -> Figure:
    """One row as in the paper's Fig. 3: cine frames, LGE mask, target and predicted coarse map.

    A frame of the source with the outline of the crop comes first where it is known. Panels whose
    data the record lacks are left out. The yellow box holds the MVO of the LGE mask.

    Args:
        record: the case.
        map_maximum: predicted value drawn in the brightest colour; use one for all cases shown
            so that their colours compare. The target always runs from 0 to 1.
    """
    first, halfway, most = key_frames(record.video)
    cine = ((first, "First frame"), (halfway, "Halfway"), (most, "Largest change"))
    maps = (
        (record.coarse_target, 1.0, "Coarse target"),
        (record.coarse_mask, map_maximum, "Predicted map"),
    )
    maps = [one for one in maps if one[0] is not None]
    count = 3 + (record.source is not None) + (record.lge_mask is not None) + len(maps)
    figure = Figure(figsize=(1.62 * count, 2.02), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02)  # type: ignore[union-attr]
    panels = iter(figure.subplots(1, count, squeeze=False)[0])
    low, high = (float(value) for value in np.percentile(record.video, (0.5, 99.5)))
    grey: Any = {
        "cmap": "gray",
        "vmin": low,
        "vmax": max(high, low + 1),
        "interpolation": "bicubic",
    }
    height, width = record.video.shape[1:]
    place: Any = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5)}

    def panel(title: str, note: str = "") -> Axes:
        ax = next(panels)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(title, fontsize=9, color=INK, pad=4)
        if note:
            ax.set_xlabel(note, fontsize=8, color=MUTED, labelpad=2)
        return ax

    if record.source is not None:
        tall, wide = record.source.image.shape
        _draw_source(panel("Source and crop", f"{wide} x {tall} pixels"), record.source)
    for frame, title in cine:
        ax = panel(title, f"frame {frame}")
        ax.imshow(record.video[frame], **grey, **place)
        _box_mvo(ax, record.lge_mask, (height, width))
    if record.lge_mask is not None:
        ax, colours = panel("LGE mask"), ListedColormap(LGE_COLOURS)
        labels: Any = {"cmap": colours, "vmin": -0.5, "vmax": 3.5, "interpolation": "nearest"}
        ax.imshow(record.lge_mask, **labels, **place)
        _box_mvo(ax, record.lge_mask, (height, width))
    for values, top, title in maps:
        value = np.asarray(values, np.float64)
        ax = panel(title, f"max {value.max():.2f}")
        ax.imshow(record.video[first], **grey, **place)
        ax.imshow(map_colours(value, top), interpolation="nearest", **place)
        if values is record.coarse_mask:
            _box_mvo(ax, record.lge_mask, (height, width))
    return figure


def map_maximum(maps: Iterable[np.ndarray]) -> float:
    """One brightest value for several predicted maps, so that a negative's can be compared with a
    positive's.
    """
    return max([0.05, *(float(np.max(value)) for value in maps)])


def map_colours(value: np.ndarray, maximum: float) -> np.ndarray:
    """A coarse map as colours to lay over the image.

    Opacity follows the value: the anatomy stays visible where the map is empty.

    Args:
        value: float ``[m, m]``.
        maximum: value drawn in the brightest colour.

    Returns:
        float ``[m, m, 4]``: red, green, blue and opacity in [0, 1].
    """
    scaled = np.clip(value / max(maximum, 1e-6), 0, 1)
    colours = matplotlib.colormaps["inferno"](scaled)
    colours[..., 3] = 0.95 * np.sqrt(scaled)
    return colours


def _draw_source(ax: Axes, source: Overview) -> None:
    height, width = source.image.shape
    ax.imshow(source.image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    _outline(ax, source.left, source.top, source.right, source.bottom)
    # The crop may reach beyond a small image.
    ax.set_xlim(min(0, source.left) - 1, max(width, source.right))
    ax.set_ylim(max(height, source.bottom), min(0, source.top) - 1)


def _box_mvo(ax: Axes, lge_mask: np.ndarray | None, shape: tuple[int, int]) -> None:
    if lge_mask is None or not (lge_mask == 2).any():
        return
    rows, columns = np.nonzero(lge_mask == 2)
    tall, wide = shape[0] / lge_mask.shape[0], shape[1] / lge_mask.shape[1]
    margin = 1.5
    _outline(
        ax,
        columns.min() * wide - margin,
        rows.min() * tall - margin,
        (columns.max() + 1) * wide + margin,
        (rows.max() + 1) * tall + margin,
    )


def _outline(ax: Axes, left: float, top: float, right: float, bottom: float) -> None:
    """A yellow box, given by edges of pixels."""
    corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BOX, linewidth=1.2))


def to_png(figure: Figure, *, dots_per_inch: int = 144) -> bytes:
    """The figure as a PNG of 256 colours (a third of the size)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return _png(image.convert("RGB").quantize(256))


def to_png_uri(figure: Figure, *, dots_per_inch: int = 144) -> str:
    """The figure as a ``data:`` address holding its PNG."""
    return data_uri(to_png(figure, dots_per_inch=dots_per_inch))


def _grey(video: np.ndarray) -> list[Image.Image]:
    """Frames in grey, the darkest and the brightest half percent at the ends."""
    low, high = (float(value) for value in np.percentile(video, (0.5, 99.5)))
    scaled = np.clip((video - low) / max(high - low, 1.0), 0, 1)
    return [Image.fromarray(frame) for frame in np.round(255 * scaled).astype(np.uint8)]


def _scaled(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def film_strip_uri(video: np.ndarray, *, largest_side: int = 64) -> str:
    """All frames side by side as a ``data:`` address holding a grey PNG.

    The report plays it by moving it behind a window; no script is needed.

    Args:
        video: uint8 [T, H, W].
        largest_side: frames larger than this are reduced to it, in pixels.
    """
    frames = _grey(video)
    size = _scaled(frames[0], min(1.0, largest_side / max(frames[0].size)))
    strip = Image.new("L", (size[0] * len(frames), size[1]))
    for index, frame in enumerate(frames):
        strip.paste(frame.resize(size, Image.Resampling.BOX), (index * size[0], 0))
    return data_uri(_png(strip))


def masked_frame_uri(
    video: np.ndarray, lge_mask: np.ndarray | None, *, largest_side: int = 192
) -> str:
    """The first frame with its LGE mask over it, as a ``data:`` address holding a PNG.

    Args:
        video: uint8 ``[T, H, W]``.
        lge_mask: uint8 ``[H, W]``, or None.
        largest_side: pixels of the longer side.
    """
    grey = _grey(video)[0]
    size = _scaled(grey, largest_side / max(grey.size))
    image = grey.resize(size, Image.Resampling.BICUBIC).convert("RGB")
    if lge_mask is not None:
        colours = np.zeros((*lge_mask.shape, 4), np.uint8)
        for value, colour in enumerate(OVERLAY_COLOURS[1:], start=1):
            colours[lge_mask == value] = [*(round(255 * c) for c in to_rgb(colour)), 140]
        # Values that mean nothing must be seen, not hidden.
        colours[lge_mask >= len(LGE_COLOURS)] = [255, 0, 255, 255]
        over = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
        image.paste(over, (0, 0), over)
    return data_uri(_png(image.quantize(128)))


def cine_gif(
    video: np.ndarray,
    coarse_mask: np.ndarray | None,
    *,
    map_maximum: float = 1.0,
    side: int = 256,
    beat_ms: int = 1000,
) -> bytes:
    """The beat as an animated GIF; beside it the same with the predicted coarse map.

    Args:
        video: uint8 ``[T, H, W]``.
        coarse_mask: float ``[m, m]``; None draws the cine alone.
        map_maximum: value drawn in the brightest colour.
        side: pixels of the longer side of an image.
        beat_ms: duration of the beat.
    """
    grey = _grey(video)
    size = _scaled(grey[0], side / max(grey[0].size))
    laid = None
    if coarse_mask is not None:
        colours = np.round(255 * map_colours(coarse_mask, map_maximum)).astype(np.uint8)
        laid = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    frames = []
    for image in grey:
        plain = image.resize(size, Image.Resampling.BICUBIC).convert("RGB")
        if laid is not None:
            both = Image.new("RGB", (2 * size[0] + 4, size[1]), "white")
            both.paste(plain, (0, 0))
            plain.paste(laid, (0, 0), laid)
            both.paste(plain, (size[0] + 4, 0))
            plain = both
        frames.append(plain)
    # One palette for all frames, or the greys would flicker.
    sample = Image.new("RGB", (frames[0].width, 3 * frames[0].height))
    for i, frame in enumerate((frames[0], frames[len(frames) // 3], frames[2 * len(frames) // 3])):
        sample.paste(frame, (0, i * frame.height))
    palette = sample.quantize(256)
    indexed = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=max(20, round(beat_ms / len(frames) / 10) * 10),  # GIF counts in 10 ms
        loop=0,
    )
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
