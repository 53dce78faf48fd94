"""Layers that several of the torch models have."""

from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import Dropout


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other; their names are those of the state dict."""
    return nn.Sequential(OrderedDict(layers))


def channels_first(video: Tensor) -> Tensor:
    """``[B, T, H, W, C]`` as ``[B, C, T, H, W]``: a view in the order of channels_last_3d."""
    return video.permute(0, 4, 1, 2, 3)


def conv(
    planes_in: int,
    planes_out: int,
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    *,
    padded: bool = True,
    bias: bool = False,
) -> nn.Module:
    """Convolution with weights of He's width, 2-D or 3-D as its kernel.

    With ``padded`` half a kernel of zeros goes around the input.
    """
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    padding = tuple(size // 2 if padded else 0 for size in kernel)
    layer = kind(planes_in, planes_out, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def cut(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """``[B, T, H, W, C]`` to ``[B, T / tubelet, patches, tubelet * patch^2 * C]``."""
    x = video.unfold(1, tubelet, tubelet).unfold(2, patch, patch).unfold(3, patch, patch)
    # [B, T', rows, columns, C, tubelet, patch, patch] so far.
    return x.permute(0, 1, 2, 3, 5, 6, 7, 4).flatten(4).flatten(2, 3)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of ``[..., S, heads * D]``, without any maps."""
    groups = query.shape[:-2]
    # One axis for the whole batch: exporters to ONNX know attention of four axes only.
    query, key, value = (
        x.flatten(0, -3).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return out.flatten(-2).unflatten(0, groups)


class Attention(nn.Module):
    """Self-attention with one map for queries, keys and values and no bias in it."""

    def __init__(self, config: Any, dropout: str):
        super().__init__()
        self.heads, size = config.num_heads, config.num_heads * config.head_dim
        self.to_qkv = nn.Linear(config.hidden_size, 3 * size, bias=False)
        out = nn.Linear(size, config.hidden_size)
        self.to_out = nn.Sequential(out, Dropout(dropout, config.dropout_rate))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out(attend(query, key, value, self.heads))


class PreNorm(nn.Module):
    """A residual branch behind a norm."""

    def __init__(self, hidden: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return x + self.fn(self.norm(x))


def block(hidden: int, *branches: nn.Module) -> nn.Sequential:
    """Pre-norm residual branches, one after the other."""
    return nn.Sequential(*(PreNorm(hidden, branch) for branch in branches))
