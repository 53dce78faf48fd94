"""Training in PyTorch: losses, coarse mask, optimisers with the polynomial schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import Output
from mvo_jax.training.optim import OptimiserSettings


def classification_loss(logits: Tensor, label: Tensor, *, form: str = "cross_entropy") -> Tensor:
    """Loss ``[B]`` of logits ``[B, 1]`` or ``[B, 2]`` and labels ``[B]``.

    ``form`` is 'cross_entropy', or 'released' (half-weight BCE, 1e-7 inside the logarithms).
    """
    target = label.to(logits.dtype)
    if form == "released":
        p = logits[:, 0].sigmoid()
        return -(target * (p + 1e-7).log() + (1 - target) * (1 - p + 1e-7).log()) * 0.5
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return F.cross_entropy(logits, label.long(), reduction="none")


def total_loss(
    output: Output,
    label: Tensor,
    coarse_target: Tensor,
    *,
    form: str = "cross_entropy",
    mask_loss_weight: float = 0.05,
) -> Tensor:
    """Classification loss plus lambda times the mean squared error of the coarse mask (Eq. 2)."""
    loss = classification_loss(output.logits, label, form=form).mean()
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


def learning_rate(step: int, settings: OptimiserSettings) -> float:
    """Rate of the update after ``step`` updates: polynomial decay times linear warm-up (mmcv)."""
    peak, end, warmup = settings.learning_rate, settings.end_learning_rate, settings.warmup_steps
    rate = end + (peak - end) * (1 - min(step / settings.total_steps, 1.0)) ** settings.power
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - settings.warmup_start)
    return rate


def make_optimiser(
    parameters: Iterable[nn.Parameter], name: str, *, weight_decay: float, fused: bool | None = None
) -> torch.optim.Optimizer:
    """torch's AdamW (decoupled decay) or SGD (decay as an L2 term), at rate 0 until it is set."""
    options: dict[str, Any] = {"lr": 0.0, "weight_decay": weight_decay, "fused": fused}
    if name == "adamw":
        return torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, **options)
    return torch.optim.SGD(parameters, momentum=0.9, **options)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = rate
