"""``mvo-jax predict --workdir RUN INPUT --out OUT``: a trained run, or a bundle, on new images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvo_jax.cli.flags import Flags, define_source_flags, parse, source_options
from mvo_jax.errors import EXIT_FINDINGS, UserError

if TYPE_CHECKING:
    from mvo_jax.predict_images import Model


def _define(values: Flags) -> None:
    define_source_flags(values)
    runs = (
        "Folder of the run; several with commas are an ensemble, whose mean and spread are given."
    )
    values.list("workdir", None, runs)
    bundle = "In place of a run: folder that export wrote. Computed with onnxruntime, without JAX."
    values.string("bundle", None, bundle)
    values.string("out", None, "Folder to write.", required=True)
    values.enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
    threshold = "Decision threshold, in place of the one chosen on the validation split."
    values.float("threshold", None, threshold, lower_bound=0.0, upper_bound=1.0)
    where = "Where the run's own data lie now; read only if the run was never evaluated."
    values.string("data_dir", None, where)
    scaled = "Scale probabilities by the temperature that eval fitted on the validation split."
    values.bool("calibrated", False, scaled)
    values.bool("overlay", None, "Predict the coarse map and lay it over the pictures.")
    values.bool("nifti", False, "Write the coarse map of each source as NIfTI on its voxels.")
    drawn = "Most cases to draw, those of the highest probability."
    values.integer("pictures", 100, drawn, lower_bound=0)


def _model(values: Flags) -> "Model":
    """The run or the bundle that the flags name."""
    if bool(values.workdir) == bool(values.bundle):
        both, neither = "--workdir and --bundle are both", "neither --workdir nor --bundle is"
        cause = f"{both if values.workdir else neither} given"
        raise UserError(cause, "name the folder of a run, or a bundle")
    if values.bundle is None:
        from mvo_jax.calibrated import calibrated
        from mvo_jax.ensemble import Ensemble
        from mvo_jax.trained_run import load_run

        options = {"checkpoint": values.checkpoint, "data_dir": values.data_dir}
        runs = [load_run(workdir, **options) for workdir in values.workdir]
        members: list[Any] = [calibrated(run) if values.calibrated else run for run in runs]
        return members[0] if len(members) == 1 else Ensemble(members)
    for flag in ("checkpoint", "data_dir", "calibrated"):
        if values[flag].present:
            raise UserError(f"--{flag} is of a run, not of a bundle", "leave it out")
    from mvo_jax.bundles.bundle import load_bundle  # a mistyped folder is not looked up outside

    return load_bundle(values.bundle)


def main(arguments: list[str]) -> None:
    """Predict every slice of the input, write the results and print the headline.

    Raises:
        UserError: nothing could be predicted; or, with exit code 4 and after the results are
            written, some cases could not.
    """
    values = parse(arguments, _define, positional=("source",))
    from mvo_jax.evaluation.pages.case_results import RESEARCH_ONLY
    from mvo_jax.predict_images import predict_images

    out = Path(values.out)
    found = predict_images(
        _model(values),
        Path(values.source),
        out,
        form=values.format,
        options=source_options(values),
        threshold=values.threshold,
        overlay=values.overlay,
        pictures=values.pictures,
        nifti=values.nifti,
    )
    suspected = sum(row["decision"] for row in found.patients)
    patients, slices = len(found.patients), len(found.cases)
    print(f"MVO suspected in {suspected} of {patients} patients ({slices} slices)")
    if unsure := sum(row["crop_to_review"] for row in found.cases):
        print(
            f"{unsure} crops are to be reviewed: the locator is not sure where the left ventricle "
            "is; look at them first, and give centres in a table where one misses it"
        )
    print(f"probabilities: {found.probability}")
    print(f"results: {out / 'summary.html'}")
    print(RESEARCH_ONLY)
    if failed := found.failed:
        one = f"{failed[0].case_id} for one: {failed[0].cause}"
        raise UserError(
            f"{len(failed)} cases could not be predicted, {one}",
            f"{failed[0].remedy}; all are in {out / 'failed.csv'}",
            exit_code=EXIT_FINDINGS,
        )
