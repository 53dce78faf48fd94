"""How well a predicted coarse map finds the blocks that hold MVO.

MVO lies in the wall, so that a map which says only that looks good: ``localise`` puts beside it two
maps that know nothing of the case, the mean training map and chance.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mvo_jax.data.labels import MVO
from mvo_jax.data.splits import AnySplit
from mvo_jax.errors import UserError
from mvo_jax.evaluation.metrics import average_precision, roc_auc

_NAMES = (
    "mse",
    "zero_map_mse",
    "block_auc",
    "block_average_precision",
    "block_prevalence",
    "pointing_hit_rate",
)


def coarse_map_metrics(
    predicted: np.ndarray, target: np.ndarray, label: np.ndarray
) -> dict[str, dict[str, float | int]]:
    """How well the predicted coarse map finds the MVO blocks, over 'all' and over 'positive' cases.

    A block is positive where its target share is above 0. ``pointing_hit_rate`` is the share of
    cases with a positive block whose highest predicted block is one; several equally high blocks
    share the credit. ``zero_map_mse`` is the error of an all-zero map: most blocks are empty, so a
    small ``mse`` alone says nothing. What has no case is nan.

    Args:
        predicted: [N, m, m].
        target: [N, m, m] in [0, 1].
        label: [N] of 0 and 1, the case labels.
    """
    # One row a case, one column a block.
    predicted = predicted.reshape(len(target), -1).astype(np.float64)
    target = target.reshape(len(target), -1).astype(np.float64)
    positive = label == 1
    return {
        "all": _map_metrics(predicted, target),
        "positive": _map_metrics(predicted[positive], target[positive]),
    }


def _map_metrics(predicted: np.ndarray, target: np.ndarray) -> dict[str, float | int]:
    if len(target) == 0:
        return {"cases": 0, **dict.fromkeys(_NAMES, math.nan)}
    occupied = target > 0
    truth, score = occupied.ravel().astype(np.int64), predicted.ravel()
    pointed = predicted == predicted.max(axis=1, keepdims=True)
    credit = (pointed & occupied).sum(axis=1) / pointed.sum(axis=1)
    with_mvo = occupied.any(axis=1)
    values = (
        float(np.mean((predicted - target) ** 2)),
        float(np.mean(target**2)),
        roc_auc(truth, score),
        average_precision(truth, score),
        float(occupied.mean()),
        float(credit[with_mvo].mean()) if with_mvo.any() else math.nan,
    )
    return {"cases": len(target), **dict(zip(_NAMES, values, strict=True))}


def _hits(k: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """Whether one of the k highest blocks of a case holds MVO; expected where blocks tie."""

    def hit(occupied: np.ndarray, score: np.ndarray) -> float:
        lowest = np.sort(score)[-min(k, score.size)]
        if occupied[score > lowest].any():
            return 1.0
        tied = occupied[score == lowest]
        drawn = min(k, score.size) - int(np.sum(score > lowest))
        empty = tied.size - int(tied.sum())
        return 1.0 - math.comb(empty, drawn) / math.comb(tied.size, drawn)

    return hit


# Figures of one case with MVO: of which blocks hold MVO and of the map's values.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pointing_hit_rate": _hits(1),
    "hit_rate_3_best": _hits(3),
    "hit_rate_5_best": _hits(5),
    "block_auc": lambda occupied, score: roc_auc(occupied.astype(np.int64), score),
    "block_average_precision": lambda occupied, score: average_precision(
        occupied.astype(np.int64), score
    ),
}
MAPS = ("map", "mean_training_map", "chance")
SECTOR_FIGURE = "infarct_sector_hit_rate"  # the highest block lies in the sector of the infarct


def mean_mvo(split: AnySplit, *, most: int = 2000) -> np.ndarray:
    """Share of a split's cases that have MVO at each pixel, float64 [H, W].

    At most ``most`` cases are read, evenly spaced: all of a large split would take minutes.
    """
    count = min(len(split), most)
    places = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    parts = np.array_split(places, max(1, count // 100))
    found = np.zeros(split.read([0])["lge_mask"].shape[1:])
    for part in parts:
        found += (split.read(part)["lge_mask"] == MVO).sum(axis=0)
    return found / count


def coarse_mean(share: np.ndarray, mask_size: int) -> np.ndarray:
    """The mean coarse target [m, m] of the cases behind ``mean_mvo``, by Eq. (1)."""
    block = -(-len(share) // mask_size)
    pad = block * mask_size - len(share)
    padded = np.pad(share, ((0, pad), (0, pad)))
    return padded.reshape(mask_size, block, mask_size, block).mean(axis=(1, 3))


def localise(
    predicted: Any,
    target: Any,
    patient_id: Sequence[str],
    mean_map: np.ndarray | None,
    in_sector: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures a case of the predicted map, of the mean training map and of chance.

    Over the cases that hold MVO. Each figure is a mean over patients, with a normal interval over
    patients; a patient's slices count together once. Chance is a map that is the same everywhere.

    Args:
        predicted: [N, m, m] finite.
        target: [N, m, m] in [0, 1].
        mean_map: [m, m], ``coarse_mean`` of the training split; None where it is not known.
        in_sector: bool [N, m, m], ``InfarctSectors.blocks``: adds how often the highest block lies
            in the sector of the infarct.

    Returns:
        {"cases", "patients", "blocks", "map": {figure: {value, low, high}}, "mean_training_map",
        "chance", "map_minus_mean_map"}; the two on the mean map are None without it, and values are
        nan where no case holds MVO.

    Raises:
        UserError: the mean map is empty.
    """
    predicted, target = (np.asarray(array, np.float64) for array in (predicted, target))
    blocks = target[0].size
    if mean_map is not None and not mean_map.any():
        raise UserError(
            "no training case has a mask with MVO: there is no mean training map to compare with",
            "train on cases with LGE masks, or a model without mask branch",
        )
    occupied = target.reshape(len(target), blocks) > 0
    cases = np.flatnonzero(occupied.any(axis=1) & ~occupied.all(axis=1))
    patients = np.unique(np.asarray(patient_id)[cases], return_inverse=True)[1]
    maps = {"map": predicted.reshape(occupied.shape), "chance": np.zeros(occupied.shape)}
    if mean_map is not None:
        maps["mean_training_map"] = np.broadcast_to(mean_map.reshape(-1), occupied.shape)
    found: dict[str, dict[str, np.ndarray]] = {
        name: {
            figure: np.array([compute(occupied[i], values[i]) for i in cases])
            for figure, compute in FIGURES.items()
        }
        for name, values in maps.items()
    }
    if in_sector is not None:
        inside, hit = in_sector.reshape(occupied.shape), FIGURES["pointing_hit_rate"]
        for name, values in maps.items():
            found[name][SECTOR_FIGURE] = np.array([hit(inside[i], values[i]) for i in cases])

    def means(name: str, less: str = "") -> dict[str, dict[str, float]] | None:
        if name not in found or (less and less not in found):
            return None
        return {
            figure: _over_patients(values - (found[less][figure] if less else 0.0), patients)
            for figure, values in found[name].items()
        }

    return {
        "cases": len(cases),
        "patients": int(patients.max()) + 1 if len(cases) else 0,
        "blocks": blocks,
        **{name: means(name) for name in MAPS},
        "map_minus_mean_map": means("map", less="mean_training_map"),
    }


def _over_patients(values: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Mean over patients with its 95 % interval; nan without patients."""
    if not len(values):
        return dict.fromkeys(("value", "low", "high"), math.nan)
    means = np.bincount(patients, weights=values) / np.bincount(patients)
    value = float(means.mean())
    if means.size < 2:
        return {"value": value, "low": math.nan, "high": math.nan}
    reach = 1.96 * float(means.std(ddof=1)) / math.sqrt(means.size)
    return {"value": value, "low": value - reach, "high": value + reach}
