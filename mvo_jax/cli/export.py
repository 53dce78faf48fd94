"""``python -m mvo_jax export --workdir RUN --out BUNDLE``: a run as a folder without JAX."""

from pathlib import Path

from mvo_jax.cli.flags import Flags, parse
from mvo_jax.errors import UserError
from mvo_jax.files import check_new

_FORMS = ("onnx", "jax")  # bundles.about.MODELS, repeated because that module imports numpy


def _define(values: Flags) -> None:
    values.string("workdir", None, "Folder of the run.", required=True)
    values.string("out", None, "Folder to write.", required=True)
    values.list("format", list(_FORMS), "Of the model: onnx, jax or both.")
    values.enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
    limits = {"lower_bound": 1, "upper_bound": 1000}
    values.integer("check", 4, "Simulated clips that every file is run on.", **limits)
    where = "Where the run's own data lie now; read only if the run was never evaluated."
    values.string("data_dir", None, where)


def main(arguments: list[str]) -> None:
    """Write the bundle and print what was checked; see ``TrainedRun.save_pretrained``."""
    values = parse(arguments, _define)
    forms = [form.strip() for form in values.format]
    if not forms or set(forms) - set(_FORMS) or len(set(forms)) < len(forms):
        cause = f"--format is {','.join(forms)!r}"
        raise UserError(cause, f"name one or more of {', '.join(_FORMS)}, once")
    check_new(values.out)
    from mvo_jax.trained_run import load_run

    run = load_run(values.workdir, checkpoint=values.checkpoint, data_dir=values.data_dir)
    about = run.save_pretrained(values.out, forms=forms, check=values.check)
    for file, found in about.checked.items():
        apart = ", ".join(f"{name} {difference:.1e}" for name, difference in found.items())
        print(f"{file}: largest difference on {values.check} check clips: {apart}")
    size = sum(facts["bytes"] for facts in about.files.values())
    print(f"bundle: {Path(values.out)} ({size / 1e6:.1f} MB)")
