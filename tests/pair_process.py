"""One process of several, started by tests/devices/test_two_processes.py."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvo_jax.devices import distributed, parallel
from mvo_jax.devices.cluster import Cluster
from mvo_jax.errors import UserError
from mvo_jax.evaluation.predict import ClipPredictor, Predictor
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.resume import Identity
from mvo_jax.runs.signals import Interruption
from mvo_jax.training import lowering_trial
from mvo_jax.training.loop import train
from mvo_jax.training.programs import make_run_steps
from mvo_jax.training.recorder import Supervision
from mvo_jax.training.setup import set_up
from tests.small_network import SMALL, small
from tests.small_run import make_on_disk, make_random_split, make_tiny_config

CHANGES = {**SMALL, "augment.max_rotation_deg": 0.0}
METRICS = ("loss", "ce", "mask_mse", "auc", "accuracy")


def refused(action: Any) -> str:
    """The cause of the UserError that ``action`` raises."""
    try:
        action()
    except UserError as error:
        return error.cause
    return "nothing was wrong"


def talk(folder: Path) -> dict[str, Any]:
    """What goes between processes, beside the steps."""
    index = jax.process_index()
    made = folder / "made_by_one"

    def make() -> str:
        made.touch(exist_ok=not distributed.is_first())  # fails if the first comes second
        return f"seen by {index}"

    def fail() -> None:
        if distributed.is_first():
            raise UserError("the disk is full", "free some")

    hidden = folder / f"only_in_{index}"
    hidden.write_text(str(index))
    distributed._SHARED_SECONDS = 1
    return {
        "exchange": distributed.exchange(f"hello from {index}"),
        "first_then_others": distributed.first_then_others(make),
        "failure of the first": refused(lambda: distributed.first_then_others(fail)),
        "another config": refused(
            lambda: distributed.check_same({"config": {"seed": index, "name": "a"}}, "use one")
        ),
        "same config": refused(lambda: distributed.check_same({"config": {"seed": 3}}, "use one")),
        "not shared": refused(lambda: distributed.check_shared(hidden)),
        "shared": refused(lambda: distributed.check_shared(folder / "made_by_one")),
        "agree": [parallel.agree(flag) for flag in (False, index == 1, index == 0, True, False)],
        "devices": [device.process_index for device in parallel.devices()],
        "two devices": [device.process_index for device in parallel.devices(2)],
        "three devices": refused(lambda: parallel.devices(3)),
        "own rows": parallel.own_rows(np.arange(8), parallel.devices()).tolist(),
        "lowering": tried_lowering(folder),
        "batch of six": refused(
            lambda: set_up(make_tiny_config(**CHANGES, **{"train.batch_size": 6}))
        ),
    }


def tried_lowering(folder: Path) -> str:
    """What both have of a trial that process 0 makes, with real steps, on one of its devices."""
    names = ("conv3d", "im2col_conv1d") if distributed.is_first() else ("conv2d",)
    lowering_trial.TRIED, lowering_trial.SECONDS = {"cpu": names}, 0.1
    config = make_tiny_config(**CHANGES)
    return lowering_trial.settle_lowering(config, RunFolder(folder / "no run yet")).model.lowering


def predictions(experiment: Any) -> dict[str, Any]:
    """Of seven cases in batches of eight, resident, streamed and clip by clip."""
    variables = experiment.init_state().eval_variables()
    split = make_random_split(cases=7, name="validation")
    result = {}
    for name, source in (("resident", split), ("streamed", make_on_disk(split))):
        found = Predictor(experiment, source, batch_size=6, with_mask=True)(variables)
        assert found.coarse_mask is not None
        result[name] = found.probability.tolist()
        result[f"{name} masks"] = float(np.abs(found.coarse_mask).sum())
        assert found.coarse_target is not None
        result[f"{name} targets"] = float(found.coarse_target.sum())
    clips = ClipPredictor(experiment, batch_size=6, with_mask=False)
    result["clips"] = clips(variables, split.video)["probability"].tolist()
    return result


def streamed_losses(experiment: Any) -> list[float]:
    """Losses of two steps whose clips are read from disk."""
    split = make_on_disk(make_random_split())
    run_steps = make_run_steps(experiment, split, range(2), 1)
    state, losses = experiment.init_state(), []
    for k in range(2):
        state, metrics = run_steps(state, experiment.draw(len(split), k)[None])
        losses.append(float(metrics["loss"][0]))
    return losses


def run(
    folder: Path, *, devices: int = 0, kill_at: int = 0, victim: int = 0, number: int = 0
) -> list[dict[str, Any]]:
    """Train, or go on; the victim gets a signal in this start's validation number ``kill_at``.

    Returns its metrics.
    """
    config = make_tiny_config(**{**CHANGES, "train.num_devices": devices})
    experiment = small(set_up(config))
    run_folder = RunFolder(folder)
    run_folder.open_for_training(config.to_dict())
    predict = Predictor(experiment, make_random_split(cases=7), batch_size=6, with_mask=True)
    validations = 0

    def validate(variables: Any) -> dict[str, float]:
        nonlocal validations
        validations += 1
        if validations == kill_at and jax.process_index() == victim:
            os.kill(os.getpid(), number)
        return {"auc": float(predict(variables).probability.mean())}

    with Interruption() as interruption:
        split = make_random_split()
        train(
            experiment,
            run_folder,
            split,
            validate,
            Identity(config.to_dict()),
            supervision=Supervision(interruption=interruption),
        )
    return rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without the time that it took."""
    history = RunFolder(folder).history()
    return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in history]


def everything(folder: Path) -> None:
    """What processes can do together, its results in ``result_N.json``, and a whole run."""
    experiment = small(set_up(make_tiny_config(**CHANGES)))
    result = {
        **talk(folder),
        "predictions": predictions(experiment),
        "streamed losses": streamed_losses(experiment),
    }
    (folder / f"result_{jax.process_index()}.json").write_text(json.dumps(result))
    run(folder / "run")


def fail(only: int | None) -> None:
    """A mistake that one process finds, or all of them, before others wait for it."""
    if only is None:
        distributed.check_same({"seed": jax.process_index()}, "use one seed")
    elif only == jax.process_index():
        raise UserError("there is no data", "make some")
    distributed.exchange("never all of them")


def main(arguments: list[str]) -> None:
    """``COORDINATOR PEER_SECONDS ACTION JSON INDEX COUNT``: join and do what is asked for."""
    address, seconds, action, options, index, count = arguments
    cluster = Cluster("test", int(count), int(index), address)
    actions = {"everything": everything, "run": run, "fail": fail}
    keywords = {k: Path(v) if k == "folder" else v for k, v in json.loads(options).items()}
    try:
        with distributed.joined(cluster, join_seconds=120, peer_seconds=int(seconds)):
            actions[action](**keywords)
    except UserError as error:
        print(f"error: {error.cause}")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main(sys.argv[1:])
