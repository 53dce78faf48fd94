"""The keys of a config: what each means, its bounds, and whether it may change on resume.

One dataclass a part of the config; the part ``model`` has the fields of its module
(``models.registry.published_config``). Config files start from ``default_config``, the numbers of
the paper are in configs/paper.py, and ``check`` refuses what cannot work before anything is built.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mvo_jax.errors import UserError
from mvo_jax.files import local_path

LOSS_FORMS = ("cross_entropy", "released")
OPTIMISERS = ("adamw", "sgd")
THRESHOLD_RULES = ("youden", "sensitivity_0.8", "fixed_0.5", "released_0.44")
PATIENT_RULES = ("max", "mean")
BEST_METRICS = ("auc", "average_precision", "brier", "loss")
_LARGEST_SEED = 2**32 - 1
# Steps and indices are int32 on the devices, and everything else is float32.
_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 3.4028235e38


def _key(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    path: bool = False,
    free_on_resume: bool = False,
    later: bool = False,
) -> Any:
    """A key of the config.

    Args:
        default: value where a config file says nothing; its type is the type of the key. Outside
            the bounds where every config has to set it.
        help: what it means.
        least: smallest value.
        most: largest value.
        choices: names that it takes.
        path: whether it is a path of this machine.
        free_on_resume: whether a run may go on with another value: it changes neither the result
            nor what is logged of it, beyond rounding.
        later: whether the config of an earlier run may lack it, which means the default.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "least": least,
            "most": most,
            "choices": choices,
            "path": path,
            "free_on_resume": free_on_resume,
            "later": later,
        },
    )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The part ``data``: which cohort, and how it is read."""

    name: str = _key("phantom", "phantom (simulated) or cohort (prepared)")
    # Where the data are may change: that they are the same is known by their content.
    dir: str = _key(
        "data",
        "folder of simulated cohorts, or the prepared cohort",
        path=True,
        free_on_resume=True,
    )
    preset: str = _key("paper", "of a simulated cohort: easy, paper or null")
    seed: int = _key(0, "of a simulated cohort", least=0, most=_LARGEST_SEED)
    size: str = _key(
        "paper",
        "of a simulated cohort: paper, demo, small or tiny; patients110, patients220, patients1760 "
        "and patients7040 are paper with so many training patients",
    )
    frames: int = _key(0, "frames of a clip", least=1)
    image_size: int = _key(0, "pixels of a side", least=1)
    slices_per_patient: int = _key(1, "of a simulated cohort", least=1)
    misregistration_mm: float = _key(
        3.2,
        "of a simulated cohort: standard deviation of the mask's shift against the cine, an axis",
        least=0,
        most=10,
        later=True,
    )
    device_budget_mb: int = _key(
        2048,
        "larger splits are read from disk while training, with the same result; 0: all are",
        least=0,
        free_on_resume=True,
    )
    fold: int = _key(
        0, "test fold of a cohort prepared with --folds, or divided by data.folds", least=0
    )
    folds: int = _key(
        0,
        "divide a prepared cohort anew into so many folds, by patient; 0: as it was prepared",
        least=0,
        later=True,
    )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The part ``loss``: form and weights."""

    form: str = _key(
        "cross_entropy",
        "cross_entropy (the paper), or released: half the binary cross-entropy of a sigmoid, with "
        "1e-7 inside the logarithms, as the authors' code computes it",
        choices=LOSS_FORMS,
    )
    mask_loss_weight: float = _key(
        1.0, "the paper's lambda, for the mean squared error of the coarse mask", least=0
    )
    positive_weight: float = _key(
        1.0, "of MVO-positive cases in the classification loss; 1 is neutral", least=0
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The part ``optimizer``: optimiser, schedule and average of the weights."""

    name: str = _key("adamw", "adamw or sgd", choices=OPTIMISERS)
    learning_rate: float = _key(1e-3, "peak learning rate", least=0)
    warmup_steps: int = _key(0, "steps of linear warm-up; 0 for none", least=0)
    warmup_start: float = _key(
        1e-6, "share of the scheduled rate at step 0 of the warm-up", least=0, most=1
    )
    power: float = _key(1.0, "exponent of the polynomial decay", least=0)
    end_learning_rate: float = _key(0.0, "rate at train.total_steps", least=0)
    weight_decay: float = _key(0.01, "on every parameter, as in the released code", least=0)
    decoupled_weight_decay: bool = _key(
        True,
        "AdamW is always decoupled. For SGD, False is torch's L2 term that enters the momentum, "
        "True adds -learning_rate * weight_decay * p beside it",
    )
    momentum: float = _key(0.9, "of SGD", least=0, most=1)
    # Written as text, which a command line and a config file take alike.
    freeze: str = _key(
        "",
        "parts of the model whose parameters stay as they start, as in trunk,encoder; the running "
        "statistics of their BatchNorms go on following the data",
        later=True,
    )
    rate_by_part: str = _key(
        "", "factors of the learning rate by part, as in trunk=0.1,encoder=0.5", later=True
    )
    clip_norm: float = _key(0.0, "largest global gradient norm; 0 for no clipping", least=0)
    ema_decay: float = _key(
        0.0,
        "of the average of the weights that is evaluated; 0 for none",
        least=0,
        most=0.999999,  # an average that never moves is that of the start
    )


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The part ``augment``: strengths of the augmentation; zero turns one off."""

    max_shift: float = _key(
        0.0,
        "largest shift in pixels along each axis, as by the random crop of a padded image",
        least=0,
    )
    flip: bool = _key(False, "flip horizontally and vertically, each with probability 0.5")
    max_rotation_deg: float = _key(0.0, "largest rotation either way, degrees", least=0, most=180)
    brightness: float = _key(
        0.0,
        "largest additive change, in units of the 8-bit range (0.1 is 25.5 grey levels)",
        least=0,
        most=1,
    )
    contrast: float = _key(
        0.0, "largest relative change of contrast about the clip's mean", least=0, most=1
    )
    gamma: float = _key(0.0, "largest change of the logarithm of gamma", least=0)
    time_shift: bool = _key(False, "roll the cycle by a random number of frames")


class Due(NamedTuple):
    """What is due after a step: a row of training metrics, a checkpoint, an evaluation."""

    log: bool
    save: bool
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The part ``train``: steps, devices, saves, and what they say is due when."""

    batch_size: int = _key(0, "clips a step", least=1)
    total_steps: int = _key(0, "steps of the run", least=1)
    log_every: int = _key(50, "steps between rows of metrics.jsonl", least=1)
    eval_every: int = _key(200, "steps between evaluations on the validation split", least=1)
    accumulate: int = _key(
        1,
        "micro-batches whose gradients make one step; batch_size stays the batch of the step. "
        "BatchNorm sees one micro-batch at a time",
        least=1,
        later=True,
    )
    best_metric: str = _key(
        "auc",
        "of the validation split, by which the best checkpoint is chosen: auc, average_precision, "
        "brier or loss",
        choices=BEST_METRICS,
        later=True,
    )
    early_stopping: int = _key(
        0,
        "evaluations without a better best_metric after which the run ends; 0: never",
        least=0,
        later=True,
    )
    num_devices: int = _key(0, "devices of all processes; 0 for all", least=0, free_on_resume=True)
    steps_per_dispatch: int = _key(
        0, "steps compiled as one program; 0: chosen for the backend", least=0, free_on_resume=True
    )
    # What a kill may cost: saves beside those at every evaluation. docs/runs.md
    save_every: int = _key(0, "steps between saves; 0 for none", least=0, free_on_resume=True)
    save_every_seconds: float = _key(
        300.0, "seconds between saves; 0 for none", least=0, free_on_resume=True
    )
    keep_latest: int = _key(2, "newest checkpoints to keep", least=1, free_on_resume=True)
    watchdog_seconds: float = _key(
        900.0,
        "a step, save or evaluation that takes longer is reported; 0 for never",
        least=0,
        free_on_resume=True,
    )
    watchdog_leaves: bool = _key(
        False, "whether it also ends the run, with exit code 9", free_on_resume=True
    )

    def due(self, step: int, *, seconds_since_save: float = 0.0) -> Due:
        """What is due after ``step`` updates; a state is logged and saved before its evaluation."""
        evaluate = step > 0 and (step % self.eval_every == 0 or step == self.total_steps)
        late = 0 < self.save_every_seconds < seconds_since_save
        regular = self.save_every > 0 and step % self.save_every == 0
        return Due(evaluate or step % self.log_every == 0, evaluate or late or regular, evaluate)

    def next_stop(self, step: int, *, longest: int) -> int:
        """Where a dispatch of at most ``longest`` steps ends that begins after ``step`` updates."""
        intervals = (self.log_every, self.eval_every, self.save_every)
        stops = [step + every - step % every for every in intervals if every]
        return min(*stops, self.total_steps, step + longest)

    def stops_early(self, step: int, best_step: int) -> bool:
        """Whether nothing became better since ``best_step`` (-1: never) for too long."""
        evaluations = (step - best_step) // self.eval_every
        return best_step >= 0 and 0 < self.early_stopping <= evaluations


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """The part ``eval``: batch, and how decisions are made."""

    batch_size: int = _key(16, "clips a batch", least=1)
    threshold_rule: str = _key(
        "youden",
        "chosen on validation: youden or sensitivity_0.8; not on data: fixed_0.5, released_0.44",
        choices=THRESHOLD_RULES,
    )
    # A patient has MVO if any slice has, so the most suspicious slice speaks for the patient.
    patient_aggregation: str = _key(
        "max", "from slices to the patient: max or mean", choices=PATIENT_RULES
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The keys beside the parts."""

    seed: int = _key(
        0, "of weights, batches, augmentation and dropout", least=0, most=_LARGEST_SEED
    )
    init_from: str = _key(
        "",
        "what to start from: a run folder, a bundle, or a .safetensors file of `python -m mvo_jax "
        "convert`",
    )


PARTS: dict[str, type] = {
    "data": DataSettings,
    "loss": LossSettings,
    "optimizer": OptimizerSettings,
    "augment": Augmentation,
    "train": TrainSettings,
    "eval": EvalSettings,
}


def _keys() -> Iterator[tuple[str, dataclasses.Field]]:
    """('config.PART.KEY', field) of every key but those of the model."""
    for part, settings in (("", RunSettings), *PARTS.items()):
        for field in dataclasses.fields(settings):
            yield ".".join(filter(None, ("config", part, field.name))), field


FREE_ON_RESUME = frozenset(name for name, field in _keys() if field.metadata["free_on_resume"])
# Keys that the config of an earlier run may lack, and what they are then.
LATER = {name: field.default for name, field in _keys() if field.metadata["later"]}


def default_config(model: Mapping[str, Any]) -> Any:
    """An unlocked ``ConfigDict`` with every key of a config.

    Args:
        model: the part ``model``, from ``models.registry.published_config``.
    """
    from ml_collections import ConfigDict

    content = dataclasses.asdict(RunSettings())
    content["model"] = dict(model)
    return ConfigDict(content | {part: dataclasses.asdict(kind()) for part, kind in PARTS.items()})


def describe() -> str:
    """Every key with its meaning and its type, a line each, as ``--help`` shows them."""
    width = max(len(name) for name, _ in _keys())
    lines = []
    for name, field in _keys():
        kind: Any = field.type
        lines.append(f"  --{name:{width}}  {field.metadata['help']} ({kind.__name__})")
    return "\n".join(lines)


def check(config: Mapping[str, Any]) -> None:
    """Check the keys and the values of a config, but for those of the model.

    Args:
        config: a whole experiment config.

    Raises:
        UserError: a key that is missing or unknown, or a value of another type or out of its
            bounds, by the key's name.
    """
    for part in (*PARTS, "model"):
        if part not in config:
            raise UserError(
                f"the config has no key {part}", "start from a config of this repository"
            )
    for part, kind in PARTS.items():
        known = [field.name for field in dataclasses.fields(kind)]
        for key in config[part]:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise UserError(
                    f"config.{part}.{key} does not exist",
                    f"did you mean {near[0]}?" if near else f"config.{part} has {', '.join(known)}",
                )
    for name, field in _keys():
        *part, key = name.split(".")[1:]
        values = config[part[0]] if part else config
        if key not in values:
            if name in LATER:
                continue
            raise UserError(
                f"the config has no key {'.'.join([*part, key])}",
                "start from a config of this repository",
            )
        _check_value(name, values[key], field)


def _check_value(name: str, value: Any, field: dataclasses.Field) -> None:
    kind: Any = field.type
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} is {value!r}", f"set it to a value of the type {kind.__name__}")
    if field.metadata["path"]:
        local_path(str(value), name)
    choices, least, most = (field.metadata[key] for key in ("choices", "least", "most"))
    if choices and value not in choices:
        raise UserError(
            f"{name} is {value!r}, which does not exist", f"choose from {', '.join(choices)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}", "set it to a finite number")
    if most is not None and not least <= value <= most:
        raise UserError(f"{name} is {value}", f"choose {least} to {most}")
    if least is not None and value < least:
        raise UserError(f"{name} is {value}", f"set it to {least} or more")
    largest = {int: most or _LARGEST_INT, float: _LARGEST_FLOAT}.get(kind)
    if largest is not None and abs(value) > largest:
        raise UserError(f"{name} is {value}", f"set it to {largest} or less")
