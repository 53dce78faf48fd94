"""The torch side itself: sizes, losses, schedule and optimisers against ours."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts.mvo_net import REFERENCE
from mvo_jax.interop.torch_models import training as torch_training
from mvo_jax.interop.torch_models.mvo_net import TorchMVONet
from mvo_jax.models.mvo_net import MVONet
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.training import losses, optim
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_train_step


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # Measured by instantiating torchvision's trunk and the authors' heads.
        ({"variant": "backbone"}, 31_300_638),
        ({"variant": "bert"}, 34_456_094),
        ({"variant": "cgmr", "decoder_layout": "released"}, 31_610_271),
        ({"variant": "full", "decoder_layout": "released"}, 34_765_727),
        ({"variant": "backbone", "in_channels": 1}, 31_300_638 - 31_300_125 + 31_295_715),
    ],
)
def test_parameter_counts(options: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        model = TorchMVONet(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("form", ["cross_entropy", "released"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_losses(form: str, outputs: int) -> None:
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.standard_normal((6, outputs)), np.array([0, 1, 1, 0, 1, 0])
    if (form, outputs) == ("released", 2):
        pytest.skip("the released loss has one output")
    theirs = torch_training.classification_loss(
        torch.from_numpy(logits), torch.from_numpy(label), form=form, positive_weight=2.0
    )
    with jax.enable_x64(True):
        settings = losses.LossSettings(form=form, positive_weight=2.0)
        ours = losses.classification_loss(jnp.asarray(logits), jnp.asarray(label), settings)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-14)


@pytest.mark.parametrize(("size", "mask_size"), [(64, 16), (64, 64), (50, 16), (7, 3), (5, 1)])
def test_coarse_mask(size: int, mask_size: int) -> None:
    lge_mask = np.random.default_rng(0).integers(0, 4, (3, size, size), dtype=np.uint8)
    theirs = torch_training.coarse_mask(torch.from_numpy(lge_mask), mask_size)
    # Counts are exact integers below 2^24 and are divided once on both sides.
    np.testing.assert_array_equal(coarse_mask(lge_mask, mask_size), theirs.numpy())


@pytest.mark.parametrize("power", [1.0, 0.9])
@pytest.mark.parametrize("warmup_steps", [0, 15])
def test_learning_rate(power: float, warmup_steps: int) -> None:
    with jax.enable_x64(True):
        schedule = optim.learning_rate_schedule(
            optim.OptimiserSettings(
                learning_rate=1e-2,
                total_steps=80,
                warmup_steps=warmup_steps,
                power=power,
                end_learning_rate=1e-5,
            )
        )
        ours = [float(np.asarray(schedule(step))) for step in range(100)]
    theirs = [
        torch_training.learning_rate(
            step, peak=1e-2, total_steps=80, warmup_steps=warmup_steps, power=power, end=1e-5
        )
        for step in range(100)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "peak", "weight_decay"), [("adamw", 1e-2, 0.1), ("sgd", 1e-1, 5e-2)]
)
def test_optimisers_follow_the_same_path(name: str, peak: float, weight_decay: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((4, 3)), rng.standard_normal((50, 4, 3))
    settings = optim.OptimiserSettings(
        name=name,
        learning_rate=peak,
        total_steps=60,
        warmup_steps=10,
        weight_decay=weight_decay,
        decoupled_weight_decay=name == "adamw",
    )
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch_training.make_optimiser([parameter], name, weight_decay=weight_decay)
    with jax.enable_x64(True):
        transform = optim.make_optimiser(settings)
        # Both sides take the same rate; that the rates agree is tested above. (From an int32
        # counter optax computes it in float32.)
        schedule = optim.learning_rate_schedule(settings)
        params: Any = jnp.asarray(start)
        state = transform.init(params)
        for step, gradient in enumerate(gradients):
            updates, state = transform.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
            torch_training.set_learning_rate(
                optimiser, float(np.asarray(schedule(jnp.int32(step))))
            )
            parameter.grad = torch.from_numpy(gradient)
            optimiser.step()
    # 50 steps, each rounding parameters of order 1 at 1e-16.
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=0, atol=1e-13)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads that wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_torch_thread")
def test_thirty_training_steps_follow_torch() -> None:
    options: dict[str, Any] = {"width": 8, "stage_sizes": (1, 1), "num_heads": 2, "mask_size": 8}
    quiet: dict[str, Any] = {"encoder_dropout": 0.0, "head_dropout": 0.0, "decoder_dropout": 0.0}
    steps, batch, clip = 30, 4, (8, 32, 32, 1)
    torch.manual_seed(0)
    reference = TorchMVONet(8, 32, **options, **quiet).double()
    state_dict = {k: v.numpy().copy() for k, v in reference.state_dict().items()}
    rng = np.random.default_rng(0)
    data = {
        "video": rng.standard_normal((batch, *clip)),
        "label": np.array([0, 1, 1, 0]),
        "coarse_mask": rng.uniform(size=(batch, 8, 8)),
    }
    settings = optim.OptimiserSettings(learning_rate=1e-3, total_steps=40, warmup_steps=5)
    with jax.enable_x64(True):
        schedule = jax.jit(optim.learning_rate_schedule(settings))
        rates = [float(np.asarray(schedule(jnp.int32(step)))) for step in range(steps)]
    optimiser = torch_training.make_optimiser(reference.parameters(), "adamw", weight_decay=0.01)
    theirs = []
    for rate in rates:
        torch_training.set_learning_rate(optimiser, rate)
        tensors = {name: torch.from_numpy(value) for name, value in data.items()}
        loss = torch_training.total_loss(
            reference(tensors["video"]), tensors["label"], tensors["coarse_mask"]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())

    with jax.enable_x64(True):
        model = MVONet(
            **options, **quiet, numerics=Numerics(dtype=jnp.float64, param_dtype=jnp.float64)
        )
        target = jax.eval_shape(
            lambda: model.init({"params": jax.random.key(0)}, jnp.zeros((1, *clip)), train=False)
        )
        variables = jax.tree.map(jnp.asarray, weight_rules.to_flax(state_dict, target, REFERENCE))
        transform = optim.make_optimiser(settings)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=transform.init(variables["params"]),
        )
        step_fn = jax.jit(
            make_train_step(model, transform, losses.LossSettings()),
            compiler_options={"xla_llvm_disable_expensive_passes": True},
        )
        ours = []
        for _ in range(steps):
            state, metrics = step_fn(state, data, jax.random.key(0))
            ours.append(float(metrics["loss"]))
    assert theirs[-1] < 0.5 * theirs[0]
    # Rounding grows along the path; a wrong epsilon or decay shows at 1e-7. Measured: 4e-16.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
