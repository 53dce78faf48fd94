"""``mvo-jax summary --config NAME``: what a model costs."""

import itertools
import re
from typing import TYPE_CHECKING, Any

from mvo_jax.cli.flags import config_of
from mvo_jax.config_files import load_module

if TYPE_CHECKING:
    from mvo_jax.models.cost import Cost

# Fields whose value the paper's count leaves open.
FREE_SIZES = {"num_outputs", "mask_size"}


def paper_millions(model: Any) -> tuple[int, float] | None:
    """(table, millions of parameters) that the paper prints for this model, None at other sizes.

    Sizes are the whole numbers and tuples of the ``model`` part of a config.
    """
    from mvo_jax.models.registry import published_config

    published = published_config(model.name)
    for field, value in published.items():
        size = isinstance(value, int | tuple) and not isinstance(value, bool)
        given = model[field] if isinstance(value, int) or not size else tuple(model[field])
        if size and field not in FREE_SIZES and given != value:
            return None
    paper = load_module("paper")
    number, row = (2, model.variant) if model.name == "mvo_net" else (1, model.name)
    printed = (paper.TABLE_1, paper.TABLE_2)[number - 1]
    return (number, printed[row]["millions"]) if row in printed else None


def grouped(parameters: dict[str, int]) -> list[tuple[str, int]]:
    """Parts whose names differ in their numbers only, in one row: 'block1 to block12'."""
    rows = []
    for _, group in itertools.groupby(parameters, lambda name: re.sub(r"\d+", "#", name)):
        first, *others = group
        name = f"{first} to {others[-1]}" if others else first
        rows.append((name, sum(parameters[part] for part in (first, *others))))
    return rows


def table(config: Any, cost: "Cost") -> str:
    """The summary as plain text."""
    total = sum(cost.parameters.values())
    shape = f"{config.data.frames}x{config.data.image_size}x{config.data.image_size}"
    rows = [(name, f"{count:,}") for name, count in grouped(cost.parameters)]
    rows += [("total", f"{total:,}"), ("at inference", f"{cost.inference_parameters:,}")]
    if printed := paper_millions(config.model):
        ours = f"{printed[1]:.2f} M (ours {total / 1e6:.2f} M)"
        rows.append((f"paper, Table {printed[0]}", ours))
    batch = config.train.batch_size
    memory = cost.state_bytes + batch * cost.activation_bytes
    rows += [
        ("forward", f"{cost.forward_flops / 1e9:.1f} GFLOP a clip of {shape}"),
        ("training step", f"{cost.training_flops / 1e9:.1f} GFLOP a clip"),
        ("whole run", f"{cost.training_flops * batch * config.train.total_steps / 1e15:.2f} PFLOP"),
        ("activations", f"{cost.activation_bytes / 1e6:.0f} MB a clip"),
        ("memory estimate", f"{memory / 1e9:.1f} GB at batch {batch} on one device"),
    ]
    width = max(len(name) for name, _ in rows)
    title = f"{config.model.name} {config.model.get('variant', '')}".strip()
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)])


def main(arguments: list[str]) -> None:
    """Print the parameter table, FLOPs and a memory estimate; nothing is computed on a device."""
    config = config_of(*arguments)
    from mvo_jax.models.cost import model_cost
    from mvo_jax.models.registry import dense_model

    clip = (config.data.frames, config.data.image_size, config.data.image_size, 1)
    moments = 2 if config.optimizer.name == "adamw" else 1
    print(table(config, model_cost(dense_model(config.model), clip, moments=moments)))
