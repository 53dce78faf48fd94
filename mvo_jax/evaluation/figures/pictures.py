"""The report's figures. Each function returns a ``matplotlib.figure.Figure``.

Only the object-oriented API is used: no pyplot, no global state, no display needed. Colours are
those of Okabe and Ito, distinguishable with any colour vision; curves also differ in line style.
No text that comes from data (case or patient names) is drawn, so nothing needs escaping.
"""

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import bootstrap_roc_band, wilson_interval

INK, MUTED, RULE = "#1a1f27", "#5b6470", "#d5d9de"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
# LGE labels 0 background, 1 infarct, 2 MVO, 3 myocardium; the paper's Fig. 3 draws the
# myocardium blue and MVO white.
LGE_COLOURS = ("#000000", "#e69f00", "#ffffff", "#1f6fb4")
# Over a cine the blood is white too, so MVO takes another colour there.
OVERLAY_COLOURS = (*LGE_COLOURS[:2], "#d0006f", LGE_COLOURS[3])
# Inches for three and for two figures side by side, so that text comes out at the page's size.
_THIRD, _HALF = (3.6, 3.6), (5.2, 4.4)
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


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``panels`` plain axes side by side, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelsize=9, length=3, labelcolor=INK)
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _label_axes(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=10, color=INK)
    ax.set_ylabel(y, fontsize=10, color=INK)


def _legend(ax: Axes, **options: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8.5, labelcolor=INK, **_LEGEND, **options)


_LEGEND: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}


def _unit_square(ax: Axes) -> None:
    ax.set_xlim(-0.01, 1.01)
    ax.set_ylim(-0.01, 1.01)
    ax.set_aspect("equal")


def _message(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=ax.transAxes)


def _spread(estimate: Mapping[str, Any]) -> str:
    """'0.727 (0.631-0.823)' with an en dash; an undefined part is left out."""
    if estimate["value"] is None:
        return "not defined"
    text = f"{estimate['value']:.3f}"
    if estimate["low"] is not None and estimate["high"] is not None:
        text += f" ({estimate['low']:.3f}–{estimate['high']:.3f})"  # noqa: RUF001
    return text


def roc_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """ROC curve with its pointwise bootstrap band, AUC with interval, and the operating point.

    Args:
        predictions: the split.
        summary: what ``report.summarise`` returned for it.
    """
    figure, (ax,) = _figure(*_THIRD)
    _unit_square(ax)
    _label_axes(ax, "1 − specificity", "Recall (sensitivity)")  # noqa: RUF001
    if None in (summary["metrics"]["recall"]["value"], summary["metrics"]["specificity"]["value"]):
        _message(ax, "not defined: one class only")
        return figure
    band = bootstrap_roc_band(
        predictions, seed=summary["bootstrap"]["seed"], confidence=summary["confidence"]
    )
    if band is not None:
        level = round(100 * summary["confidence"])
        ax.fill_between(
            band.false_positive_rate,
            band.low,
            band.high,
            color=BLUE,
            alpha=0.14,
            linewidth=0,
            label=f"{level}% band (patient bootstrap)",
        )
    curve = metrics.roc_curve(predictions.label, predictions.probability, split=predictions.split)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    ax.plot(
        curve.false_positive_rate,
        curve.true_positive_rate,
        color=BLUE,
        linewidth=2,
        label=f"AUC {_spread(summary['metrics']['auc'])}",
    )
    ax.plot(
        1 - summary["metrics"]["specificity"]["value"],
        summary["metrics"]["recall"]["value"],
        marker="o",
        markersize=7,
        color=VERMILLION,
        markeredgecolor="white",
        linestyle="none",
        label=f"threshold {summary['threshold']['value']:.3f}",
    )
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith("AUC"))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower right",
        fontsize=8.5,
        labelcolor=INK,
        **_LEGEND,
    )
    return figure


def precision_recall_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """Precision against recall with the chance level (prevalence) and the operating point."""
    figure, (ax,) = _figure(*_THIRD)
    _unit_square(ax)
    _label_axes(ax, "Recall (sensitivity)", "Precision (PPV)")
    if summary["metrics"]["average_precision"]["value"] is None:
        _message(ax, "not defined: one class only")
        return figure
    curve = metrics.precision_recall_curve(
        predictions.label, predictions.probability, split=predictions.split
    )
    # Average precision is the area under these steps, so the steps are what is drawn.
    ax.step(
        np.concatenate(([0.0], curve.recall)),
        np.concatenate((curve.precision[:1], curve.precision)),
        where="pre",
        color=BLUE,
        linewidth=2,
        label=f"average precision {_spread(summary['metrics']['average_precision'])}",
    )
    ax.axhline(
        summary["prevalence"],
        color=MUTED,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label=f"chance = prevalence {summary['prevalence']:.3f}",
    )
    if summary["metrics"]["precision"]["value"] is not None:
        ax.plot(
            summary["metrics"]["recall"]["value"],
            summary["metrics"]["precision"]["value"],
            marker="o",
            markersize=7,
            color=VERMILLION,
            markeredgecolor="white",
            linestyle="none",
            label=f"threshold {summary['threshold']['value']:.3f}",
        )
    # A good curve leaves the lower left free, a poor one the upper right.
    good = summary["metrics"]["average_precision"]["value"] > 0.5
    _legend(ax, loc="lower left" if good else "upper right")
    return figure


def reliability_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """Observed frequency against mean probability in equal-mass bins; a rug shows the cases."""
    figure, (ax,) = _figure(*_HALF)
    _unit_square(ax)
    _label_axes(ax, "Predicted probability", "Observed frequency")
    curve = metrics.reliability_curve(
        predictions.label, predictions.probability, bins=summary["calibration"]["bins"]
    )
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    level = summary["confidence"]
    limits = [
        wilson_interval(round(share * int(count)), int(count), confidence=level)
        for share, count in zip(curve.observed_frequency, curve.count, strict=True)
    ]
    ax.vlines(
        curve.mean_probability,
        [limit.low for limit in limits],
        [limit.high for limit in limits],
        color=BLUE,
        linewidth=1.4,
        alpha=0.45,
        label=f"{100 * level:g}% interval (Wilson)",
    )
    ax.plot(
        curve.mean_probability,
        curve.observed_frequency,
        color=BLUE,
        linestyle="none",
        marker="o",
        markersize=6.5,
        markeredgecolor="white",
        label=f"{len(curve.count)} bins, about {round(float(np.mean(curve.count)))} cases each",
    )
    for label, base, colour in ((1, 1.01, VERMILLION), (0, -0.01, BLUE)):
        shown = predictions.probability[predictions.label == label]
        ax.vlines(
            shown[:1500],  # more lines than pixels would only make the file larger
            base,
            base + (-0.025 if label else 0.025),
            color=colour,
            linewidth=0.6,
            alpha=0.5,
        )
    # Outside: bins may lie anywhere in the square.
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, labelcolor=INK, frameon=False)
    return figure


def distribution_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """Histograms of the probability for either class, with the threshold."""
    figure, (ax,) = _figure(*_HALF)
    _label_axes(ax, "Predicted probability", "Share of the class (%)")
    edges = np.linspace(0, 1, 26)
    for label, name, colour in ((0, "no MVO", BLUE), (1, "MVO", VERMILLION)):
        shown = predictions.probability[predictions.label == label]
        if shown.size == 0:
            continue
        share = 100 * np.histogram(shown, edges)[0] / shown.size
        ax.stairs(share, edges, color=colour, fill=True, alpha=0.18, linewidth=0)
        ax.stairs(
            share,
            edges,
            color=colour,
            linewidth=1.6,
            linestyle="-" if label else (0, (5, 1.5)),
            label=f"{name} (n = {shown.size})",
        )
    ax.axvline(
        summary["threshold"]["value"],
        color=INK,
        linewidth=1.2,
        linestyle=(0, (1, 1.5)),
        label=f"threshold {summary['threshold']['value']:.3f}",
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend
    _legend(ax, loc="upper right")
    return figure


def confusion_figure(summary: Mapping[str, Any]) -> Figure:
    """The four counts at the threshold; shade is the share within the true class."""
    figure, (ax,) = _figure(*_THIRD)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    counts = summary["confusion"]
    table = np.array(
        [
            [counts["true_negative"], counts["false_positive"]],
            [counts["false_negative"], counts["true_positive"]],
        ]
    )
    total = table.sum(axis=1, keepdims=True)
    share = np.divide(table, total, out=np.zeros((2, 2)), where=total > 0)
    blues = np.linspace(np.ones(3), to_rgb(BLUE), 256)
    ax.imshow(share, cmap=ListedColormap(blues), vmin=0, vmax=1)
    names = (("true negative", "false positive"), ("false negative", "true positive"))
    for row in range(2):
        for column in range(2):
            # Where dark and white text are about equally readable on this shade.
            colour = "white" if share[row, column] > 0.85 else INK
            ax.text(
                column,
                row - 0.06,
                f"{table[row, column]}",
                ha="center",
                va="center",
                fontsize=20,
                color=colour,
            )
            part = f"{100 * share[row, column]:.1f}%" if total[row, 0] else "no cases"
            ax.text(
                column,
                row + 0.22,
                f"{names[row][column]}\n{part}",
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
                linespacing=1.4,
            )
    ax.set_xticks([0, 1], ["called negative", "called MVO"])
    ax.set_yticks([0, 1], ["no MVO", "MVO"], rotation=90, va="center")
    ax.tick_params(length=0, labelsize=10)
    ax.set_xticks([0.5], minor=True)
    ax.set_yticks([0.5], minor=True)
    ax.grid(which="minor", color="white", linewidth=3)
    ax.tick_params(which="minor", length=0)
    return figure


def training_figure(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss, AUC and learning rate over steps, with the best validation step marked.

    Args:
        history: rows with ``step`` and ``split`` ('train' or 'validation') and any of ``loss``,
            ``auc``, ``learning_rate``; a missing, null or non-finite value is left out.

    Returns:
        The figure, or None if the history has nothing to draw.
    """
    panels = [
        (key, title)
        for key, title in (("loss", "Loss"), ("auc", "AUC"), ("learning_rate", "Learning rate"))
        if any(history_series(history, split, key)[0] for split in ("train", "validation"))
    ]
    if not panels:
        return None
    figure, axes = _figure(3.6 * len(panels), 3.1, len(panels))
    for ax, (key, title) in zip(axes, panels, strict=True):
        for split, colour, style in (
            ("train", BLUE, "-"),
            ("validation", VERMILLION, (0, (5, 1.5))),
        ):
            steps, values = history_series(history, split, key)
            if not steps:
                continue
            few = len(steps) <= 25
            ax.plot(
                steps,
                values,
                color=colour,
                linestyle=style,
                linewidth=1.6,
                marker="o" if few else None,
                markersize=3.5,
                label=split,
            )
            if key == "auc" and split == "validation":
                best = int(np.argmax(values))
                ax.axvline(steps[best], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
                ax.plot(
                    steps[best],
                    values[best],
                    marker="o",
                    markersize=8,
                    color=VERMILLION,
                    markeredgecolor="white",
                    linestyle="none",
                    label=f"best {values[best]:.3f} at step {steps[best]}",
                )
        _label_axes(ax, "Step", title)
        ax.locator_params(axis="x", nbins=5, integer=True)
        if key == "learning_rate":
            ax.set_ylim(bottom=0)
            ax.ticklabel_format(axis="y", style="plain")
            ax.locator_params(axis="y", nbins=5)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        else:
            _legend(ax, loc="best")
    return figure


def history_series(
    history: Sequence[Mapping[str, Any]], split: str, key: str
) -> tuple[list[int], list[float]]:
    """Steps and finite values of ``key`` for one split, by step; rows without it are left out."""
    rows = sorted(
        (int(row["step"]), float(row[key]))
        for row in history
        if row.get("split") == split
        and "step" in row
        and isinstance(row.get(key), (int, float))
        and math.isfinite(row[key])
    )
    return [step for step, _ in rows], [value for _, value in rows]


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
    panels = [("source", "Source and crop")] if record.source is not None else []
    panels += [("cine", "First frame"), ("cine", "Halfway"), ("cine", "Largest change")]
    if record.lge_mask is not None:
        panels.append(("lge", "LGE mask"))
    if record.coarse_target is not None:
        panels.append(("target", "Coarse target"))
    if record.coarse_mask is not None:
        panels.append(("predicted", "Predicted map"))
    figure = Figure(figsize=(1.62 * len(panels), 2.02), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02)  # type: ignore[union-attr]
    low, high = (float(value) for value in np.percentile(record.video, (0.5, 99.5)))
    high = max(high, low + 1)
    height, width = record.video.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    frames = iter((first, halfway, most))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (kind, title) in zip(axes, panels, strict=True):
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(title, fontsize=9, color=INK, pad=4)
        if record.source is not None and kind == "source":
            _draw_source(ax, record.source)
            continue
        frame = next(frames) if kind == "cine" else first
        if kind != "lge":
            ax.imshow(
                record.video[frame],
                cmap="gray",
                vmin=low,
                vmax=high,
                interpolation="bicubic",
                extent=extent,
            )
        if kind == "lge":
            ax.imshow(
                record.lge_mask,
                cmap=ListedColormap(LGE_COLOURS),
                vmin=-0.5,
                vmax=3.5,
                interpolation="nearest",
                extent=extent,
            )
        elif kind in ("target", "predicted"):
            value = np.asarray(
                record.coarse_target if kind == "target" else record.coarse_mask, np.float64
            )
            top = 1.0 if kind == "target" else map_maximum
            ax.imshow(map_colours(value, top), interpolation="nearest", extent=extent)
            ax.set_xlabel(f"max {value.max():.2f}", fontsize=8, color=MUTED, labelpad=2)
        if kind == "cine":
            ax.set_xlabel(f"frame {frame}", fontsize=8, color=MUTED, labelpad=2)
        if record.lge_mask is not None and kind != "target":
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
    ax.add_patch(
        Rectangle(
            (source.left - 0.5, source.top - 0.5),
            source.right - source.left,
            source.bottom - source.top,
            fill=False,
            edgecolor=BOX,
            linewidth=1.2,
        )
    )
    # The crop may reach beyond a small image.
    ax.set_xlim(min(0, source.left) - 1, max(width, source.right))
    ax.set_ylim(max(height, source.bottom), min(0, source.top) - 1)
    ax.set_xlabel(f"{width} x {height} pixels", fontsize=8, color=MUTED, labelpad=2)


def _box_mvo(ax: Axes, lge_mask: np.ndarray, shape: tuple[int, int]) -> None:
    rows, columns = np.nonzero(lge_mask == 2)
    if rows.size == 0:
        return
    tall, wide = shape[0] / lge_mask.shape[0], shape[1] / lge_mask.shape[1]
    margin = 1.5
    ax.add_patch(
        Rectangle(
            (columns.min() * wide - 0.5 - margin, rows.min() * tall - 0.5 - margin),
            (np.ptp(columns) + 1) * wide + 2 * margin,
            (np.ptp(rows) + 1) * tall + 2 * margin,
            fill=False,
            edgecolor=BOX,
            linewidth=1.2,
        )
    )


def to_svg(figure: Figure, *, salt: str) -> str:
    """The figure as an ``<svg>`` element to put into HTML.

    Text stays text and takes the page's font. Header, namespaces and metadata, which HTML does
    not need, are removed, so no address is left in it. Same figure and salt: same bytes.

    Args:
        figure: any figure.
        salt: a name of its own for each figure of the page; keeps element ids apart.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Group names such as "axes_1" repeat in every figure; nothing refers to them.
    return re.sub(r'<g id="[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)?_\d+"', "<g", text)


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


def film_strip_uri(video: np.ndarray, *, largest_side: int = 64) -> str:
    """All frames side by side as a ``data:`` address holding a grey PNG.

    The report plays it by moving it behind a window; no script is needed.

    Args:
        video: uint8 [T, H, W].
        largest_side: frames larger than this are reduced to it, in pixels.
    """
    low, high = (float(value) for value in np.percentile(video, (0.5, 99.5)))
    scaled = np.clip((video - low) / max(high - low, 1.0), 0, 1)
    frames = [Image.fromarray(np.round(255 * frame).astype(np.uint8)) for frame in scaled]
    height, width = video.shape[1:]
    factor = min(1.0, largest_side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
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
    low, high = (float(value) for value in np.percentile(video, (0.5, 99.5)))
    grey = np.round(255 * np.clip((video[0] - low) / max(high - low, 1.0), 0, 1)).astype(np.uint8)
    factor = largest_side / max(grey.shape)
    size = (round(grey.shape[1] * factor), round(grey.shape[0] * factor))
    image = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")
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
    low, high = (float(value) for value in np.percentile(video, (0.5, 99.5)))
    grey = np.round(255 * np.clip((video - low) / max(high - low, 1.0), 0, 1)).astype(np.uint8)
    factor = side / max(video.shape[1:])
    size = (round(video.shape[2] * factor), round(video.shape[1] * factor))
    laid = None
    if coarse_mask is not None:
        colours = np.round(255 * map_colours(coarse_mask, map_maximum)).astype(np.uint8)
        laid = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    frames = []
    for image in grey:
        plain = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
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
