"""The report's curves and histograms. Each function returns a ``matplotlib.figure.Figure``.

Only the object-oriented API is used: no global state, no display needed. Colours are those of Okabe
and Ito, distinguishable with any colour vision; curves also differ in line style. No text that
comes from data (case or patient names) is drawn, so nothing needs escaping.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.figures.pictures import INK, MUTED
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import CONFIDENCE, bootstrap_roc_band, wilson_interval

RULE = "#d5d9de"
BLUE, VERMILLION = "#0072b2", "#d55e00"
# The others of Okabe and Ito beside them, for rows of a study.
_COLOURS = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
# Inches for three and for two figures side by side, so that text comes out at the page's size.
_THIRD, _HALF = (3.6, 3.6), (5.2, 4.4)
_DASHED, _DOTTED, _LONG = (0, (4, 3)), (0, (1, 1.5)), (0, (5, 1.5))
_TEXT: dict[str, Any] = {"fontsize": 8.5, "labelcolor": INK}
_LEGEND: dict[str, Any] = {**_TEXT, "facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
_BAND = f"{100 * CONFIDENCE:g}% band (patient bootstrap)"
_POINT: dict[str, Any] = {"marker": "o", "linestyle": "none", "markeredgecolor": "white"}
_MIDDLE: dict[str, Any] = {"ha": "center", "va": "center"}
_REFERENCE: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": _DASHED}


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


def _legend(ax: Axes, first: str = "", **options: Any) -> None:
    """A legend where there is anything to name; what starts with ``first`` comes first."""
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith(first))
    if order:
        ax.legend([handles[i] for i in order], [labels[i] for i in order], **_LEGEND, **options)


def _unit_square(x: str, y: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure with one square of [0, 1] by [0, 1]."""
    figure, (ax,) = _figure(*size)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _label_axes(ax, x, y)
    return figure, ax


def _operating_point(ax: Axes, x: float, y: float, summary: Mapping[str, Any]) -> None:
    label = f"threshold {summary['threshold']['value']:.3f}"
    ax.plot(x, y, color=VERMILLION, markersize=7, label=label, **_POINT)


def _threshold_line(ax: Axes, summary: Mapping[str, Any]) -> None:
    value = summary["threshold"]["value"]
    ax.axvline(value, color=INK, linewidth=1.2, linestyle=_DOTTED, label=f"threshold {value:.3f}")


def _not_defined(ax: Axes) -> None:
    text = "not defined: one class only"
    ax.text(0.5, 0.5, text, transform=ax.transAxes, color=MUTED, **_MIDDLE)


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

    Here and below ``summary`` is what ``report.summarise`` returned for the predictions.
    """
    figure, ax = _unit_square("1 − specificity", "Recall (sensitivity)", _THIRD)  # noqa: RUF001
    found = summary["metrics"]
    if None in (found["recall"]["value"], found["specificity"]["value"]):
        _not_defined(ax)
        return figure
    band = bootstrap_roc_band(predictions)
    ax.fill_between(*band, color=BLUE, alpha=0.14, linewidth=0, label=_BAND)
    curve = metrics.roc_curve(predictions.label, predictions.probability)
    ax.plot([0, 1], [0, 1], label="chance", **_REFERENCE)
    ax.plot(*curve[:2], color=BLUE, linewidth=2, label=f"AUC {_spread(found['auc'])}")
    _operating_point(ax, 1 - found["specificity"]["value"], found["recall"]["value"], summary)
    _legend(ax, first="AUC", loc="lower right")
    return figure


def precision_recall_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """Precision against recall with the chance level (prevalence) and the operating point."""
    figure, ax = _unit_square("Recall (sensitivity)", "Precision (PPV)", _THIRD)
    found, prevalence = summary["metrics"], summary["prevalence"]
    if found["average_precision"]["value"] is None:
        _not_defined(ax)
        return figure
    from sklearn.metrics import precision_recall_curve  # 0.6 s

    # By falling recall, and ended by a point (0, 1) that belongs to no score.
    found_curve = precision_recall_curve(predictions.label, predictions.probability)
    precision, recall = (part[::-1] for part in found_curve[:2])
    # Average precision is the area under these steps, so the steps are what is drawn.
    height = np.concatenate((precision[1:2], precision[1:]))
    label = f"average precision {_spread(found['average_precision'])}"
    ax.step(recall, height, where="pre", color=BLUE, linewidth=2, label=label)
    chance = f"chance = prevalence {prevalence:.3f}"
    ax.axhline(prevalence, label=chance, **_REFERENCE)
    if found["precision"]["value"] is not None:
        _operating_point(ax, found["recall"]["value"], found["precision"]["value"], summary)
    # A good curve leaves the lower left free, a poor one the upper right.
    good = found["average_precision"]["value"] > 0.5
    _legend(ax, loc="lower left" if good else "upper right")
    return figure


def reliability_figure(predictions: Predictions) -> Figure:
    """Observed frequency against mean probability in equal-mass bins; a rug shows the cases."""
    figure, ax = _unit_square("Predicted probability", "Observed frequency", _HALF)
    curve = metrics.reliability_curve(predictions.label, predictions.probability)
    ax.plot([0, 1], [0, 1], label="ideal", **_REFERENCE)
    limits = [
        wilson_interval(round(share * int(count)), int(count))
        for share, count in zip(curve.observed_frequency, curve.count, strict=True)
    ]
    low, high = ([getattr(limit, end) for limit in limits] for end in ("low", "high"))
    line: dict[str, Any] = {"color": BLUE, "linewidth": 1.4, "alpha": 0.45}
    label = f"{100 * CONFIDENCE:g}% interval (Wilson)"
    ax.vlines(curve.mean_probability, low, high, label=label, **line)
    bins = f"{len(curve.count)} bins, about {round(float(np.mean(curve.count)))} cases each"
    ax.plot(*curve[:2], color=BLUE, markersize=6.5, label=bins, **_POINT)
    for label, base, end, colour in ((1, 1.01, 0.985, VERMILLION), (0, -0.01, 0.015, BLUE)):
        # More lines than pixels would only make the file larger.
        shown = predictions.probability[predictions.label == label][:1500]
        ax.vlines(shown, base, end, color=colour, linewidth=0.6, alpha=0.5)
    # Outside: bins may lie anywhere in the square.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, **_TEXT)
    return figure


def decision_figure(summary: Mapping[str, Any]) -> Figure:
    """Net benefit over thresholds, beside treating all and nobody."""
    figure, (ax,) = _figure(9.6, 4.0)
    curve = summary["decision_curve"]
    at, low, high = curve["threshold"], curve["model_low"], curve["model_high"]
    ax.fill_between(at, low, high, color=BLUE, alpha=0.14, linewidth=0, label=_BAND)
    ax.plot(at, curve["treat_all"], color=MUTED, linewidth=1.4, linestyle=_LONG, label="treat all")
    ax.axhline(0, label="treat nobody", **_REFERENCE)
    ax.plot(at, curve["model"], color=BLUE, linewidth=2, label="model")
    if curve["calibrated"] is not None:
        line: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.6, "linestyle": _LONG}
        ax.plot(at, curve["calibrated"], label="model, temperature scaled", **line)
    _threshold_line(ax, summary)
    _label_axes(ax, "Probability at which one acts", "Net benefit per case")
    most = max(summary["prevalence"], 0.05)
    ax.set_ylim(-0.35 * most, 1.1 * most)  # below, treating all falls without end
    ax.set_xlim(0, 1)
    figure.legend(loc="outside right upper", frameon=False, **_TEXT)
    return figure


def distribution_figure(predictions: Predictions, summary: Mapping[str, Any]) -> Figure:
    """Histograms of the probability for either class, with the threshold."""
    figure, (ax,) = _figure(*_HALF)
    _label_axes(ax, "Predicted probability", "Share of the class (%)")
    edges = np.linspace(0, 1, 26)
    for label, name, colour, style in ((0, "no MVO", BLUE, _LONG), (1, "MVO", VERMILLION, "-")):
        shown = predictions.probability[predictions.label == label]
        if shown.size == 0:
            continue
        share = 100 * np.histogram(shown, edges)[0] / shown.size
        ax.stairs(share, edges, color=colour, fill=True, alpha=0.18, linewidth=0)
        name = f"{name} (n = {shown.size})"
        ax.stairs(share, edges, color=colour, linewidth=1.6, linestyle=style, label=name)
    _threshold_line(ax, summary)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend
    _legend(ax, loc="upper right")
    return figure


def confusion_figure(summary: Mapping[str, Any]) -> Figure:
    """The four counts at the threshold; shade is the share within the true class."""
    figure, (ax,) = _figure(*_THIRD)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    names = (("true negative", "false positive"), ("false negative", "true positive"))
    of_name = summary["confusion"]
    table = np.array([[of_name[name.replace(" ", "_")] for name in row] for row in names])
    total = table.sum(axis=1, keepdims=True)
    share = np.divide(table, total, out=np.zeros((2, 2)), where=total > 0)
    blues = np.linspace(np.ones(3), to_rgb(BLUE), 256)
    ax.imshow(share, cmap=ListedColormap(blues), vmin=0, vmax=1)
    for (row, column), part in np.ndenumerate(share):
        # Where dark and white text are about equally readable on this shade.
        style: dict[str, Any] = {**_MIDDLE, "color": "white" if part > 0.85 else INK}
        ax.text(column, row - 0.06, f"{table[row, column]}", fontsize=20, **style)
        percent = f"{100 * part:.1f}%" if total[row, 0] else "no cases"
        text = f"{names[row][column]}\n{percent}"
        ax.text(column, row + 0.22, text, fontsize=9, linespacing=1.4, **style)
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

    Rows have ``step`` and ``kind`` ('train' or 'validation') and any of ``loss``, ``auc``,
    ``learning_rate``; a missing, null or non-finite value is left out. None where nothing is left.
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
        for split, colour, style in (("train", BLUE, "-"), ("validation", VERMILLION, _LONG)):
            steps, values = history_series(history, split, key)
            if not steps:
                continue
            marker = "o" if len(steps) <= 25 else None
            line: dict[str, Any] = {"linestyle": style, "linewidth": 1.6, "label": split}
            ax.plot(steps, values, color=colour, marker=marker, markersize=3.5, **line)
            if key == "auc" and split == "validation":
                best = int(np.argmax(values))
                ax.axvline(steps[best], color=MUTED, linewidth=1, linestyle=_DOTTED)
                label = f"best {values[best]:.3f} at step {steps[best]}"
                point: dict[str, Any] = {"color": colour, "markersize": 8, "label": label}
                ax.plot(steps[best], values[best], **point, **_POINT)
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


def validation_figure(runs: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> Figure | None:
    """Validation AUC over steps of many runs: a colour and a style a row, a line a run.

    ``runs`` has by row the (step, AUC) pairs of each of its runs; None without any.
    """
    if not runs:
        return None
    figure, (ax,) = _figure(9.6, 4.6)
    _label_axes(ax, "Step", "AUC on validation")
    styles = [(colour, style) for style in ("-", _LONG, _DOTTED) for colour in _COLOURS]
    for i, (name, of_row) in enumerate(runs.items()):
        colour, style = styles[i % len(styles)]
        for k, curve in enumerate(run for run in of_row if run):
            steps, values = zip(*curve, strict=True)
            line: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.4}
            # matplotlib leaves a label that starts with an underscore out of the legend.
            ax.plot(steps, values, label=name.lstrip("_") if k == 0 else "_", **line)
    ax.axhline(0.5, **_REFERENCE)
    figure.legend(loc="outside right upper", frameon=False, **_TEXT)
    return figure


def history_series(
    history: Sequence[Mapping[str, Any]], split: str, key: str
) -> tuple[list[int], list[float]]:
    """Steps and finite values of ``key`` for one split, by step; rows without it are left out."""
    rows = sorted(
        (int(row["step"]), float(row[key]))
        for row in history
        if row.get("kind") == split
        and "step" in row
        and isinstance(row.get(key), (int, float))
        and math.isfinite(row[key])
    )
    return [step for step, _ in rows], [value for _, value in rows]


def to_svg(figure: Figure, *, salt: str) -> str:
    """The figure as an ``<svg>`` element to put into HTML; equal figures and salts, equal bytes.

    Text stays text and takes the page's font. Header, namespaces and metadata, which HTML does not
    need, are removed, so no address is left in it. ``salt``, a name of its own for each figure of
    the page, keeps element ids apart.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    # Group names such as "axes_1" repeat in every figure; nothing refers to them.
    return re.sub(r'<g id="[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)?_\d+"', "<g", text)
