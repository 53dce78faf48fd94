"""The templates' Jinja environment, how pages write numbers, and plain JSON types."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

_HERE = Path(__file__).parent


def percent(value: float | None, digits: int = 2) -> str:
    """0.5 as '50.00', with a real minus sign; an en dash where it is not defined."""
    return "–" if value is None or math.isnan(value) else number(100 * value, digits)  # noqa: RUF001


def number(value: float | None, digits: int = 3) -> str:
    """A number with a real minus sign; an en dash where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")  # noqa: RUF001


def span(estimate: Mapping[str, Any], digits: int = 1, scale: float = 100) -> str:
    """Limits as 'low to high', in percent unless scaled otherwise."""
    if estimate["low"] is None or estimate["high"] is None:
        return "–"  # noqa: RUF001
    low, high = (number(scale * estimate[limit], digits) for limit in ("low", "high"))
    return f"{low} to {high}"


def p_value(value: float | None) -> str:
    """For a sentence."""
    if value is None:
        return "not defined"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def p_short(value: float | None) -> str:
    """For a column that is headed 'p'."""
    if value is None:
        return "–"  # noqa: RUF001
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def render_text(template: str, **values: Any) -> str:
    """Fill in a template of a text, with its plain dashes and minus signs."""
    text = render_page(template, **values).strip("\n")
    return text.replace("–", "-").replace("−", "-")  # noqa: RUF001


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (percent, number, span, p_value, p_short):
        environment.filters[function.__name__] = function
    return environment


def render_page(template: str, *, folder: Path | None = None, **values: Any) -> str:
    """Fill in a template of ``folder``, which may use those that lie here, escaping all."""
    return _environment(folder or _HERE).get_template(template).render(**values)


def plain(value: Any) -> Any:
    """Plain JSON types: numpy numbers as Python's, keys as text, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
