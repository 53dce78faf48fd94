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
from mvo_jax.interop.parity.results import (
    OPTIMISER_NAMES,
    Family,
    Result,
    Row,
    Trace,
    families,
)

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
    lines = [header, *(_cells(family) for family in families(result.rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _cells(family: Family) -> tuple[str, ...]:
    row = family.worst
    # float32: our error beside torch's own
    absolute = value_text(row) if row.measure == "ratio" else number(row.absolute)
    return (
        family.stage,
        family.name,
        str(family.count),
        absolute,
        number(row.relative),
        bound_text(row),
        "holds" if row.holds else "BROKEN",
        row.case if row.quantity == family.name else f"{row.case}: {row.quantity}",
    )


def write_json(path: str | os.PathLike, result: Result, about: Mapping[str, Any]) -> None:
    """Every row and trace, with versions and settings.

    Raises:
        UserError: the file cannot be written.
    """
    rows = [
        {key: _plain(value) for key, value in vars(row).items()} | {"holds": row.holds}
        for row in result.rows
    ]
    content = {"about": about, "rows": rows, "traces": [vars(trace) for trace in result.traces]}
    replace_file(path, json.dumps(content, indent=1) + "\n")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_html(path: str | os.PathLike, result: Result, about: Mapping[str, Any]) -> None:
    """One page: verdict, the table, drift over training steps, every row.

    Raises:
        UserError: the file cannot be written.
    """
    drawings = [
        (title, to_svg(drift_figure(result.traces, quantity), salt=quantity))
        for quantity, title in (
            ("loss", "Difference of the loss, step by step"),
            ("parameters", "Difference of all parameters, step by step"),
        )
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
        drawings=[(title, markupsafe.Markup(svg)) for title, svg in drawings],
    )
    replace_file(path, page)


def drift_figure(traces: Sequence[Trace], quantity: str) -> Figure:
    """Drift along float64 training steps, one line for each case and optimiser.

    Of the quantity 'loss' (absolute difference) or 'parameters' (relative L2 difference).
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    ax = figure.subplots()
    longest = 0
    for trace in traces:
        values = trace.loss_difference if quantity == "loss" else trace.parameter_difference
        # A difference of exactly 0 has no place on a logarithmic axis: drawn at its lower end.
        shown = np.maximum(values, 1e-18)
        longest = max(longest, len(values))
        ax.semilogy(
            np.arange(1, len(values) + 1), shown, color=_COLOURS[trace.optimiser], alpha=0.45, lw=1
        )
    steps = np.arange(1, longest + 1)
    bound = np.where(steps <= 30, BOUNDS.loss_after_30, BOUNDS.loss_after_100)
    ax.step(steps, bound, where="mid", color="#1a1f27", lw=1.2, ls="--")
    for name in {trace.optimiser for trace in traces}:
        ax.plot(
            [], [], color=_COLOURS[name], label=f"{OPTIMISER_NAMES[name]}, a line for each case"
        )
    ax.plot([], [], color="#1a1f27", ls="--", label="bound")
    ax.set_ylim(1e-18, 1e-4)
    ax.set_xlabel("training step")
    ax.set_ylabel("absolute" if quantity == "loss" else "relative, L2")
    ax.grid(axis="y", color="#e6e8eb", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", ncols=3, fontsize=9)
    return figure
