"""ViViT with a factorised encoder in PyTorch: the network of ``models.vivit.ViViT``.

State-dict keys are those of rishikksh20/ViViT-pytorch. Written for the tests and the benchmark;
nothing imports it at start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import Dropout, Output, RecordedModel, Recorder


def grey_to(video: Tensor, channels: int) -> Tensor:
    """``[B, T, H, W, C]`` with the channels a model was built for; grey is copied to 3."""
    if video.shape[-1] == 1 and channels == 3:
        return video.expand(*video.shape[:-1], 3)
    return video


def cut(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """``[B, T, H, W, C]`` to ``[B, T / tubelet, patches, tubelet * patch^2 * C]``."""
    x = video.unfold(1, tubelet, tubelet).unfold(2, patch, patch).unfold(3, patch, patch)
    # [B, T', rows, columns, C, tubelet, patch, patch] so far.
    return x.permute(0, 1, 2, 3, 5, 6, 7, 4).flatten(4).flatten(2, 3)


class Attention(nn.Module):
    """Multi-head self-attention with one map for queries, keys and values and no bias in it."""

    def __init__(self, hidden: int, heads: int, head_dim: int, dropout: Dropout):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hidden, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, hidden), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear, dropout."""

    def __init__(self, hidden: int, mlp_dim: int, inner: Dropout, outer: Dropout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden, mlp_dim), nn.GELU(), inner, nn.Linear(mlp_dim, hidden), outer
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return self.net(x)


class PreNorm(nn.Module):
    """``fn(norm(x))``."""

    def __init__(self, hidden: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return self.fn(self.norm(x))


class Transformer(nn.Module):
    """Pre-norm blocks and a last LayerNorm."""

    def __init__(
        self,
        name: str,
        layers: int,
        hidden: int,
        heads: int,
        head_dim: int,
        mlp_dim: int,
        rate: float,
    ):
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in range(layers):
            start = f"{name}_block{layer + 1}"
            attention = Attention(
                hidden, heads, head_dim, Dropout(f"{start}/attention_dropout", rate)
            )
            mlp = FeedForward(
                hidden,
                mlp_dim,
                Dropout(f"{start}/mlp/dropout", rate),
                Dropout(f"{start}/mlp/out_dropout", rate),
            )
            self.layers.append(nn.ModuleList([PreNorm(hidden, attention), PreNorm(hidden, mlp)]))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        for pair in self.layers:
            attention, mlp = pair.children()
            x = x + attention(x)
            x = x + mlp(x)
        return self.norm(x)


class TorchViViT(RecordedModel):
    """The network of ``mvo_jax.models.baselines.vivit.ViViT``, argument for argument.

    Args:
        frames: T of the clips.
        image_size: H and W of the clips; with ``frames`` it fixes the number of positions.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the embedding; a grey clip is copied to 3.
        hidden_size: width of a token.
        num_layers: blocks of each encoder.
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLPs.
        patch_size: pixels along each side of a patch.
        tubelet_size: frames of a patch.
        token_deviation: standard deviation of CLS tokens and positions at the start.
        dropout_rate: after the embedding, the attention and in the MLPs.
    """

    def __init__(
        self,
        frames: int = 30,
        image_size: int = 64,
        *,
        num_outputs: int = 1,
        in_channels: int = 3,
        hidden_size: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int = 2048,
        patch_size: int = 4,
        tubelet_size: int = 1,
        token_deviation: float = 1.0,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.in_channels, self.patch_size, self.tubelet_size = in_channels, patch_size, tubelet_size
        values = tubelet_size * patch_size**2 * in_channels
        # Index 0 of the public implementation is the cutting, which has no parameters.
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(values, hidden_size))
        shape = frames // tubelet_size, (image_size // patch_size) ** 2 + 1, hidden_size
        self.pos_embedding = nn.Parameter(token_deviation * torch.randn(1, *shape))
        self.space_token = nn.Parameter(token_deviation * torch.randn(1, 1, hidden_size))
        self.temporal_token = nn.Parameter(token_deviation * torch.randn(1, 1, hidden_size))
        sizes = num_layers, hidden_size, num_heads, head_dim, mlp_dim, dropout_rate
        self.space_transformer = Transformer("space", *sizes)
        self.temporal_transformer = Transformer("time", *sizes)
        self.dropout = Dropout("embedding_dropout", dropout_rate)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(hidden_size), nn.Linear(hidden_size, num_outputs)
        )
        self.record_embedded = Recorder("embedded")
        self.record_steps = Recorder("steps")
        self.record_pooled = Recorder("pooled")

    def forward(self, video: Tensor, *, with_mask: bool = True) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        patches = cut(grey_to(video, self.in_channels), self.tubelet_size, self.patch_size)
        x = self.to_patch_embedding(patches)
        batch, steps = x.shape[:2]
        x = torch.cat([self.space_token.expand(batch, steps, 1, -1), x], dim=2)
        x = self.dropout((x + self.pos_embedding).flatten(0, 1))
        x = self.space_transformer(self.record_embedded(x))[:, 0]
        x = self.record_steps(x.unflatten(0, (batch, steps)))
        x = torch.cat([self.temporal_token.expand(batch, 1, -1), x], dim=1)
        x = self.record_pooled(self.temporal_transformer(x)[:, 0])
        return Output(self.mlp_head(x), None)
