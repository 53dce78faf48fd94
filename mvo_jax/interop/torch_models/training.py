"""Training in PyTorch: losses, coarse mask, optimisers with the polynomial schedule."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import Output


def classification_loss(
    logits: Tensor, label: Tensor, *, form: str = "cross_entropy", positive_weight: float = 1.0
) -> Tensor:
    """Classification loss of each case.

    Args:
        logits: ``[B, 1]`` or ``[B, 2]``.
        label: ``[B]``, 0 or 1.
        form: 'cross_entropy', or 'released' (half-weight BCE, 1e-7 inside the logarithms).
        positive_weight: weight of positive cases.

    Returns:
        ``[B]``.

    Raises:
        ValueError: unknown form.
    """
    target = label.to(logits.dtype)
    if form == "released":
        p = logits[:, 0].sigmoid()
        loss = -(target * (p + 1e-7).log() + (1 - target) * (1 - p + 1e-7).log()) * 0.5
    elif form != "cross_entropy":
        raise ValueError(f"loss form {form!r} is unknown")
    elif logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    else:
        loss = F.cross_entropy(logits, label.long(), reduction="none")
    return loss * (1 + (positive_weight - 1) * target)


def total_loss(
    output: Output,
    label: Tensor,
    coarse_target: Tensor,
    *,
    form: str = "cross_entropy",
    mask_loss_weight: float = 0.05,
    positive_weight: float = 1.0,
) -> Tensor:
    """Classification loss plus lambda times the mean squared error of the coarse mask (Eq. 2)."""
    loss = classification_loss(
        output.logits, label, form=form, positive_weight=positive_weight
    ).mean()
    if output.coarse_mask is None:
        return loss
    return loss + mask_loss_weight * F.mse_loss(output.coarse_mask, coarse_target)


def coarse_mask(lge_mask: Tensor, mask_size: int) -> Tensor:
    """Eq. (1): share of MVO pixels (value 2) per block, ``[B, n, n]`` to ``[B, m, m]`` float32."""
    side = lge_mask.shape[-1]
    block = math.ceil(side / mask_size)
    pad = block * mask_size - side
    mvo = F.pad((lge_mask == 2).float(), (0, pad, 0, pad))
    return F.avg_pool2d(mvo[:, None], block)[:, 0]


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 1e-6,
    power: float = 1.0,
    end: float = 0.0,
) -> float:
    """Rate of the update after ``step`` updates: polynomial decay times linear warm-up (mmcv)."""
    rate = end + (peak - end) * (1 - min(step / total_steps, 1.0)) ** power
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - warmup_start)
    return rate


def make_optimiser(
    parameters: Iterable[nn.Parameter],
    name: str,
    *,
    weight_decay: float,
    momentum: float = 0.9,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """torch's AdamW (decoupled decay) or SGD (decay as an L2 term); set the rate before each step.

    Raises:
        ValueError: unknown name.
    """
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=fused
        )
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
    raise ValueError(f"optimiser {name!r} is unknown")


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = rate
