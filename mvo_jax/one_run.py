"""One row with one seed, done and reduced to what is kept of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.splits import AnySplit, Split, load_split
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.evaluation.oracle import oracle_predictions
from mvo_jax.evaluation.predictions import read_predictions
from mvo_jax.evaluation.stored_run import Scores, StoredRun
from mvo_jax.evaluation.thresholds import choose_thresholds
from mvo_jax.models.cost import forward_flops, parameter_count
from mvo_jax.models.registry import dense_model
from mvo_jax.run import train_and_evaluate
from mvo_jax.runs.folder import RunFolder, provenance
from mvo_jax.training.setup import set_up

# The command and the time of a start say nothing about the result.
_PROVENANCE = (
    *("git_revision", "python", "platform", "processor", "cpus", "backend", "devices", "xla_flags"),
    *("settings", "versions"),
)


def do_run(
    config: Any,
    folder: RunFolder,
    *,
    name: str,
    split: str,
    cost: tuple[int, float] | None = None,
    features: Sequence[str] = (),
    shuffled: bool = False,
    named: bool = False,
) -> StoredRun:
    """Train and evaluate one run, as far as that is not done, and collect what is kept of it.

    Args:
        name: of its row.
        split: to score.
        cost: what ``cost`` says of the config.
        features: of the simulator: a logistic model of these takes the place of the network.
        shuffled: shuffle the labels, with their masks, among the cases of the training and of the
            validation split.
        named: keep the names of cases and patients.

    Raises:
        UserError: see ``run.train_and_evaluate``.
    """
    about = {key: value for key, value in provenance().items() if key in _PROVENANCE}
    shared: dict[str, Any] = {
        "name": name,
        "seed": config.seed,
        "split": split,
        "config": config.to_dict(),
        "provenance": about,
    }
    if features:
        training, *others = (load_split(config.data, one) for one in ("train", "validation", split))
        validation, scored = oracle_predictions(features, training, others)
        return StoredRun(
            **shared,
            scored=Scores.of(scored),
            validation=Scores.of(validation),
            threshold=choose_thresholds(config, validation).value,
            features=list(features),
        )
    options: dict[str, Any] = {}
    if shuffled:
        options["splits"] = _shuffled(config, split)
    result = train_and_evaluate(config, folder.path, evaluate_on=split, **options)
    scored, threshold = read_predictions(folder.path / f"predictions_{split}.csv", split=split)
    validation, _ = read_predictions(folder.path / "predictions_validation.csv", split="validation")
    curve = [[row["step"], row["auc"]] for row in folder.history() if row["kind"] == "validation"]
    return StoredRun(
        **shared,
        scored=Scores.of(scored, named=named),
        validation=Scores.of(validation, named=named),
        threshold=threshold,
        localisation=result["evaluation"]["localisation"],
        curve=curve,
        best_step=result["best_step"],
        seconds=round(result["seconds"], 1),
        seconds_per_step=_seconds_per_step(folder, config.train.batch_size),
        parameters=cost[0] if cost else None,
        forward_gflop=cost[1] if cost else None,
    )


def _shuffled(config: Any, split: str) -> dict[str, AnySplit]:
    """The splits of a run whose training and validation labels mean nothing."""

    def shuffle(one: AnySplit) -> AnySplit:
        if not isinstance(one, Split):
            raise UserError(
                f"split {one.name!r} is read from disk, where its labels cannot be shuffled",
                "raise data.device_budget_mb",
            )
        order = Draws(config.data.seed, "shuffled labels", one.name).permutation(len(one))
        return dataclasses.replace(one, label=one.label[order], lge_mask=one.lge_mask[order])

    splits = {name: shuffle(load_split(config.data, name)) for name in ("train", "validation")}
    return {**splits, split: load_split(config.data, split)}


def _seconds_per_step(folder: RunFolder, batch_size: int) -> float | None:
    """Median over the logged windows, without the first, which includes compilation."""
    rows = [row for row in folder.history() if row["kind"] == "train"]
    speeds = [row["clips_per_second"] for row in rows[1:]]
    return batch_size / float(np.median(speeds)) if speeds else None


def cost(config: Any) -> tuple[int, float]:
    """(parameters, forward GFLOP of a clip at inference)."""
    experiment = set_up(config, devices=parallel.devices(1))
    parameters = parameter_count(experiment.state_shapes().params)
    flops = forward_flops(dense_model(config.model), experiment.clip_shape, train=False)
    return parameters, flops / 1e9
