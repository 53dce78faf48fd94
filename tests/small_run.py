"""A tiny experiment and random cases, for tests and for the processes that they start."""

from typing import Any

import numpy as np

from configs.mvo import get_config
from mvo_jax.data.splits import Split, StreamedSplit, content_hash


def make_tiny_config(**changes: Any) -> Any:
    config: Any = get_config()
    config.unlock()
    config.data.frames, config.data.image_size = 8, 32
    config.model.update(width=8, stage_sizes=(1,), in_channels=1, num_heads=2, mask_size=32)
    # Every dropout site takes a second to compile; two are left.
    config.model.update(encoder_dropout=0.0, head_dropout=0.3)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=5)
    config.train.update(batch_size=8, total_steps=50, log_every=10, eval_every=10, num_devices=1)
    config.eval.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config.lock()


def make_random_split(*, cases: int = 16, name: str = "train", seed: int = 0) -> Split:
    draws = np.random.default_rng(seed)
    label = (np.arange(cases) % 2).astype(np.int32)
    lge_mask = draws.integers(0, 2, (cases, 32, 32)).astype(np.uint8)
    lge_mask[:, 12:18, 12:18] = 2 * label[:, None, None]
    return Split(
        name=name,
        video=draws.integers(0, 256, (cases, 8, 32, 32, 1)).astype(np.uint8),
        lge_mask=lge_mask,
        label=label,
        case_id=tuple(f"{name}{i}" for i in range(cases)),
        patient_id=tuple(f"{name}-patient{i}" for i in range(cases)),
        features={},
    )


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
