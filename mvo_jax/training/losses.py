"""The loss: classification plus lambda times the coarse-mask error (paper Eq. 2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mvo_jax.settings import LOSS_FORMS

Array = jax.Array


def mvo_probability(logits: Array) -> Array:
    """Probability of MVO from ``[B, 1]`` (sigmoid) or ``[B, 2]`` (softmax) logits, ``[B]``."""
    if logits.shape[-1] == 1:
        return nn.sigmoid(logits[..., 0])
    return nn.softmax(logits)[..., 1]


def classification_loss(
    logits: Array, label: Array, *, form: str = "cross_entropy", positive_weight: float = 1.0
) -> Array:
    """Classification loss of each case.

    Args:
        logits: ``[B, 1]`` or ``[B, 2]``.
        label: ``[B]``, 0 or 1.
        form: ``config.loss.form``.
        positive_weight: of MVO-positive cases.

    Returns:
        ``[B]``. A weighted mean over the batch divides by B, not by the sum of the weights, so that
        the loss of a case does not depend on its neighbours.

    Raises:
        ValueError: unknown form, or 'released' with two outputs.
    """
    target = label.astype(logits.dtype)
    if form == "released":
        if logits.shape[-1] != 1:
            raise ValueError("the released loss is defined for one output")
        p = nn.sigmoid(logits[..., 0])
        loss = -0.5 * (target * jnp.log(p + 1e-7) + (1 - target) * jnp.log(1 - p + 1e-7))
    elif form == "cross_entropy":
        if logits.shape[-1] == 1:
            loss = optax.sigmoid_binary_cross_entropy(logits[..., 0], target)
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    else:
        raise ValueError(f"loss form {form!r} is unknown; choose from {LOSS_FORMS}")
    return loss * jnp.where(label == 1, positive_weight, 1.0).astype(loss.dtype)


def coarse_mask_loss(predicted: Array, target: Array) -> Array:
    """Mean squared error of each coarse mask: ``[B, m, m]`` twice to ``[B]``."""
    return jnp.square(predicted - target).mean(axis=(1, 2))
