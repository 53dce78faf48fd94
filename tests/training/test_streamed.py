"""A split read from disk trains, validates and resumes as one in device memory, bit for bit."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax.data.splits import Split, StreamedSplit
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.training import parallel
from mvo_jax.training.checkpoint import Checkpoints
from mvo_jax.training.loop import train
from mvo_jax.training.run_folder import RunFolder
from mvo_jax.training.setup import set_up

SOURCE = Path(__file__).resolve().parents[2]


class Records:
    """Cases as stored, in another order than the split's."""

    def __init__(self, split: Split, order: np.ndarray):
        self._split, self._order = split, order

    def __getitems__(self, places: list[int]) -> list[dict[str, np.ndarray]]:
        cases = [self._order[place] for place in places]
        return [{"video": self._split.video[i], "lge_mask": self._split.lge_mask[i]} for i in cases]


def on_disk(split: Split) -> StreamedSplit:
    order = np.random.default_rng(1).permutation(len(split))
    return StreamedSplit(
        name=split.name,
        label=split.label,
        case_id=split.case_id,
        patient_id=split.patient_id,
        features={},
        records=Records(split, order),
        place=np.argsort(order),
        size_bytes=split.size_bytes,
    )


def run(config: Any, path: Path, split: Split | StreamedSplit, devices: int, stop_at: int = 0):
    """Train to the end, or until the validation of step ``stop_at``; returns the final bytes."""
    experiment = set_up(config, devices=parallel.devices(devices))
    folder = RunFolder(path)
    folder.open_for_training(config.to_dict(), SOURCE)

    def validate(variables: Any) -> dict[str, float]:
        if stop_at and folder.history()[-1]["step"] == stop_at:
            raise KeyboardInterrupt
        return {"auc": 0.5}

    try:
        train(config, experiment, folder, split, validate)
    except KeyboardInterrupt:
        return None
    checkpoints = Checkpoints(path, create=False)
    state = checkpoints.restore_latest(experiment.state_shapes())
    checkpoints.finish()
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


# On an accelerator several steps run in one dispatch: the chunk of 2 takes that path.
@pytest.mark.parametrize(("devices", "chunk"), [(1, 1), (2, 1), (1, 2)])
def test_the_same_bytes_also_when_resumed(tiny_config, random_split, tmp_path, devices, chunk):
    # 18 cases: batches of 8 cross the ends of epochs.
    split = random_split(cases=18)
    # Off-beat logging makes dispatches of unequal length.
    config = tiny_config(
        **{
            "train.total_steps": 9,
            "train.eval_every": 3,
            "train.log_every": 2,
            "train.steps_per_dispatch": chunk,
        }
    )
    resident = run(config, tmp_path / "resident", split, devices)
    assert resident is not None
    assert run(config, tmp_path / "streamed", on_disk(split), devices) == resident
    assert run(config, tmp_path / "parts", on_disk(split), devices, stop_at=6) is None
    # Resumed at step 3, and the kinds may be exchanged.
    assert run(config, tmp_path / "parts", on_disk(split), devices) == resident
    assert run(config, tmp_path / "changed", split, devices, stop_at=6) is None
    assert run(config, tmp_path / "changed", on_disk(split), devices) == resident


@pytest.mark.parametrize("devices", [1, 2])
def test_the_same_predictions(tiny_config, random_split, devices):
    experiment = set_up(tiny_config(), devices=parallel.devices(devices))
    variables = experiment.init_state(0).eval_variables()
    split = random_split(cases=11)  # not a multiple of the batch
    whole, streamed = (
        Predictor(experiment, kind, batch_size=4, with_mask=True)(variables)
        for kind in (split, on_disk(split))
    )
    assert len(whole) == len(streamed) == 11
    assert len(set(whole.probability)) == 11
    for name in ("probability", "coarse_mask", "coarse_target", "label"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(whole, name))
    assert streamed.case_id == whole.case_id


def test_a_negative_budget_is_refused(tiny_config):
    from mvo_jax.errors import UserError

    with pytest.raises(UserError, match=r"config\.data\.device_budget_mb is -1"):
        set_up(tiny_config(**{"data.device_budget_mb": -1}))
