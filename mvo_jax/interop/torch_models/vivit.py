"""ViViT with a factorised encoder in PyTorch; state-dict keys of rishikksh20/ViViT-pytorch."""

from typing import Any

import torch
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import Attention, block, chain, cut
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel


def _encoder(name: str, config: Any) -> nn.Module:
    """Pre-norm blocks and a last LayerNorm, ``[B, S, hidden]`` to the same shape."""
    hidden, rate = config.hidden_size, config.dropout_rate
    layers = nn.Sequential()
    for layer in range(config.num_layers):
        flax = f"{name}_block{layer + 1}"
        attention = Attention(config, f"{flax}/attention_dropout")
        mlp = nn.Sequential(
            nn.Linear(hidden, config.mlp_dim),
            nn.GELU(),
            Dropout(f"{flax}/mlp/dropout", rate),
            nn.Linear(config.mlp_dim, hidden),
            Dropout(f"{flax}/mlp/out_dropout", rate),
        )
        layers.append(block(hidden, attention, chain(net=mlp)))
    return chain(layers=layers, norm=nn.LayerNorm(hidden))


class TorchViViT(RecordedModel):
    """The network of ``mvo_jax.models.baselines.vivit.ViViT``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        hidden, deviation = config.hidden_size, config.token_deviation
        self.tubelet, self.patch = config.tubelet_size, config.patch_size
        values = self.tubelet * self.patch**2 * config.in_channels
        # Index 0 of the public implementation is the cutting, which has no parameters.
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(values, hidden))
        patches = (clip[1] // self.patch) * (clip[2] // self.patch)
        positions = torch.randn(1, clip[0] // self.tubelet, patches + 1, hidden)
        self.pos_embedding = nn.Parameter(deviation * positions)
        self.space_token = nn.Parameter(deviation * torch.randn(1, 1, hidden))
        self.temporal_token = nn.Parameter(deviation * torch.randn(1, 1, hidden))
        self.space_transformer = _encoder("space", config)
        self.temporal_transformer = _encoder("time", config)
        self.dropout = Dropout("embedding_dropout", config.dropout_rate)
        self.mlp_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.num_outputs))

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        x = self.to_patch_embedding(cut(video, self.tubelet, self.patch))
        batch, steps = x.shape[:2]
        x = torch.cat([self.space_token.expand(batch, steps, 1, -1), x], dim=2)
        x = self.keep("embedded", self.dropout((x + self.pos_embedding).flatten(0, 1)))
        x = self.keep("steps", self.space_transformer(x)[:, 0].unflatten(0, (batch, steps)))
        x = torch.cat([self.temporal_token.expand(batch, 1, -1), x], dim=1)
        return self.mlp_head(self.keep("pooled", self.temporal_transformer(x)[:, 0]))
