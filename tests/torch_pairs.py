"""One network in both frameworks with the same weights and the same batch, run and compared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict

from mvo_jax.interop import weight_rules
from mvo_jax.interop.torch_models.recording import RecordedModel
from mvo_jax.interop.torch_models.training import total_loss
from mvo_jax.interop.weight_rules import Layout
from mvo_jax.training.losses import LossSettings, classification_loss

# Sums of some thousand terms of order 1 through some tens of layers; float64 rounds at 1.1e-16. A
# real difference (an epsilon, a window, a biased variance) is 1e-7 or more.
FORWARD_BOUND = 1e-12  # largest absolute difference, values of order 1
GRADIENT_BOUND = 1e-11  # relative L2 norm of the difference, for each parameter
STATISTICS_BOUND = 1e-13  # largest absolute difference of running statistics

# Compiling takes far longer than running here. XLA's own passes, fusion among them, stay on.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class TorchPair:
    """Both networks in float64, dropout included, on one batch.

    Args:
        flax_model: built in float64.
        torch_model: its torch twin.
        layout: between the two.
        clip: (T, H, W, C) of the batch's clips.
        batch: clips.
    """

    def __init__(
        self,
        flax_model: Any,
        torch_model: RecordedModel,
        layout: Layout,
        clip: tuple[int, ...],
        *,
        batch: int = 3,
    ):
        self.flax_model, self.torch_model, self.layout = flax_model, torch_model.double(), layout
        rng = np.random.default_rng(0)
        for name, value in self.torch_model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.from_numpy(rng.uniform(0.5, 2, value.shape)))
            elif value.is_floating_point() and value.ndim == 1:
                # Scales, biases and means start at 1 or 0, where a mix-up would not show.
                value.add_(torch.from_numpy(0.5 * rng.standard_normal(value.shape)))
        target: Any = jax.eval_shape(
            lambda: flax_model.init(jax.random.key(0), jnp.zeros((1, *clip)), train=False)
        )
        state = {k: v.numpy().copy() for k, v in self.torch_model.state_dict().items()}
        self.variables = weight_rules.to_flax(state, target, layout)
        self.video = rng.standard_normal((batch, *clip))
        self.label = np.arange(batch) % 2

    def flax(self) -> dict[str, Any]:
        """Train the Flax side for one step: everything there is to compare, by name."""
        stats = {k: v for k, v in self.variables.items() if k != "params"}

        def loss_fn(params: Any, video: Any) -> Any:
            output, updated = self.flax_model.apply(
                {"params": params, **stats},
                video,
                train=True,
                with_mask=True,
                rngs={"dropout": jax.random.key(1, impl="rbg")},  # compiles faster than threefry
                mutable=["batch_stats", "intermediates"],
            )
            loss = classification_loss(output.logits, jnp.asarray(self.label), LossSettings())
            return loss.mean(), (output, updated)

        def step(params: Any, video: Any) -> Any:
            return jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(params, video)

        compiled = jax.jit(step, compiler_options=FAST_COMPILE)
        (loss, (output, updated)), gradients = compiled(self.variables["params"], self.video)
        named = flatten_dict(updated["intermediates"], sep="/")
        result = {
            "loss": loss,
            "logits": output.logits,
            "intermediates": {k: v for k, v in named.items() if not k.endswith("/mask")},
            "dropout": {k[:-5]: v for k, v in named.items() if k.endswith("/mask")},
        }
        result["gradients"] = weight_rules.to_torch({"params": gradients[0]}, self.layout)
        result["gradients"]["video"] = gradients[1]
        moved = {"batch_stats": updated.get("batch_stats", {})}
        statistics = weight_rules.to_torch(moved, self.layout)
        result["statistics"] = {k: v for k, v in statistics.items() if "running" in k}
        return jax.tree.map(np.asarray, result)

    def torch(self, dropout: dict[str, np.ndarray]) -> dict[str, Any]:
        """The same on the torch side, with the given dropout masks."""
        model = self.torch_model.train()
        model.inject_dropout({k: torch.tensor(v) for k, v in dropout.items()})
        model.record()
        model.zero_grad()
        video = torch.tensor(self.video, requires_grad=True)
        output = model(video, with_mask=True)
        loss = total_loss(output, torch.tensor(self.label), torch.zeros(()))
        loss.backward()
        assert video.grad is not None
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        gradients["video"] = video.grad
        return {
            "loss": loss.detach().numpy(),
            "logits": output.logits.detach().numpy(),
            "intermediates": {k: v.detach().numpy() for k, v in model.intermediates().items()},
            "gradients": {k: g.numpy() for k, g in gradients.items()},
            "statistics": {k: v.numpy() for k, v in model.named_buffers() if "running" in k},
        }


def _largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    return float(np.abs(ours - theirs).max())


def assert_forward_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Loss, logits and every intermediate."""
    assert ours["intermediates"].keys() == theirs["intermediates"].keys()
    pairs = {k: (v, theirs["intermediates"][k]) for k, v in ours["intermediates"].items()}
    pairs |= {k: (ours[k], theirs[k]) for k in ("loss", "logits")}
    differences = {k: _largest_difference(*pair) for k, pair in pairs.items()}
    assert {k: d for k, d in differences.items() if not d <= FORWARD_BOUND} == {}


def assert_gradients_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Gradients of every parameter and of the clip."""
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    wrong = {}
    for name, their in theirs["gradients"].items():
        our = ours["gradients"][name]
        assert our.shape == their.shape
        size, difference = np.linalg.norm(their), np.linalg.norm(our - their)
        if not (size > 1e-8 and difference / size <= GRADIENT_BOUND):
            wrong[name] = (size, difference)
    assert wrong == {}


def assert_statistics_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Running means and variances after one training pass."""
    assert ours["statistics"].keys() == theirs["statistics"].keys()
    differences = {
        k: _largest_difference(v, theirs["statistics"][k]) for k, v in ours["statistics"].items()
    }
    assert {k: d for k, d in differences.items() if not d <= STATISTICS_BOUND} == {}
