"""TimeSformer in PyTorch: the network of ``models.timesformer.TimeSformer``, both forms.

State-dict keys of the gated form are those of lucidrains/TimeSformer-pytorch, of the released form
those of a published checkpoint of facebookresearch/TimeSformer. Written for the tests and the
benchmark; nothing imports it at start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import Dropout, Output, RecordedModel, Recorder
from mvo_jax.interop.torch_models.vivit import PreNorm, cut, grey_to


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[..., S, heads * D]`` to ``[..., heads, S, D]``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of each head, ``[..., S, hidden]`` to ``[..., heads, S, head_dim]``."""
    return F.scaled_dot_product_attention(
        _heads(query, heads), _heads(key, heads), _heads(value, heads)
    )


def _joined(x: Tensor) -> Tensor:
    """``[..., heads, S, D]`` to ``[..., S, heads * D]``."""
    return x.transpose(-3, -2).flatten(-2)


class GatedUnit(nn.Module):
    """The first half of the features times the GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 2 * C]`` to ``[..., C]``."""
        values, gates = x.chunk(2, dim=-1)
        return values * F.gelu(gates)


class GatedMlp(nn.Module):
    """Linear, gated unit, dropout, linear."""

    def __init__(self, hidden: int, mlp_dim: int, dropout: Dropout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden, 2 * mlp_dim), GatedUnit(), dropout, nn.Linear(mlp_dim, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return self.net(x)


class JointAttention(nn.Module):
    """Attention within groups of patches, with a CLS token that sees all and is seen by all.

    Args:
        axis: 'time' groups the frames of a patch, 'space' the patches of a frame.
        frames: number of frames.
        hidden: width of a token.
        heads: attention heads.
        head_dim: width of a head.
        dropout: after the output map.
    """

    def __init__(
        self, axis: str, frames: int, hidden: int, heads: int, head_dim: int, dropout: Dropout
    ):
        super().__init__()
        self.over_time, self.frames, self.heads = axis == "time", frames, heads
        self.to_qkv = nn.Linear(hidden, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, hidden), dropout)

    def group(self, x: Tensor) -> Tensor:
        """Patches ``[B, T * N, C]`` as ``[B, groups, members, C]``."""
        x = x.unflatten(1, (self.frames, -1))
        return x.transpose(1, 2) if self.over_time else x

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1 + T * N, hidden]`` to the same shape."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        cls = _attend(query[:, :1], key, value, self.heads)
        grouped = [self.group(part[:, 1:]) for part in (query, key, value)]
        for part, index in ((key, 1), (value, 2)):
            own = part[:, None, :1].expand(-1, grouped[index].shape[1], -1, -1)
            grouped[index] = torch.cat([own, grouped[index]], dim=2)
        out = _joined(_attend(grouped[0], grouped[1], grouped[2], self.heads))
        out = (out.transpose(1, 2) if self.over_time else out).flatten(1, 2)
        return self.to_out(torch.cat([_joined(cls), out], dim=1))


class Attention(nn.Module):
    """Multi-head self-attention over the last but one axis."""

    def __init__(self, hidden: int, heads: int, head_dim: int, dropout: Dropout):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, hidden)
        self.proj_drop = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., S, hidden]`` to the same shape."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj_drop(self.proj(_joined(_attend(query, key, value, self.heads))))


class ReleasedMlp(nn.Module):
    """The plain MLP under the released code's names."""

    def __init__(self, hidden: int, mlp_dim: int, inner: Dropout, outer: Dropout):
        super().__init__()
        self.fc1 = nn.Linear(hidden, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, hidden)
        self.drop, self.out_drop = inner, outer

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return self.out_drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class ReleasedBlock(nn.Module):
    """Attention over time without the CLS token, over space with a copy a frame, MLP."""

    def __init__(
        self, name: str, hidden: int, heads: int, head_dim: int, mlp_dim: int, rate: float
    ):
        super().__init__()
        self.temporal_norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.temporal_attn = Attention(
            hidden, heads, head_dim, Dropout(f"{name}/time_dropout", rate)
        )
        self.temporal_fc = nn.Linear(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.attn = Attention(hidden, heads, head_dim, Dropout(f"{name}/space_dropout", rate))
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.mlp = ReleasedMlp(
            hidden,
            mlp_dim,
            Dropout(f"{name}/mlp/dropout", rate),
            Dropout(f"{name}/mlp/out_dropout", rate),
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
        return tokens[:, :1], tokens[:, 1:].view(x.shape)


class Released(nn.Module):
    """What a published checkpoint calls ``model``."""

    def __init__(
        self,
        frames: int,
        patches: int,
        *,
        num_outputs: int,
        in_channels: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        patch_size: int,
        dropout_rate: float,
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, hidden_size, patch_size, patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + 1, hidden_size))
        self.time_embed = nn.Parameter(0.02 * torch.randn(1, frames, hidden_size))
        self.cls_drop = Dropout("cls_dropout", dropout_rate)
        self.pos_drop = Dropout("position_dropout", dropout_rate)
        self.time_drop = Dropout("time_dropout", dropout_rate)
        self.blocks = nn.ModuleList(
            ReleasedBlock(f"block{i + 1}", hidden_size, num_heads, head_dim, mlp_dim, dropout_rate)
            for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.head = nn.Linear(hidden_size, num_outputs)
        self.record_embedded = Recorder("embedded")
        self.record_encoded = Recorder("encoded")

    def forward(self, video: Tensor) -> Tensor:
        """Logits of ``[B, T, H, W, C]``."""
        batch, frames = video.shape[:2]
        x = self.patch_embed.get_submodule("proj")(video.flatten(0, 1).permute(0, 3, 1, 2))
        x = x.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        cls = self.cls_drop(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = self.pos_drop(x + self.pos_embed[:, None, 1:])
        x = self.time_drop(x + self.time_embed[:, :, None])
        self.record_embedded(torch.cat([cls, x.flatten(1, 2)], dim=1))
        for block in self.blocks:
            cls, x = block(cls, x)
        self.record_encoded(torch.cat([cls, x.flatten(1, 2)], dim=1))
        return self.head(self.norm(cls[:, 0]))


class TorchTimeSformer(RecordedModel):
    """The network of ``mvo_jax.models.baselines.timesformer.TimeSformer``, argument for argument.

    Args:
        frames: T of the clips.
        image_size: H and W of the clips; with ``frames`` it fixes the number of positions.
        form: 'gated' or 'released'.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the embedding; a grey clip is copied to 3.
        hidden_size: width of a token.
        num_layers: blocks.
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLPs.
        patch_size: pixels along each side of a patch.
        dropout_rate: after the embedding (released form), the attentions and in the MLPs.
    """

    def __init__(
        self,
        frames: int = 30,
        image_size: int = 64,
        *,
        form: str = "gated",
        num_outputs: int = 1,
        in_channels: int = 3,
        hidden_size: int = 512,
        num_layers: int = 12,
        num_heads: int = 12,
        head_dim: int = 64,
        mlp_dim: int = 2048,
        patch_size: int = 16,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.in_channels, self.patch_size = in_channels, patch_size
        patches = (image_size // patch_size) ** 2
        self.model = None
        if form == "released":
            self.model = Released(
                frames,
                patches,
                num_outputs=num_outputs,
                in_channels=in_channels,
                hidden_size=hidden_size,
                num_layers=num_layers,
                num_heads=num_heads,
                head_dim=head_dim,
                mlp_dim=mlp_dim,
                patch_size=patch_size,
                dropout_rate=dropout_rate,
            )
            return
        self.to_patch_embedding = nn.Linear(patch_size**2 * in_channels, hidden_size)
        self.pos_emb = nn.Embedding(frames * patches + 1, hidden_size)
        nn.init.normal_(self.pos_emb.weight, std=0.02)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, hidden_size))
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            name = f"block{layer + 1}"
            parts: list[nn.Module] = [
                JointAttention(
                    axis,
                    frames,
                    hidden_size,
                    num_heads,
                    head_dim,
                    Dropout(f"{name}/{axis}_dropout", dropout_rate),
                )
                for axis in ("time", "space")
            ]
            parts.append(
                GatedMlp(hidden_size, mlp_dim, Dropout(f"{name}/mlp/dropout", dropout_rate))
            )
            self.layers.append(nn.ModuleList(PreNorm(hidden_size, part) for part in parts))
        self.to_out = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, num_outputs))
        self.record_embedded = Recorder("embedded")
        self.record_encoded = Recorder("encoded")

    def forward(self, video: Tensor, *, with_mask: bool = True) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        video = grey_to(video, self.in_channels)
        if self.model is not None:
            return Output(self.model(video), None)
        x = self.to_patch_embedding(cut(video, 1, self.patch_size)).flatten(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1) + self.pos_emb.weight
        x = self.record_embedded(x)
        for layer in self.layers:
            for part in layer.children():
                x = x + part(x)
        return Output(self.to_out(self.record_encoded(x)[:, 0]), None)
