"""One network in both frameworks with the same weights, run on the same batches.

torch is imported here.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mvo_jax.interop import weight_rules
from mvo_jax.interop.convert import model_shapes
from mvo_jax.interop.layouts import twin_layout
from mvo_jax.interop.parity.cases import Case
from mvo_jax.interop.torch_models import build_twin
from mvo_jax.interop.torch_models import training as torch_training
from mvo_jax.interop.torch_models.recording import RecordedModel
from mvo_jax.models.registry import create_model
from mvo_jax.settings import LossSettings
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import apply_gradients, make_loss

Arrays = dict[str, np.ndarray]
# What one pass gives, by kind: 'values' (losses and outputs), 'intermediates', 'gradients' (by
# torch key, and the input's), 'statistics', 'dropout' (masks, True keeps).
Outcome = dict[str, Arrays]

# A lambda large enough that the mask branch counts in every gradient.
MASK_LOSS_WEIGHT = 0.5
# Deviation of scales and biases, 0.2 elsewhere. With that every maximum that the small I3D pools is
# positive, a BatchNorm subtracts the bias before the ReLU again, and its gradient is zero.
SPREAD = {"i3d": 0.5}
# Fewer LLVM passes: a third off the compile time, the same fusions.
QUICK_COMPILE = {"xla_llvm_disable_expensive_passes": True}
# Rates at which 100 steps learn much and diverge little; both decay and warm up.
OPTIMISERS = {
    "adamw": {"learning_rate": 1e-3, "weight_decay": 0.01},
    "sgd": {"learning_rate": 1e-2, "weight_decay": 5e-4, "decoupled_weight_decay": False},
}


def draw_weights(case: Case, *, seed: int) -> RecordedModel:
    """The torch model in float32 with random weights, statistics and biases."""
    torch.manual_seed(seed)
    model = build_twin(case.config, case.clip)
    rng = np.random.default_rng(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.from_numpy(rng.uniform(0.5, 2, value.shape)))
        elif value.is_floating_point() and value.ndim == 1:
            # Scales, biases and means start at 1 or 0, where a mix-up would not show.
            spread = SPREAD.get(case.model, 0.2)
            value.add_(torch.from_numpy(spread * rng.standard_normal(value.shape)))
    return model


def draw_batch(case: Case, *, seed: int) -> Arrays:
    """Clips, labels and coarse masks, in float32 precision."""
    rng = np.random.default_rng((seed, 1))
    size = case.mask_size
    return {
        "video": rng.standard_normal((case.batch, *case.clip), np.float32),
        "label": np.arange(case.batch, dtype=np.int32) % 2,
        "coarse_mask": rng.uniform(size=(case.batch, size, size)).astype(np.float32),
    }


def cast(batch: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    """Floating arrays in ``dtype``; the others as they are."""
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in batch.items()}


class FlaxSide:
    """The shipped network, loss and update; compiled once. 'float64' needs ``jax.enable_x64``."""

    def __init__(self, case: Case, dtype: str):
        config = case.config | {"dtype": dtype}
        self.case, self.dtype, self.layout = case, dtype, twin_layout(config)
        self.model = create_model(**config)
        self._target = model_shapes(config, case.clip)
        settings = LossSettings(form=case.loss_form, mask_loss_weight=MASK_LOSS_WEIGHT)
        loss = make_loss(self.model, settings, collections=("intermediates",))

        def with_gradients(params: Any, batch_stats: Any, batch: Any, key: jax.Array) -> Any:
            def value(params: Any, video: jax.Array) -> Any:
                return loss(params, batch_stats, {**batch, "video": video}, key)

            return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, batch["video"])

        def forward(variables: Any, video: jax.Array) -> Any:
            return self.model.apply(
                variables, video, train=False, with_mask=True, mutable=["intermediates"]
            )

        self._with_gradients = jax.jit(with_gradients, compiler_options=QUICK_COMPILE)
        self._forward = jax.jit(forward, compiler_options=QUICK_COMPILE)

    def variables(self, weights: RecordedModel) -> dict[str, Any]:
        """The torch model's weights as Flax variables."""
        state = {name: value.numpy() for name, value in weights.state_dict().items()}
        return weight_rules.to_flax(cast(state, self.dtype), self._target, self.layout)

    def infer(self, variables: Any, batch: Arrays) -> Outcome:
        """A pass without dropout and with running statistics."""
        output, updated = self._forward(variables, batch["video"])
        named = weight_rules.flatten(updated["intermediates"])
        return _outcome(values=_values(output), intermediates=named)

    def train(self, variables: Any, batch: Arrays, key: jax.Array) -> tuple[Outcome, Any, Any]:
        """A training pass: what there is to compare, the gradient and the new statistics."""
        (loss, (output, updated, metrics)), (gradient, video_gradient) = self._with_gradients(
            variables["params"], variables.get("batch_stats", {}), batch, key
        )
        batch_stats = updated.get("batch_stats", {})
        named = weight_rules.flatten(updated["intermediates"])
        masks = {k: v for k, v in named.items() if k.endswith("/mask")}
        gradients = weight_rules.to_torch({"params": gradient}, self.layout)
        statistics = weight_rules.to_torch({"batch_stats": batch_stats}, self.layout)
        outcome = _outcome(
            values=_values(output, loss, metrics["ce"], metrics.get("mask_mse")),
            intermediates={k: v for k, v in named.items() if k not in masks},
            dropout={k.removesuffix("/mask"): v for k, v in masks.items()},
            gradients={**gradients, "input": video_gradient},
            statistics={k: v for k, v in statistics.items() if "running" in k},
        )
        return outcome, gradient, batch_stats

    def steps(
        self, variables: Any, batches: list[Arrays], settings: OptimiserSettings, count: int
    ) -> tuple[list[float], list[np.ndarray], list[Arrays]]:
        """Training steps: loss of each, parameters after each (one vector), dropout masks."""
        optimiser = make_optimiser(settings)
        update = jax.jit(functools.partial(apply_gradients, optimiser=optimiser))
        params = jax.tree.map(jnp.asarray, variables["params"])
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimiser.init(params),
        )
        losses, path, masks = [], [], []
        for step in range(count):
            outcome, gradient, batch_stats = self.train(
                {"params": state.params, "batch_stats": state.batch_stats},
                batches[step % len(batches)],
                jax.random.fold_in(jax.random.key(2), step),
            )
            state = update(state, gradient, batch_stats)
            losses.append(float(outcome["values"]["loss"]))
            path.append(vector(weight_rules.to_torch({"params": state.params}, self.layout)))
            masks.append(outcome["dropout"])
        return losses, path, masks


class TorchSide:
    """The torch network in 'float32' or 'float64', with a copy of ``draw_weights``."""

    def __init__(self, case: Case, weights: RecordedModel, dtype: str):
        self.case = case
        self.model = build_twin(case.config, case.clip)
        self.model.load_state_dict(weights.state_dict())
        self.model.to(getattr(torch, dtype))

    def infer(self, batch: Arrays) -> Outcome:
        """A pass without dropout and with running statistics."""
        self.model.eval()
        with torch.no_grad(), self.model.recorded() as intermediates:
            output = self.model(torch.from_numpy(batch["video"]))
        return _outcome(values=_values(output), intermediates=intermediates)

    def _pass(self, batch: Arrays, video: torch.Tensor, dropout: Arrays) -> dict[str, Any]:
        """A training pass with the given dropout masks: losses and outputs."""
        self.model.train().inject_dropout({k: torch.from_numpy(v) for k, v in dropout.items()})
        output, form = self.model(video), self.case.loss_form
        label, target = (torch.from_numpy(batch[name]) for name in ("label", "coarse_mask"))
        loss = torch_training.total_loss(
            output, label, target, form=form, mask_loss_weight=MASK_LOSS_WEIGHT
        )
        each = torch_training.classification_loss(output.logits, label, form=form)
        mask_loss = None
        if output.coarse_mask is not None:
            mask_loss = torch.nn.functional.mse_loss(output.coarse_mask, target)
        return _values(output, loss, each.mean(), mask_loss)

    def train(self, batch: Arrays, dropout: Arrays) -> Outcome:
        """A training pass with the given dropout masks. It moves the running statistics."""
        self.model.zero_grad()
        video = torch.from_numpy(batch["video"]).requires_grad_()
        with self.model.recorded() as intermediates:
            values = self._pass(batch, video, dropout)
        values["loss"].backward()
        gradients = {k: p.grad for k, p in self.model.named_parameters() if p.grad is not None}
        return _outcome(
            values=values,
            intermediates=intermediates,
            gradients={**gradients, "input": video.grad},
            statistics={k: v for k, v in self.model.named_buffers() if "running" in k},
        )

    def steps(
        self, batches: list[Arrays], settings: OptimiserSettings, masks: list[Arrays]
    ) -> tuple[list[float], list[np.ndarray]]:
        """Training steps with the given dropout masks: losses, and parameters after each."""
        optimiser = torch_training.make_optimiser(
            self.model.parameters(), settings.name, weight_decay=settings.weight_decay
        )
        losses, path = [], []
        for step, dropout in enumerate(masks):
            batch = batches[step % len(batches)]
            loss = self._pass(batch, torch.from_numpy(batch["video"]), dropout)["loss"]
            optimiser.zero_grad()
            loss.backward()
            rate = torch_training.learning_rate(step, settings)
            torch_training.set_learning_rate(optimiser, rate)
            optimiser.step()
            losses.append(loss.item())
            path.append(vector({k: _array(p) for k, p in self.model.named_parameters()}))
        return losses, path


def optimiser_settings(name: str, steps: int) -> OptimiserSettings:
    """AdamW or SGD with weight decay, warm-up over a tenth and polynomial decay after ``steps``."""
    return OptimiserSettings(
        name=name, total_steps=steps + 10, warmup_steps=max(1, steps // 10), **OPTIMISERS[name]
    )


def vector(arrays: Mapping[str, Any]) -> np.ndarray:
    """All arrays as one vector, ordered by name."""
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in sorted(arrays)])


def relative_l2(ours: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference over the L2 norm of ``theirs``; nan where shapes differ."""
    if ours.shape != theirs.shape:
        return math.nan
    difference, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    return float(difference / size) if size else float(difference)


def largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; nan where shapes differ."""
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else math.nan


def _values(output: Any, loss: Any = None, classification: Any = None, mask: Any = None) -> Any:
    values = {
        "loss": loss,
        "classification loss": classification,
        "mask loss": mask,
        "logits": output.logits,
        "coarse mask": output.coarse_mask,
    }
    return {name: value for name, value in values.items() if value is not None}


def _array(value: Any) -> np.ndarray:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _outcome(**kinds: Mapping[str, Any]) -> Outcome:
    # Copied: torch's statistics are overwritten by the next pass.
    return {
        kind: {name: _array(value).copy() for name, value in arrays.items()}
        for kind, arrays in kinds.items()
    }
