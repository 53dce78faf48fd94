"""The README of a bundle: a model card as the Hugging Face Hub reads it."""

from pathlib import Path
from typing import Any

import jinja2

from mvo_jax.bundles.about import MODELS, WEIGHTS, About
from mvo_jax.evaluation.table import METRICS
from mvo_jax.models.registry import model_class


def model_card(about: About) -> str:
    """The text of ``README.md``: YAML for the Hub, then what a reader has to know.

    Follows Mitchell et al., Model Cards for Model Reporting (2019): use, data, metrics, limits.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; nothing in it comes from outside
    )
    data = about.config["data"]
    dataset = f"simulated cine MR, preset {data['preset']}, size {data['size']}"
    return environment.get_template("card.md.j2").render(
        about=about,
        title=model_class(about.config["model"]["name"]).__name__,
        model=about.config["model"],
        dataset=dataset if about.simulated else "a prepared cohort",
        tables=_tables(about),
        forms=[form for form, file in MODELS.items() if file in about.files],
        weights=WEIGHTS,
        clip=", ".join(str(side) for side in about.clip_shape),
    )


def _tables(about: About) -> list[dict[str, Any]]:
    """Metrics of slices and, where they say more, of patients: rows of (title, value, limits)."""
    tables, slices = [], about.metrics
    for unit, found in (("slices", slices), ("patients", slices and slices["patient_level"])):
        if not found:
            continue
        rows = []
        for name, estimate in found["metrics"].items():
            title = METRICS[name].title if name in METRICS else name
            limits = [estimate[key] for key in ("value", "low", "high")]
            texts = ["not defined" if value is None else f"{value:.3f}" for value in limits]
            rows.append({"id": name, "title": title, "value": limits[0], "texts": texts})
        tables.append({"unit": unit, **found, "rows": rows})
    return tables
