"""One training step and one evaluation step: pure functions, the same on one device or many."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mvo_jax.data.augment import Augmentation, augment, normalise
from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.settings import LossSettings
from mvo_jax.training.losses import classification_loss, coarse_mask_loss, mvo_probability
from mvo_jax.training.state import TrainState

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


def make_batch(
    data: Batch,
    indices: Array,
    key: Array,
    *,
    augmentation: Augmentation,
    mask_size: int,
    axis_name: str | None = None,
) -> Batch:
    """Gather, augment and normalise this device's part of a batch.

    The key of an example is folded with its position in the global batch, so augmentation does not
    depend on the number of devices.

    Args:
        data: the split: 'video' uint8 ``[N, T, H, W, C]``, 'lge_mask' uint8 ``[N, H, W]``, 'label'
            ``[N]``.
        indices: ``[b]`` cases of this device.
        key: key of the step, the same on all devices.
        augmentation: strengths.
        mask_size: m of the coarse mask.
        axis_name: device axis; None on one device.

    Returns:
        'video' float32 ``[b, T, H, W, C]``, 'label' ``[b]``, 'coarse_mask' ``[b, m, m]``.
    """
    size = indices.shape[0]
    first = 0 if axis_name is None else lax.axis_index(axis_name) * size

    def one(index: Array, position: Array) -> tuple[Array, Array]:
        example_key = jax.random.fold_in(key, position)
        video, lge_mask = data["video"][index], data["lge_mask"][index]
        video, lge_mask = augment(example_key, video, lge_mask, augmentation)
        return normalise(video), coarse_mask(lge_mask, mask_size)

    video, mask = jax.vmap(one)(indices, first + jnp.arange(size))
    return {"video": video, "label": data["label"][indices], "coarse_mask": mask}


def make_loss(
    model: nn.Module, loss_settings: LossSettings, *, collections: tuple[str, ...] = ()
) -> Callable[..., tuple[Array, tuple[Any, Any, Metrics]]]:
    """Build ``loss(params, batch_stats, batch, key) -> (loss, (output, updated, metrics))``.

    Args:
        model: called in training, with its mask branch.
        loss_settings: form and weights of the loss.
        collections: collections to return beside 'batch_stats', such as 'intermediates'.

    Returns:
        A pure function of one device's batch: the mean loss, the model's output, the updated
        collections and the metrics loss, ce, mask_mse (absent without mask branch), accuracy.
    """

    def loss_fn(
        params: Any, batch_stats: Any, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Any, Any, Metrics]]:
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["video"],
            train=True,
            with_mask=True,
            rngs={"dropout": key},
            mutable=["batch_stats", *collections],
        )
        ce = classification_loss(
            output.logits,
            batch["label"],
            form=loss_settings.form,
            positive_weight=loss_settings.positive_weight,
        ).mean()
        decision = mvo_probability(output.logits) >= 0.5
        metrics = {"ce": ce, "accuracy": (decision == (batch["label"] == 1)).mean()}
        loss = ce
        if output.coarse_mask is not None:
            mse = coarse_mask_loss(output.coarse_mask, batch["coarse_mask"]).mean()
            loss = loss + loss_settings.mask_loss_weight * mse
            metrics["mask_mse"] = mse
        metrics["loss"] = loss
        return loss, (output, updated, metrics)

    return loss_fn


def apply_gradients(
    state: TrainState,
    grads: Any,
    batch_stats: Any,
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
) -> TrainState:
    """The state after one update.

    Args:
        state: before it.
        grads: gradient of the mean loss over the global batch, shaped as ``state.params``.
        batch_stats: running statistics after the forward pass.
        optimiser: makes the update.
        ema_decay: share of the old average kept, where an average is kept.
    """
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema_params)


def make_train_step(
    loss: Callable[..., tuple[Array, tuple[Any, Any, Metrics]]],
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    accumulate: int = 1,
    frozen: Sequence[str] = (),
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Build ``train_step(state, batch, key) -> (state, metrics)``.

    Args:
        loss: from ``make_loss``, of a model built with the same ``axis_name``.
        optimiser: applied to the gradient of the mean loss over the global batch.
        ema_decay: share of the old average kept at each step; 0 keeps no average.
        axis_name: device axis under ``parallel.data_parallel``; None on one device.
        accumulate: micro-batches that the batch is cut into; the gradient is the mean of theirs.
            Each normalises by its own statistics, the running ones move on with each, and each has
            dropout masks of its own.
        frozen: parts of the model that need no gradient.

    Returns:
        A pure function. ``batch`` is this device's part as ``make_batch`` returns it; ``key`` is
        the step's key for dropout, the same on all devices. Metrics are scalars of the global
        batch: loss, ce, mask_mse (absent without mask branch), accuracy, grad_norm.
    """

    def loss_of_trained(params: Any, *rest: Any) -> Any:
        held = {part: lax.stop_gradient(params[part]) for part in frozen}
        return loss({**params, **held}, *rest)

    def gradient(params: Any, batch_stats: Any, batch: Batch, key: Array) -> Any:
        of = loss_of_trained if frozen else loss
        grads, (_, updated, metrics) = jax.grad(of, has_aux=True)(params, batch_stats, batch, key)
        return grads, updated.get("batch_stats", {}), metrics

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        take = gradient if accumulate == 1 else accumulated(gradient, accumulate)
        grads, batch_stats, metrics = take(state.params, state.batch_stats, batch, key)
        if axis_name is not None:
            # Devices hold equal shares of the batch, so a mean of means is the global mean.
            grads, metrics = lax.pmean((grads, metrics), axis_name)
        metrics["grad_norm"] = optax.tree.norm(grads)
        state = apply_gradients(state, grads, batch_stats, optimiser, ema_decay=ema_decay)
        return state, metrics

    return train_step


def accumulated(gradient: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``gradient(params, batch_stats, batch, key)`` of a batch, one micro-batch after the other.

    A step stays one step: nothing is kept between steps, so a schedule, a resume and the sample
    stream know nothing of it (optax.MultiSteps counts micro-batches as steps of its own).

    Args:
        gradient: to (gradients, batch_stats, metrics), means over its batch.
        count: micro-batches, of equal size.
    """

    def of_batch(params: Any, batch_stats: Any, batch: Batch, key: Array) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)

        def add(carry: Any, now: Any) -> tuple[Any, Metrics]:
            batch_stats, total = carry
            index, part = now
            grads, batch_stats, metrics = gradient(
                params, batch_stats, part, jax.random.fold_in(key, index)
            )
            return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

        nothing = jax.tree.map(jnp.zeros_like, params)
        (batch_stats, total), metrics = lax.scan(
            add,
            (batch_stats, nothing),
            (jnp.arange(count), parts),
            unroll=jax.default_backend() == "cpu",  # see make_steps
        )
        grads = jax.tree.map(lambda leaf: leaf / count, total)
        return grads, batch_stats, jax.tree.map(lambda values: values.mean(axis=0), metrics)

    return of_batch


def make_steps(
    train_step: Callable[..., tuple[TrainState, Metrics]], batch_of: Callable[..., Batch]
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build ``steps(state, data, indices, key)``: batches made on the device, K updates.

    Args:
        train_step: from ``make_train_step``.
        batch_of: ``make_batch`` with its options.

    Returns:
        A function of the state, the split in device memory as ``make_batch`` takes it, ``indices
        [K, b]`` and the run's key, to the state and metrics ``[K]``. Without ``indices`` the data
        are the clips of each step, with leading axes ``[K, b]``; the clips that the indices would
        gather make the same updates. K > 1 becomes one ``lax.scan``; K = 1 stays outside of it,
        because a convolution's weight gradient inside a loop is 43 to 86 times slower on a CPU. The
        keys of an update are folded from (run key, step).
    """

    def steps(
        state: TrainState, data: Batch, indices: Array | None, key: Array
    ) -> tuple[TrainState, Metrics]:
        def update(state: TrainState, now: Any) -> tuple[TrainState, Metrics]:
            clips, cases = data, now
            if indices is None:
                clips, cases = now, jnp.arange(len(now["label"]))
            augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
            return train_step(state, batch_of(clips, cases, augment_key), dropout_key)

        inputs = data if indices is None else indices
        if jax.tree.leaves(inputs)[0].shape[0] == 1:
            state, metrics = update(state, jax.tree.map(lambda x: x[0], inputs))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return lax.scan(update, state, inputs)

    return steps


def make_eval_step(
    model: nn.Module, *, with_mask: bool
) -> Callable[[Any, Batch, Array], dict[str, Array]]:
    """Build ``step(variables, data, indices)`` for inference without augmentation.

    Args:
        model: as in training.
        with_mask: also run the mask branch.

    Returns:
        A function to 'probability' ``[b]``, 'logits' ``[b, K]`` and, with mask branch,
        'coarse_mask' ``[b, m, m]``.
    """

    def step(variables: Any, data: Batch, indices: Array) -> dict[str, Array]:
        video = jax.vmap(lambda index: normalise(data["video"][index]))(indices)
        output: Any = model.apply(variables, video, train=False, with_mask=with_mask)
        result = {"probability": mvo_probability(output.logits), "logits": output.logits}
        if output.coarse_mask is not None:
            result["coarse_mask"] = output.coarse_mask
        return result

    return step
