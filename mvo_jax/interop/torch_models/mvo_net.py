"""The method's network in PyTorch.

Written from the paper, from torchvision's documented layout of ``r2plus1d_18`` and from the facts
known of the authors' code. State-dict keys of the trunk are torchvision's; the other parts carry
the names of a released checkpoint.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import chain, channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, Output, RecordedModel, Recorder


def _mid_planes(planes_in: int, planes_out: int) -> int:
    return planes_in * planes_out * 27 // (planes_in * 9 + 3 * planes_out)


def _conv2plus1d(planes_in: int, planes_out: int, mid: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(planes_in, mid, (1, 3, 3), (1, stride, stride)),
        nn.BatchNorm3d(mid),
        nn.ReLU(inplace=True),
        conv(mid, planes_out, (3, 1, 1), (stride, 1, 1)),
    )


class BasicBlock(nn.Module):
    """Residual block of two (2+1)D convolutions that share one mid-plane count."""

    def __init__(self, planes_in: int, planes_out: int, stride: int):
        super().__init__()
        mid = _mid_planes(planes_in, planes_out)
        self.conv1 = nn.Sequential(
            _conv2plus1d(planes_in, planes_out, mid, stride),
            nn.BatchNorm3d(planes_out),
            nn.ReLU(inplace=True),
        )
        second = _conv2plus1d(planes_out, planes_out, mid)
        self.conv2 = nn.Sequential(second, nn.BatchNorm3d(planes_out))
        self.downsample = None
        if stride != 1 or planes_in != planes_out:
            shortcut = conv(planes_in, planes_out, (1, 1, 1), stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(planes_out))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T', H', W']``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(self.conv1(x)) + shortcut, inplace=True)


class Trunk(nn.Module):
    """torchvision's ``r2plus1d_18`` without pooling and head, at any width and depth."""

    def __init__(self, config: Any, keep: Recorder):
        super().__init__()
        planes, self.keep, self.stages = config.width, keep, len(config.stage_sizes)
        mid = max(1, 45 * planes // 64)
        self.stem = nn.Sequential(
            conv(config.in_channels, mid, (1, 7, 7), (1, 2, 2)),
            nn.BatchNorm3d(mid),
            nn.ReLU(inplace=True),
            conv(mid, planes, (3, 1, 1)),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
        )
        for stage, blocks in enumerate(config.stage_sizes):
            layer = nn.Sequential()
            for block in range(blocks):
                planes_out = config.width * 2**stage
                layer.append(BasicBlock(planes, planes_out, 2 if stage > 0 and block == 0 else 1))
                planes = planes_out
            self.add_module(f"layer{stage + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, 8 * width, ceil(T/8), ceil(H/16), ceil(W/16)]``."""
        x = self.keep("trunk/stem", self.stem(x))
        for stage in range(1, self.stages + 1):
            x = self.keep(f"trunk/layer{stage}", self.get_submodule(f"layer{stage}")(x))
        return x


class LayerNorm(nn.Module):
    """'released': over (unbiased deviation + 1e-6); 'standard': the textbook form, eps 1e-5."""

    def __init__(self, size: int, form: str):
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(size))
        self.b_2 = nn.Parameter(torch.zeros(size))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        if self.form == "standard":
            return F.layer_norm(x, x.shape[-1:], self.a_2, self.b_2, eps=1e-5)
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True, correction=1)
        return self.a_2 * (x - mean) / (deviation + 1e-6) + self.b_2


class Attention(nn.Module):
    """Multi-head self-attention with dropout on the weights."""

    def __init__(self, hidden: int, heads: int, dropout: Dropout):
        super().__init__()
        self.heads = heads
        self.linear_layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(3))
        self.output_linear = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        batch, tokens, hidden = x.shape
        query, key, value = (
            linear(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for linear in self.linear_layers
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(hidden // self.heads)
        mixed = self.dropout(scores.softmax(-1)) @ value
        return self.output_linear(mixed.transpose(1, 2).reshape(batch, tokens, hidden))


class Sublayer(nn.Module):
    """Pre-norm residual connection."""

    def __init__(self, hidden: int, form: str, dropout: Dropout):
        super().__init__()
        self.norm = LayerNorm(hidden, form)
        self.dropout = dropout

    def forward(self, x: Tensor, branch: nn.Module) -> Tensor:
        """``x + dropout(branch(norm(x)))``."""
        return x + self.dropout(branch(self.norm(x)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward block with a dropout after it."""

    def __init__(self, name: str, hidden: int, config: Any):
        super().__init__()
        form = config.encoder_form

        def dropout(layer: str) -> Dropout:
            return Dropout(f"{name}/{layer}_dropout", config.encoder_dropout)

        self.attention = Attention(hidden, config.num_heads, dropout("attention"))
        self.feed_forward = chain(
            w_1=nn.Linear(hidden, 4 * hidden),
            gelu=nn.GELU("tanh" if form == "released" else "none"),
            dropout=dropout("mlp"),
            w_2=nn.Linear(4 * hidden, hidden),
        )
        self.input_sublayer = Sublayer(hidden, form, dropout("attention_branch"))
        self.output_sublayer = Sublayer(hidden, form, dropout("mlp_branch"))
        self.dropout = dropout("output")

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        x = self.input_sublayer(x, self.attention)
        return self.dropout(self.output_sublayer(x, self.feed_forward))


class Bert(nn.Module):
    """CLS token, learned positions and encoder blocks without a final norm."""

    def __init__(self, steps: int, hidden: int, config: Any, keep: Recorder):
        super().__init__()
        self.keep = keep
        self.clsToken = nn.Parameter(0.02 * torch.randn(1, 1, hidden))
        position = nn.Parameter(0.02 * torch.randn(1, steps + 1, hidden))
        self.embedding = nn.ModuleDict({"learnedPosition": nn.ParameterDict({"pe": position})})
        self.dropout = Dropout("encoder/embedding_dropout", config.encoder_dropout)
        names = [f"encoder/block{i + 1}" for i in range(config.num_layers)]
        self.transformer_blocks = nn.Sequential(
            *(TransformerBlock(name, hidden, config) for name in names)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, S, hidden]`` to ``[B, 1 + S, hidden]``."""
        cls = self.clsToken.expand(tokens.shape[0], -1, -1)
        position = self.embedding.get_parameter("learnedPosition.pe")
        x = self.dropout(torch.cat([cls, tokens], dim=1) + position)
        x = self.transformer_blocks(self.keep("encoder/embedded", x))
        return self.keep("encoder/encoded", x)


class DecoderBlock(nn.Module):
    """Block that doubles the grid, in the paper's or the released layout."""

    def __init__(self, planes_in: int, planes_out: int, layout: str):
        super().__init__()
        mid = max(1, planes_in // 4)
        upsampled = planes_out if layout == "paper" else mid
        self.conv1 = nn.Conv2d(planes_in, mid, 1)
        self.norm1 = nn.BatchNorm2d(mid)
        self.deconv2 = nn.ConvTranspose2d(mid, upsampled, 3, 2, padding=1, output_padding=1)
        self.layout = layout
        if layout == "released":
            self.norm2 = nn.BatchNorm2d(mid)
            self.conv3 = nn.Conv2d(mid, planes_out, 1)
            self.norm3 = nn.BatchNorm2d(planes_out)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', 2H, 2W]``."""
        x = self.norm1(self.conv1(x))
        if self.layout == "paper":
            return self.deconv2(F.max_pool2d(x, 3, stride=1, padding=1))
        x = F.relu(self.norm2(self.deconv2(F.relu(x))))
        return F.relu(self.norm3(self.conv3(x)))


class PseudoBranch(nn.Module):
    """Mask decoder: maximum over time, doubling blocks, channel dropout, 1x1 convolution."""

    def __init__(self, planes: int, grid: int, config: Any, keep: Recorder):
        super().__init__()
        self.mask_size, self.keep, self.blocks = config.mask_size, keep, 0
        while grid < self.mask_size:
            self.blocks += 1
            grid *= 2
            planes_out = max(8, planes // 2)
            block = DecoderBlock(planes, planes_out, config.decoder_layout)
            self.add_module(f"deconv{self.blocks}", block)
            planes = planes_out
        self.dropout = Dropout("decoder/dropout", config.decoder_dropout, channels=True)
        self.conv_seg = nn.Conv2d(planes, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` to ``[B, m, m]``."""
        x = self.keep("decoder/pooled", features.amax(2))
        for block in range(1, self.blocks + 1):
            x = self.keep(f"decoder/upsampled{block}", self.get_submodule(f"deconv{block}")(x))
        x = self.conv_seg(self.dropout(x))
        if x.shape[2:] != (self.mask_size, self.mask_size):
            x = F.adaptive_avg_pool2d(x, self.mask_size)
        return x[:, 0]


class TorchMVONet(RecordedModel):
    """The network of ``mvo_jax.models.mvo_net.MVONet``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        strides = len(config.stage_sizes) - 1
        hidden = config.width * 2**strides
        steps = math.ceil(clip[0] / 2**strides)
        grid = math.ceil(min(clip[1:3]) / 2 ** (strides + 1))
        self.trunk = Trunk(config, self.keep)
        self.bert = self.pseudo_branch = None
        if config.variant in ("bert", "full"):  # rows of the paper's Table 2
            self.bert = Bert(steps, hidden, config, self.keep)
        self.head_dropout = Dropout("head_dropout", config.head_dropout)
        self.fc_action = nn.Linear(hidden, config.num_outputs)
        if config.variant in ("cgmr", "full"):
            self.pseudo_branch = PseudoBranch(hidden, grid, config, self.keep)

    def forward(self, video: Tensor, *, with_mask: bool = True) -> Output:
        """Classify clips ``[B, T, H, W, C]``; ``with_mask=False`` leaves the mask branch out."""
        features = self.trunk(channels_first(self.match(video)))
        tokens = self.keep("tokens", features.mean((3, 4)).transpose(1, 2))
        pooled = tokens.mean(1) if self.bert is None else self.bert(tokens)[:, 0]
        logits = self.fc_action(self.head_dropout(self.keep("pooled", pooled)))
        if self.pseudo_branch is None or not with_mask:
            return Output(logits, None)
        return Output(logits, self.pseudo_branch(features))
