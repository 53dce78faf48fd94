"""What parity found: a table for the terminal, JSON, and one page of HTML that works offline."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
from matplotlib.figure import Figure

from mvo_jax.evaluation.figures.curves import to_svg
from mvo_jax.evaluation.pages.render import render_page
from mvo_jax.files import replace_file
from mvo_jax.interop.parity.cases import BOUNDS
from mvo_jax.interop.parity.results import OPTIMISER_NAMES, Result, Row, Trace, families

_COLOURS = {"adamw": "#0072b2", "sgd": "#b84d00"}


def number(value: float) -> str:
    """A difference in three digits; a dash where there is none."""
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def bound_text(row: Row) -> str:
    """The bound with what it is about."""
    return f"{row.bound:.2g} x torch's" if row.measure == "ratio" else number(row.bound)


def value_text(row: Row) -> str:
    """The measured value of what the bound is about."""
    return f"{row.value:.2f} x torch's" if row.measure == "ratio" else number(row.value)


def text_table(result: Result) -> str:
    """One line for each stage and kind of quantity: the worst of its rows, and where it was."""
    header = ("stage", "quantity", "rows", "absolute", "relative", "bound", "verdict", "worst in")
    lines: list[tuple[str, ...]] = [header]
    for family in families(result.rows):
        row = family.worst
        cells = (
            family.stage,
            family.name,
            str(family.count),
            # float32: our error beside torch's own
            value_text(row) if row.measure == "ratio" else number(row.absolute),
            number(row.relative),
            bound_text(row),
            "holds" if row.holds else "BROKEN",
            row.case if row.quantity == family.name else f"{row.case}: {row.quantity}",
        )
        lines.append(cells)
    *widths, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines
    )


def write_json(path: str | os.PathLike, result: Result, about: Mapping[str, Any]) -> None:
    """Write every row and trace, with versions and settings, or raise UserError."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    rows = [
        {key: plain(value) for key, value in vars(row).items()} | {"holds": row.holds}
        for row in result.rows
    ]
    content = {"about": about, "rows": rows, "traces": [vars(trace) for trace in result.traces]}
    replace_file(path, json.dumps(content, indent=1) + "\n")


def write_html(path: str | os.PathLike, result: Result, about: Mapping[str, Any]) -> None:
    """Write one page (verdict, table, drift over training steps, every row), or raise UserError."""
    titles = {
        "loss": "Difference of the loss, step by step",
        "parameters": "Difference of all parameters, step by step",
    }
    drawings = [
        (title, markupsafe.Markup(to_svg(drift_figure(result.traces, quantity), salt=quantity)))
        for quantity, title in titles.items()
        if result.traces
    ]
    page = render_page(
        "parity.html.j2",
        folder=Path(__file__).parent,
        difference=number,
        bound=bound_text,
        value=value_text,
        about=about,
        broken=result.broken,
        count=len(result.rows),
        families=families(result.rows),
        rows=result.rows,
        drawings=drawings,
    )
    replace_file(path, page)


def drift_figure(traces: Sequence[Trace], quantity: str) -> Figure:
    """Drift of 'loss' (absolute) or 'parameters' (relative L2), a line for each case, optimiser."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    ax = figure.subplots()
    steps = np.arange(1, max(len(trace.loss) for trace in traces) + 1)
    for trace in traces:
        values = trace.loss_difference if quantity == "loss" else trace.parameter_difference
        # A difference of exactly 0 has no place on a logarithmic axis: drawn at its lower end.
        shown = np.maximum(values, 1e-18)
        ax.semilogy(steps[: len(shown)], shown, color=_COLOURS[trace.optimiser], alpha=0.45, lw=1)
    bound = np.where(steps <= 30, BOUNDS.loss_after_30, BOUNDS.loss_after_100)
    ax.step(steps, bound, where="mid", color="#1a1f27", lw=1.2, ls="--")
    for name in {trace.optimiser for trace in traces}:
        label = f"{OPTIMISER_NAMES[name]}, a line for each case"
        ax.plot([], [], color=_COLOURS[name], label=label)
    ax.plot([], [], color="#1a1f27", ls="--", label="bound")
    ax.set_ylim(1e-18, 1e-4)
    ax.set_xlabel("training step")
    ax.set_ylabel("absolute" if quantity == "loss" else "relative, L2")
    ax.grid(axis="y", color="#e6e8eb", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", ncols=3, fontsize=9)
    return figure
