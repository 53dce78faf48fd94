"""The Flax network against the PyTorch one, in float64: equal up to rounding, stage by stage."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts.mvo_net import REFERENCE
from mvo_jax.interop.torch_models.mvo_net import TorchMVONet
from mvo_jax.interop.torch_models.training import total_loss
from mvo_jax.models.layers import LOWERINGS
from mvo_jax.models.mask_decoder import LAYOUTS
from mvo_jax.models.mvo_net import VARIANTS, MVONet
from mvo_jax.models.temporal_encoder import FORMS
from mvo_jax.training.losses import LossSettings, classification_loss, coarse_mask_loss

# Each quantity passes through some 40 layers of sums over at most some thousand terms of order 1;
# float64 rounds at 1.1e-16. A real difference (an epsilon, a biased variance) is 1e-7 or more.
FORWARD_BOUND = 1e-12  # largest absolute difference, values of order 1
GRADIENT_BOUND = 1e-11  # relative L2 norm of the difference, for each parameter
STATISTICS_BOUND = 1e-13  # largest absolute difference of running statistics


@dataclasses.dataclass(frozen=True)
class Case:
    """One pairing of lowering and network; together they cover every choice of each."""

    lowering: str
    network: dict[str, Any]
    clip: tuple[int, int, int, int] = (8, 32, 32, 1)
    form: str = "cross_entropy"

    @property
    def loss(self) -> LossSettings:
        """A lambda large enough that the mask branch counts in every gradient."""
        return LossSettings(form=self.form, mask_loss_weight=0.5)

    def __str__(self) -> str:
        return self.lowering


CASES = [
    Case("conv2d", {"variant": "full", "mask_size": 16, "stage_sizes": (2, 1, 1)}),
    # 9 frames leave two steps to take the maximum over; odd sizes meet every border.
    Case(
        "conv3d",
        {
            "variant": "full",
            "decoder_layout": "released",
            "encoder_form": "standard",
            "mask_size": 6,
            "stage_sizes": (1, 1, 1, 1),
        },
        clip=(9, 36, 33, 3),
        form="released",
    ),
    Case("conv2d_conv1d", {"variant": "cgmr", "decoder_layout": "released", "num_outputs": 2}),
    Case("im2col_conv1d", {"variant": "bert", "in_channels": 1, "num_layers": 2}),
    Case("im2col_matmul", {"variant": "backbone"}),
]

# Gradients that are zero in exact arithmetic, so that only rounding is left to compare: a constant
# added to all keys of a softmax changes nothing, nor does a bias that a BatchNorm subtracts again.
KEY_BIAS = r".*attention\.linear_layers\.1\.bias"
ZERO_GRADIENTS = {
    "paper": rf"{KEY_BIAS}|.*deconv\d\.conv1\.bias|.*deconv1\.deconv2\.bias",
    "released": rf"{KEY_BIAS}|.*deconv\d\.(conv1|deconv2|conv3)\.bias",
}
ZERO_BOUND = 1e-14  # norm; sums of some hundred terms of 0.01 that cancel


class Pair:
    """Both networks with the same random weights, and the same batch."""

    def __init__(self, case: Case, *, batch: int = 3, seed: int = 0):
        frames, height, width, _ = case.clip
        options = {"width": 8, "num_heads": 2, "stage_sizes": (1, 1)} | case.network
        self.case = case
        torch.manual_seed(seed)
        self.torch_model = TorchMVONet(frames, min(height, width), **options)
        self.flax_model = MVONet(
            **options, lowering=case.lowering, dtype=jnp.float64, param_dtype=jnp.float64
        )
        rng = np.random.default_rng(seed)
        self.torch_model.double()
        for name, value in self.torch_model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.from_numpy(rng.uniform(0.5, 2, value.shape)))
            elif value.is_floating_point() and value.ndim == 1:
                # Scales, biases and means start at 1 or 0, where a mix-up would not show.
                value.add_(torch.from_numpy(0.2 * rng.standard_normal(value.shape)))
        target = jax.eval_shape(
            lambda: self.flax_model.init(
                {"params": jax.random.key(0)}, jnp.zeros((1, *case.clip)), train=False
            )
        )
        state = {k: v.numpy().copy() for k, v in self.torch_model.state_dict().items()}
        self.variables = weight_rules.to_flax(
            state,
            {"params": target["params"], "batch_stats": target["batch_stats"]},
            REFERENCE,
        )
        size = options.get("mask_size", 16)
        self.video = rng.standard_normal((batch, *case.clip))
        self.label = np.arange(batch) % 2
        self.coarse_target = rng.uniform(size=(batch, size, size))

    def flax(self, *, train: bool) -> dict[str, Any]:
        """Run the Flax side: everything there is to compare, by name."""

        def loss_fn(params, video):
            output, updated = self.flax_model.apply(
                {"params": params, "batch_stats": self.variables["batch_stats"]},
                video,
                train=train,
                with_mask=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats", "intermediates"],
            )
            loss = classification_loss(
                output.logits, jnp.asarray(self.label), self.case.loss
            ).mean()
            if output.coarse_mask is not None:
                target = jnp.asarray(self.coarse_target)
                mse = coarse_mask_loss(output.coarse_mask, target).mean()
                loss += self.case.loss.mask_loss_weight * mse
            return loss, (output, updated)

        def step(params, video):
            if not train:
                return loss_fn(params, video), None
            return jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(params, video)

        # Fewer LLVM passes: a third off the compile time, the same fusions.
        compiled = jax.jit(step, compiler_options={"xla_llvm_disable_expensive_passes": True})
        (loss, (output, updated)), gradients = compiled(self.variables["params"], self.video)
        named = flatten_dict(updated["intermediates"], sep="/")
        result = {
            "loss": loss,
            "logits": output.logits,
            "intermediates": {k: v for k, v in named.items() if not k.endswith("/mask")},
            "dropout": {k[:-5]: v for k, v in named.items() if k.endswith("/mask")},
        }
        if output.coarse_mask is not None:
            result["coarse_mask"] = output.coarse_mask
        if train:
            result["gradients"] = weight_rules.to_torch({"params": gradients[0]}, REFERENCE)
            result["video_gradient"] = gradients[1]
            statistics = weight_rules.to_torch({"batch_stats": updated["batch_stats"]}, REFERENCE)
            result["statistics"] = {k: v for k, v in statistics.items() if "running" in k}
        return jax.tree.map(np.asarray, result)

    def torch(self, *, train: bool, dropout: dict[str, np.ndarray]) -> dict[str, Any]:
        """Run the torch side with the given dropout masks."""
        model, loss = self.torch_model.train(train), self.case.loss
        if train:
            model.inject_dropout({k: torch.tensor(v) for k, v in dropout.items()})
        model.record()
        model.zero_grad()
        video = torch.tensor(self.video, requires_grad=True)
        output = model(video)
        value = total_loss(
            output,
            torch.tensor(self.label),
            torch.tensor(self.coarse_target),
            form=loss.form,
            mask_loss_weight=loss.mask_loss_weight,
        )
        result: dict[str, Any] = {
            "loss": value.detach().numpy(),
            "logits": output.logits.detach().numpy(),
            "intermediates": {k: v.detach().numpy() for k, v in model.intermediates().items()},
        }
        if output.coarse_mask is not None:
            result["coarse_mask"] = output.coarse_mask.detach().numpy()
        if train:
            value.backward()
            result["gradients"] = {
                k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None
            }
            assert video.grad is not None
            result["video_gradient"] = video.grad.numpy()
            result["statistics"] = {
                k: v.numpy() for k, v in model.named_buffers() if "running" in k
            }
        return result


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    return float(np.abs(ours - theirs).max())


def assert_forward_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["intermediates"].keys() == theirs["intermediates"].keys()
    pairs = {k: (v, theirs["intermediates"][k]) for k, v in ours["intermediates"].items()}
    pairs |= {k: (ours[k], theirs[k]) for k in ("loss", "logits", "coarse_mask") if k in theirs}
    assert ("coarse_mask" in ours) == ("coarse_mask" in theirs)
    differences = {k: largest_difference(*pair) for k, pair in pairs.items()}
    assert {k: d for k, d in differences.items() if not d <= FORWARD_BOUND} == {}


def assert_gradients_equal(ours: dict[str, Any], theirs: dict[str, Any], zero: str) -> None:
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    pairs = {k: (v, theirs["gradients"][k]) for k, v in ours["gradients"].items()}
    pairs["video"] = (ours["video_gradient"], theirs["video_gradient"])
    wrong = {}
    for name, (our, their) in pairs.items():
        assert our.shape == their.shape
        size, difference = np.linalg.norm(their), np.linalg.norm(our - their)
        if re.fullmatch(zero, name):
            if not max(size, np.linalg.norm(our)) <= ZERO_BOUND:
                wrong[name] = (size, np.linalg.norm(our))
        elif not (size > 1e-6 and difference / size <= GRADIENT_BOUND):
            wrong[name] = (size, difference)
    assert wrong == {}


def assert_statistics_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["statistics"].keys() == theirs["statistics"].keys()
    differences = {
        k: largest_difference(v, theirs["statistics"][k]) for k, v in ours["statistics"].items()
    }
    assert {k: d for k, d in differences.items() if not d <= STATISTICS_BOUND} == {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_and_inference_equal_torch_in_float64(case: Case) -> None:
    with jax.enable_x64(True):
        pair = Pair(case)
        # Inference first: the torch model's training pass moves its running statistics.
        ours = pair.flax(train=False)
        assert_forward_equal(ours, pair.torch(train=False, dropout={}))

        ours = pair.flax(train=True)
        theirs = pair.torch(train=True, dropout=ours["dropout"])
    if case.network["variant"] in ("bert", "full"):
        assert not ours["dropout"]["encoder/block1/attention_dropout"].all()
    assert_forward_equal(ours, theirs)
    assert_gradients_equal(
        ours, theirs, ZERO_GRADIENTS[case.network.get("decoder_layout", "paper")]
    )
    assert_statistics_equal(ours, theirs)


def test_cases_cover_every_choice() -> None:
    def chosen(option: str, default: Any) -> set[Any]:
        return {case.network.get(option, default) for case in CASES}

    assert {case.lowering for case in CASES} == set(LOWERINGS)
    assert chosen("variant", "full") == set(VARIANTS)
    assert chosen("decoder_layout", "paper") == set(LAYOUTS)
    assert chosen("encoder_form", "released") == set(FORMS)


def test_full_size_inference_equals_torch_in_float32() -> None:
    torch.manual_seed(0)
    reference = TorchMVONet(decoder_layout="released").eval()
    model = MVONet(decoder_layout="released")
    target = jax.eval_shape(
        lambda: model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, 30, 64, 64, 1)), train=False
        )
    )
    state = {k: v.numpy() for k, v in reference.state_dict().items()}
    variables = weight_rules.to_flax(state, target, REFERENCE)
    video = np.random.default_rng(0).standard_normal((1, 30, 64, 64, 1), dtype=np.float32)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False, with_mask=True))(variables, video)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(video))
    for our, their in ((ours.logits, theirs.logits), (ours.coarse_mask, theirs.coarse_mask)):
        difference = np.abs(np.asarray(our) - their.numpy()).max()
        # float32 rounds at 6e-8 and sums have up to 3000 terms; measured 6e-7.
        assert difference <= 1e-5 * their.abs().max()
