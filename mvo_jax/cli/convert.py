"""``python -m mvo_jax convert``: weights from PyTorch to here and back."""

from pathlib import Path

import numpy as np

from mvo_jax.cli.flags import Flags, parse
from mvo_jax.errors import UserError
from mvo_jax.interop.layouts import LAYOUTS
from mvo_jax.interop.weight_rules import flatten


def _define(values: Flags) -> None:
    source = (
        "A torch checkpoint (.pth, .safetensors), to convert to ours; or a run folder or a file "
        "converted before, to write for torch."
    )
    values.string("source", None, source, required=True)
    values.string("out", None, "File to write: .safetensors, or .pth for torch.", required=True)
    names = (f"{model}: {', '.join(one.name for one in its)}" for model, its in LAYOUTS.items())
    by_model = f"Names on the torch side, by model: {'; '.join(names)}"
    values.string("layout", None, by_model, required=True)
    stem = (
        "Change a stem of 3 input channels to 1 (sum) or of 1 to 3 (a third each), which keeps the "
        "response to grey frames."
    )
    values.bool("adapt_stem", False, stem)
    several = "Of a torch checkpoint with several sets of weights (model, model_ema): which one."
    values.string("weights_key", "", several)
    values.enum("checkpoint", "best", ["best", "latest"], "Which one of a run folder.")


def main(arguments: list[str]) -> None:
    """Convert one checkpoint; the direction follows from the source."""
    with_config = any(a == "--config" or a.startswith("--config=") for a in arguments)
    values = parse(arguments, _define, with_config=with_config)
    from mvo_jax.interop import convert
    from mvo_jax.interop.weight_files import is_variables_file, read_variables
    from mvo_jax.interop.weight_sources import variables_of_run

    source, out = Path(values.source), Path(values.out)
    if not source.exists():
        raise UserError(f"{source} does not exist", "name a checkpoint file or a run folder")
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise UserError(f"{out} cannot be written over", "name another file as --out")

    if source.is_dir() or is_variables_file(source):
        if with_config:
            cause = f"{source} carries its own model, and --config names another"
            raise UserError(cause, "leave --config out")
        is_run = source.is_dir()
        content = variables_of_run(source, values.checkpoint) if is_run else read_variables(source)
        layout = convert.find_layout(content.model["name"], values.layout)
        left_out = convert.write_exported(out, content, layout)
        print(f"wrote {out} in the {layout.name!r} layout")
        if left_out:
            print(f"not part of that layout, left out: {', '.join(left_out)}")
        return

    if not with_config:
        raise UserError(
            f"{source} does not say which model it is of",
            "add --config, for example --config=configs/mvo.py:released",
        )
    model, data = values.config.model, values.config.data
    content = convert.from_torch(
        source,
        convert.find_layout(model.name, values.layout),
        model.to_dict(),
        (data.frames, data.image_size, data.image_size, 1),
        adapt_stem=values.adapt_stem,
        weights_key=values.weights_key,
    )
    convert.write_converted(out, content)
    facts = content.provenance
    count = sum(np.size(value) for value in flatten(content.variables).values())
    print(f"wrote {out}: {facts['arrays']} arrays, {count:,} numbers ({', '.join(facts['parts'])})")
    for text, items in (
        ("not in the source, left to initialisation", facts["parts_not_in_source"]),
        ("ignored, the model has no use for them", facts["ignored"]),
        ("taken off", facts["unwrapped"]),
    ):
        if items:
            print(f"{text}: {', '.join(items)}")
    for dtype, number in facts["cast_to_float32"].items():
        print(f"cast up to float32: {number} arrays of {dtype}")
    if facts["adapted"]:
        print(facts["adapted"])
    print(f"start from it with --config.init_from={out}")
