"""Several trained runs as one model: the mean of their probabilities, and how far they differ."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mvo_jax.calibrated import CalibratedRun
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
from mvo_jax.evaluation.thresholds import Threshold, given_threshold
from mvo_jax.trained_run import TrainedRun


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Runs that take the same clips; the mean of their probabilities is the ensemble's.

    UserError for fewer than two, one named twice, or clips that were made in different ways.
    """

    members: Sequence[TrainedRun]

    def __post_init__(self):
        first = self.members[0]
        if len(self.members) < 2:
            raise UserError("an ensemble of one run was asked for", "name two or more")
        seen: set[str] = set()
        for member in self.members:
            path = str(member.folder.path)
            if path in seen:
                raise UserError(
                    f"{path} is named twice", "name every run of an ensemble once: all count alike"
                )
            seen.add(path)
            for field in dataclasses.fields(Target):
                theirs, ours = (getattr(one.geometry, field.name) for one in (member, first))
                if theirs != ours:
                    raise UserError(
                        f"{path}: {field.name} is {theirs}, that of {first.folder.path} is {ours}",
                        "the runs of an ensemble must have learned from clips made in one way: "
                        "leave that run out",
                    )

    @property
    def geometry(self) -> Target:
        """That of all members."""
        return self.members[0].geometry

    @property
    def batch_size(self) -> int:
        """Clips that are predicted at a time."""
        return min(member.batch_size for member in self.members)

    @property
    def simulated(self) -> bool:
        """Whether any member has learned from simulated images only."""
        return any(member.simulated for member in self.members)

    @property
    def name(self) -> str:
        """What pages call it."""
        return f"an ensemble of {len(self.members)} runs"

    def facts(self) -> dict[str, Any]:
        """What tables and pages say of it: of the members what differs, of one what does not."""
        each = [member.facts() for member in self.members]
        together: dict[str, Any] = {}
        for key in each[0]:
            values = list(dict.fromkeys(str(one[key]) for one in each))
            together[key] = each[0][key] if len(values) == 1 else "; ".join(values)
        steps = "; ".join(str(one["checkpoint"]) for one in each)
        return {**together, "checkpoint": steps, "members": len(self.members)}

    def decision(self, threshold: float | None = None) -> Threshold:
        """The mean of the members' thresholds: each was chosen on the member's own validation data.

        ``threshold``, in [0, 1], takes its place. UserError where that of a member is not known, or
        members join slices differently.
        """
        rules = {member.config.eval.patient_aggregation: member for member in self.members}
        if len(rules) > 1:
            path = list(rules.values())[-1].folder.path
            raise UserError(
                f"{path}: eval.patient_aggregation is {list(rules)[-1]!r}, that of another run "
                f"{next(iter(rules))!r}",
                "leave that run out: the slices of a patient are joined by one rule",
            )
        if threshold is not None:
            return given_threshold(threshold, next(iter(rules)))
        each = [member.decision() for member in self.members]
        of = f"mean of the thresholds of {len(each)} runs, each chosen on its own validation data"
        if any(isinstance(member, CalibratedRun) for member in self.members):
            of += " and scaled as its probabilities are"
        return Threshold(
            value=float(np.mean([one.value for one in each])),
            origin=of,
            patient_rule=each[0].patient_rule,
            patient_value=float(np.mean([one.patient_value for one in each])),
            patient_origin=of,
        )

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function of up to ``batch_size`` clips, see ``TrainedRun.predictor``.

        Beside the means it gives 'members', ``[n, members]``, the probabilities of each. There is a
        coarse mask where all members predict one of the same size.
        """
        each = [member.predictor(batch_size, with_mask=with_mask) for member in self.members]

        def predict(video: np.ndarray) -> dict[str, np.ndarray]:
            results = [one(video) for one in each]
            members = np.stack([one["probability"] for one in results], axis=1).astype(np.float64)
            joined = {"probability": members.mean(axis=1), "members": members}
            masks = [one["coarse_mask"] for one in results if "coarse_mask" in one]
            if len(masks) == len(each) and len({mask.shape for mask in masks}) == 1:
                joined["coarse_mask"] = np.mean(masks, axis=0)
            return joined

        return predict
