"""A tiny experiment and random cases, for tests and for the processes that they start."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mvo_jax.config_files import load_config
from mvo_jax.data.splits import Split, StreamedSplit, content_hash
from mvo_jax.models.registry import MODELS
from tools.tiny_run import tiny_config, tiny_split

TINY: dict[str, Any] = {
    "data.frames": 8,
    "data.image_size": 32,
    "model.width": 8,
    "model.stage_sizes": (1,),
    "model.in_channels": 1,
    "model.num_heads": 2,
    "model.mask_size": 32,
    # Every dropout site takes a second to compile; two are left.
    "model.encoder_dropout": 0.0,
    "model.head_dropout": 0.3,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 5,
    "train.batch_size": 8,
    "train.total_steps": 50,
    "train.log_every": 10,
    "train.eval_every": 10,
    "train.num_devices": 1,
    "eval.batch_size": 8,
}


def shipped_models() -> list[str]:
    """Models of the repository, which the registry knows by where they are; tests add others."""
    return [name for name, where in MODELS.items() if isinstance(where, str)]


def slow_but(quick: Any, every: Iterable[Any], reason: str) -> list[Any]:
    """Parameters of a test: all are slow but the one that stands for them."""
    import pytest

    slow = pytest.mark.slow(reason=reason)
    return [one if one == quick else pytest.param(one, marks=slow) for one in every]


def make_tiny_config(**changes: Any) -> Any:
    """The paper's config in small."""
    config: Any = load_config("mvo").unlock()
    config.update_from_flattened_dict(TINY | changes)
    return config.lock()


def make_smallest_config(**changes: Any) -> Any:
    """The same training of the smallest network, for tests of what surrounds a network."""
    config = make_tiny_config().unlock()
    config.model = tiny_config().model
    config.update_from_flattened_dict(changes)
    return config.lock()


def make_random_split(*, cases: int = 16, name: str = "train", seed: int = 0) -> Split:
    return tiny_split(name, seed, cases, lesion=(12, 18))


class Records:
    """Cases as stored: in another order than the split's."""

    def __init__(self, split: Split, order: np.ndarray):
        self._split, self._order = split, order

    def __getitems__(self, places: list[int]) -> list[dict[str, np.ndarray]]:
        cases = [self._order[place] for place in places]
        return [{"video": self._split.video[i], "lge_mask": self._split.lge_mask[i]} for i in cases]


def make_on_disk(split: Split) -> StreamedSplit:
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
        content=content_hash(split),
    )
