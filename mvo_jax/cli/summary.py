"""``python -m mvo_jax summary --config FILE.py``: what a model costs."""

from typing import Any

from absl import flags

from mvo_jax.cli.flags import parse
from mvo_jax.models.build import build_model
from mvo_jax.models.cost import Cost, model_cost

# Millions of parameters as Table 2 prints them; docs/decisions.md has what they may count.
PAPER_MILLIONS = {"backbone": 31.50, "bert": 37.86, "cgmr": 37.56, "full": 43.72}


def _define(values: flags.FlagValues) -> None:
    del values  # no flags beside --config


def table(config: Any, cost: Cost) -> str:
    """The summary as plain text."""
    total = sum(cost.parameters.values())
    shape = f"{config.data.frames}x{config.data.image_size}x{config.data.image_size}"
    rows = [(name, f"{count:,}") for name, count in cost.parameters.items()]
    rows.append(("total", f"{total:,}"))
    rows.append(("at inference", f"{cost.inference_parameters:,}"))
    variant = config.model.get("variant", "")
    full_size = (config.model.get("width"), tuple(config.model.get("stage_sizes", ()))) == (
        64,
        (2, 2, 2, 2),
    )
    if full_size and variant in PAPER_MILLIONS:
        rows.append(
            ("paper, Table 2", f"{PAPER_MILLIONS[variant]:.2f} M (ours {total / 1e6:.2f} M)")
        )
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
    title = f"{config.model.name} {variant}".strip()
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)])


def main(arguments: list[str]) -> None:
    """Print the parameter table, FLOPs and a memory estimate; nothing is computed on a device."""
    config = parse(arguments, _define, with_config=True).config
    model = build_model(config.model, backend="tpu")  # dense 3-D form: the fewest operations
    size = config.data.image_size
    moments = 2 if config.optimizer.name == "adamw" else 1
    cost = model_cost(model, (config.data.frames, size, size, 1), moments=moments)
    print(table(config, cost))
