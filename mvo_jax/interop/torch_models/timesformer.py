"""TimeSformer in PyTorch, both forms.

State-dict keys of the gated form are those of lucidrains/TimeSformer-pytorch, of the released form
those of a published checkpoint of facebookresearch/TimeSformer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import Attention, attend, block, chain, cut
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel, Recorder


class GatedUnit(nn.Module):
    """The first half of the features times the GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 2 * C]`` to ``[..., C]``."""
        values, gates = x.chunk(2, dim=-1)
        return values * F.gelu(gates)


class JointAttention(Attention):
    """Attention within groups of patches, with a CLS token that sees all and is seen by all.

    The axis 'time' groups the frames of a patch, 'space' the patches of a frame.
    """

    def __init__(self, axis: str, frames: int, config: Any, dropout: str):
        super().__init__(config, dropout)
        self.over_time, self.frames = axis == "time", frames

    def group(self, x: Tensor) -> Tensor:
        """Patches ``[B, T * N, C]`` as ``[B, groups, members, C]``."""
        x = x.unflatten(1, (self.frames, -1))
        return x.transpose(1, 2) if self.over_time else x

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1 + T * N, hidden]`` to the same shape."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        cls = attend(query[:, :1], key, value, self.heads)

        def with_cls(part: Tensor) -> Tensor:
            grouped = self.group(part[:, 1:])
            own = part[:, None, :1].expand(-1, grouped.shape[1], -1, -1)
            return torch.cat([own, grouped], dim=2)

        out = attend(self.group(query[:, 1:]), with_cls(key), with_cls(value), self.heads)
        out = (out.transpose(1, 2) if self.over_time else out).flatten(1, 2)
        return self.to_out(torch.cat([cls, out], dim=1))


class ReleasedAttention(nn.Module):
    """Multi-head self-attention over the last but one axis, with biases."""

    def __init__(self, config: Any, dropout: str):
        super().__init__()
        self.heads, size = config.num_heads, config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * size)
        self.proj = nn.Linear(size, config.hidden_size)
        self.proj_drop = Dropout(dropout, config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., S, hidden]`` to the same shape."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj_drop(self.proj(attend(query, key, value, self.heads)))


class ReleasedBlock(nn.Module):
    """Attention over time without the CLS token, over space with a copy a frame, MLP."""

    def __init__(self, name: str, config: Any):
        super().__init__()
        hidden, rate = config.hidden_size, config.dropout_rate
        self.temporal_norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.temporal_attn = ReleasedAttention(config, f"{name}/time_dropout")
        self.temporal_fc = nn.Linear(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.attn = ReleasedAttention(config, f"{name}/space_dropout")
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.mlp = chain(
            fc1=nn.Linear(hidden, config.mlp_dim),
            act=nn.GELU(),
            drop=Dropout(f"{name}/mlp/dropout", rate),
            fc2=nn.Linear(config.mlp_dim, hidden),
            out_drop=Dropout(f"{name}/mlp/out_dropout", rate),
        )

    def forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """CLS token ``[B, 1, hidden]`` and patches ``[B, T, N, hidden]`` to the same shapes."""
        time = self.temporal_attn(self.temporal_norm1(x.transpose(1, 2))).transpose(1, 2)
        x = x + self.temporal_fc(time)
        copies = cls[:, None].expand(-1, x.shape[1], -1, -1)
        space = self.attn(self.norm1(torch.cat([copies, x], dim=2)))
        cls, x = cls + space[:, :, 0].mean(1, keepdim=True), x + space[:, :, 1:]
        tokens = torch.cat([cls, x.flatten(1, 2)], dim=1)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens[:, :1], tokens[:, 1:].reshape(x.shape)


class Released(nn.Module):
    """What a published checkpoint calls ``model``."""

    def __init__(self, frames: int, patches: int, config: Any, keep: Recorder):
        super().__init__()
        hidden, rate, self.keep = config.hidden_size, config.dropout_rate, keep
        proj = nn.Conv2d(config.in_channels, hidden, config.patch_size, config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, hidden))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + 1, hidden))
        self.time_embed = nn.Parameter(0.02 * torch.randn(1, frames, hidden))
        self.cls_drop = Dropout("cls_dropout", rate)
        self.pos_drop = Dropout("position_dropout", rate)
        self.time_drop = Dropout("time_dropout", rate)
        names = [f"block{i + 1}" for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(ReleasedBlock(name, config) for name in names)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, config.num_outputs)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of ``[B, T, H, W, C]``."""
        batch, frames = video.shape[:2]
        x = self.patch_embed["proj"](video.flatten(0, 1).permute(0, 3, 1, 2))
        x = x.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        cls = self.cls_drop(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = self.pos_drop(x + self.pos_embed[:, None, 1:])
        x = self.time_drop(x + self.time_embed[:, :, None])
        self.keep("embedded", torch.cat([cls, x.flatten(1, 2)], dim=1))
        for part in self.blocks:
            cls, x = part(cls, x)
        self.keep("encoded", torch.cat([cls, x.flatten(1, 2)], dim=1))
        return self.head(self.norm(cls[:, 0]))


class TorchTimeSformer(RecordedModel):
    """The network of ``mvo_jax.models.baselines.timesformer.TimeSformer``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        hidden, self.patch = config.hidden_size, config.patch_size
        patches = (clip[1] // self.patch) * (clip[2] // self.patch)
        self.model = None
        if config.form == "released":
            self.model = Released(clip[0], patches, config, self.keep)
            return
        self.to_patch_embedding = nn.Linear(self.patch**2 * config.in_channels, hidden)
        self.pos_emb = nn.Embedding(clip[0] * patches + 1, hidden)
        nn.init.normal_(self.pos_emb.weight, std=0.02)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, hidden))
        self.layers = nn.Sequential()
        for layer in range(config.num_layers):
            flax = f"block{layer + 1}"
            time, space = (
                JointAttention(axis, clip[0], config, f"{flax}/{axis}_dropout")
                for axis in ("time", "space")
            )
            mlp = nn.Sequential(
                nn.Linear(hidden, 2 * config.mlp_dim),
                GatedUnit(),
                Dropout(f"{flax}/mlp/dropout", config.dropout_rate),
                nn.Linear(config.mlp_dim, hidden),
            )
            self.layers.append(block(hidden, time, space, chain(net=mlp)))
        self.to_out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.num_outputs))

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        if self.model is not None:
            return self.model(video)
        x = self.to_patch_embedding(cut(video, 1, self.patch)).flatten(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1) + self.pos_emb.weight
        x = self.layers(self.keep("embedded", x))
        return self.to_out(self.keep("encoded", x)[:, 0])
