"""``mvo-jax train --config NAME --workdir FOLDER``: train, or go on with, one run."""

from typing import Any

from mvo_jax.cli.flags import Flags, define_process_flags, joined, parse
from mvo_jax.runs.goodput import Clock, process_age


def _define(values: Flags) -> None:
    values.string("workdir", None, "Folder of the run.", required=True)
    profile = "Steps to trace into WORKDIR/profile, for TensorBoard or XProf."
    values.integer("profile", 0, profile, lower_bound=0)
    values.bool("allow_config_change", False, "Go on with a run under another config.")
    values.bool("allow_data_change", False, "Go on with a run on other data.")
    other = "Go on with a run under other settings of JAX (x64, random numbers, matmul precision)."
    values.bool("allow_settings_change", False, other)
    define_process_flags(values)


def main(arguments: list[str]) -> dict[str, Any]:
    """Train the run that the command line describes; see ``run.train_and_evaluate``."""
    clock = Clock(before=process_age())
    values = parse(arguments, _define, with_config=True)
    from mvo_jax.devices import distributed
    from mvo_jax.run import train_and_evaluate

    with joined(values):
        result = train_and_evaluate(
            values.config,
            values.workdir,
            evaluate_on=None,
            profile_steps=values.profile,
            allow_config_change=values.allow_config_change,
            allow_data_change=values.allow_data_change,
            allow_settings_change=values.allow_settings_change,
            clock=clock,
        )
        if distributed.is_first():
            early = ", where it stopped early," if result["stopped_early"] else ""
            chosen = values.config.train.best_metric
            by = "" if chosen == "auc" else f", the best by {chosen}"
            print(
                f"trained to step {result['step']}{early} in {result['seconds']:.0f} s; "
                f"{'' if by else 'best '}validation AUC {result['best_auc']:.4f} at step "
                f"{result['best_step']}{by}; run folder {values.workdir}"
            )
    return result
