"""The U-Net of DDPM (Ho et al., 2020), on pixels or on patches of pixels.

It replaces diffusers' `UNet2DModel`: it computes the same function and loads the same weights.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.networks.frozen_layers import Conv2d, norm_silu


class UNet(nn.Module):
    """A U-Net of residual blocks, conditioned on the time and, if it has classes, on the label.

    Args:
        channels: Channels of an image.
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks per level on the way down; there is one more on the way up.
        attention: The levels (from 0) that have self-attention; the middle has it if any does.
        patch: Side of a patch in pixels; the pixels of a patch become channels.
        groups: Number of groups of the group normalization; each width is a multiple of it.
        dropout: The dropout rate of the residual blocks.
        classes: Labels to condition on, besides the null class; 0 for none.
        multi_head: Whether the label chooses one of `classes` + 1 heads (last convolutions) instead
            of being embedded; one forward pass then predicts for all labels (Chen et al., 2024).
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        *,
        layers: int = 1,
        attention: Sequence[int] = (),
        patch: int = 1,
        groups: int = 32,
        dropout: float = 0.0,
        classes: int = 0,
        multi_head: bool = False,
    ):
        super().__init__()
        first, embedding_size, head = widths[0], 4 * widths[0], min(64, *widths)

        def block(inputs: int, width: int, attends: bool) -> Block:
            return Block(inputs, width, embedding_size, groups, dropout, head if attends else 0)

        self.patch, self.width = patch, first
        self.conv_in = Conv2d(channels * patch**2, first, 3, padding=1)
        self.time = nn.Sequential(
            nn.Linear(first, embedding_size), nn.SiLU(), nn.Linear(embedding_size, embedding_size)
        )
        self.heads = classes + 1 if classes and multi_head else 0
        self.label = (
            nn.Embedding(classes + 1, embedding_size) if classes and not multi_head else None
        )

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width, levels = [first], first, range(len(widths))
        for level in levels:
            blocks = []
            for _ in range(layers):
                blocks.append(block(width, widths[level], level in attention))
                width = widths[level]
                skips.append(width)
            halve = Conv2d(width, width, 3, stride=2, padding=1) if level < levels[-1] else None
            skips += [width] if halve else []
            self.down.append(Down(blocks, halve))

        anywhere = any(level in attention for level in levels)
        middle = [block(width, width, attends) for attends in (anywhere, False)]

        for level in reversed(levels):
            blocks = []
            for _ in range(layers + 1):
                blocks.append(block(width + skips.pop(), widths[level], level in attention))
                width = widths[level]
            self.up.append(Up(blocks, Upsample(width) if level else nn.Identity()))

        # Created before `up` and registered after it, as in diffusers, because random weights
        # (including those of a LoRA adapter) are drawn in these orders.
        self.middle = nn.ModuleList(middle)
        self.norm_out = nn.GroupNorm(groups, first)
        self.conv_out = Conv2d(first, max(self.heads, 1) * channels * patch**2, 3, padding=1)
        self.register_load_state_dict_pre_hook(_rename_before_loading)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction, shaped like `x`, or (B, L, C, H, W) for L labels per image.

        Args:
            x: Images (B, C, H, W); H and W are multiples of patch x 2^(levels - 1).
            time: Time inputs (B,), usually from 0 to 999.
            label: Labels (B,) from 0 to `classes`, the null class; None if the network has no
                classes. With `multi_head` also (B, L), at the same cost.

        Raises:
            ValueError: Labels are given to a network without classes, or missing for one with them.
        """
        if len(time) > 1 and time.stride(0) == 0:  # one time for the whole batch: embed it once
            time = time[:1]
        embedding = self.time(timestep_embedding(time, self.width).to(x.dtype))
        if (label is None) != (self.label is None and not self.heads):
            raise ValueError("labels must be given to a U-Net with classes, and to no other")
        if self.label is not None:
            embedding = embedding + self.label(label)
        embedding = F.silu(embedding)

        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        skips = [self.conv_in(x)]
        for level in self.down:
            skips += level(skips[-1], embedding)
        x = skips[-1]
        for block in self.middle:
            x = block(x, embedding)
        for level in self.up:
            x = level(x, embedding, skips)
        x = self.conv_out(norm_silu(self.norm_out, x))
        if label is not None and self.heads:
            x = x.unflatten(1, (self.heads, -1))
            rows = torch.arange(len(x), device=x.device)
            x = x[rows if label.ndim == 1 else rows[:, None], label]
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


class Down(nn.Module):
    """The blocks of a level, followed by a layer that halves the resolution, if any."""

    def __init__(self, blocks: Sequence[nn.Module], resample: nn.Module | None):
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), resample

    def forward(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the features after each block and after the halving."""
        features = []
        for block in self.blocks:
            features.append(x := block(x, embedding))
        return features if self.resample is None else [*features, self.resample(x)]


class Up(nn.Module):
    """The blocks of a level, followed by a layer that doubles the resolution, if any."""

    def __init__(self, blocks: Sequence[nn.Module], resample: nn.Module):
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), resample

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """Return the features after the level; each block removes the last entry of `skips`."""
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.resample(x)


class Upsample(nn.Sequential):
    """Nearest-neighbor upsampling by 2, followed by a convolution."""

    def __init__(self, width: int):
        super().__init__(nn.Upsample(scale_factor=2), Conv2d(width, width, 3, padding=1))


class Block(nn.Module):
    """A residual block, followed by self-attention if `head` is not 0.

    Args:
        inputs: Input channels.
        width: Output channels.
        embedding_size: Dimensions of the embedding of time and label.
        groups: Number of groups of the group normalization.
        dropout: The dropout rate before the second convolution.
        head: Channels per attention head.
    """

    def __init__(
        self, inputs: int, width: int, embedding_size: int, groups: int, dropout: float, head: int
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = Conv2d(inputs, width, 3, padding=1)
        self.time = nn.Linear(embedding_size, width)
        self.norm2 = nn.GroupNorm(groups, width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.shortcut = Conv2d(inputs, width, 1) if inputs != width else nn.Identity()
        self.attention = Attention(width, groups, head) if head else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features (B, inputs, H, W) and embeddings (B, embedding_size) to (B, width, H, W)."""
        inner = self.conv1(norm_silu(self.norm1, x)) + self.time(embedding)[:, :, None, None]
        inner = self.conv2(self.dropout(norm_silu(self.norm2, inner)))
        return self.attention(self.shortcut(x) + inner)


class Attention(nn.Module):
    """Self-attention over the positions of an image, with a residual connection."""

    def __init__(self, width: int, groups: int, head: int, eps: float = 1e-5):
        super().__init__()
        self.head, inner = head, width // head * head
        self.norm = nn.GroupNorm(groups, width, eps=eps)
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(width, inner)
        self.to_v = nn.Linear(width, inner)
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features of the same shape."""
        # Contiguous, because batched products of a transposed view are slow.
        tokens = self.norm(x.flatten(2)).transpose(1, 2).contiguous()
        q, k, v = (
            project(tokens).unflatten(2, (-1, self.head)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        # `x` comes first, because the sum takes the memory layout of its first operand.
        return x + self.to_out(attended).transpose(1, 2).unflatten(2, x.shape[2:])


def timestep_embedding(time: Tensor, width: int, lowest_frequency_exact: bool = False) -> Tensor:
    """Return the sinusoidal embedding (B, width) of times (B,) in float32: cosines, then sines.

    The `width // 2` frequencies fall from 1 toward 1/10,000; if `lowest_frequency_exact`, the last
    one is exactly 1/10,000, as in Ho et al. (2020). If `width` is odd, the last entry is 0.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time[:, None].float() * torch.exp(
        -math.log(10_000) * steps / (half - lowest_frequency_exact)
    )
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


_NAMES = {  # patterns of module names in diffusers' UNet2DModel, and our names for them
    r"time_embedding\.linear_1": "time.0",
    r"time_embedding\.linear_2": "time.2",
    r"class_embedding": "label",
    r"(down|up)_blocks\.(\d+)\.resnets": r"\1.\2.blocks",
    r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)": r"\1.\2.blocks.\3.attention",
    r"down_blocks\.(\d+)\.downsamplers\.0\.conv": r"down.\1.resample",
    r"up_blocks\.(\d+)\.upsamplers\.0\.conv": r"up.\1.resample.1",
    r"mid_block\.resnets": "middle",
    r"mid_block\.attentions\.0": "middle.0.attention",
    r"time_emb_proj": "time",
    r"conv_shortcut": "shortcut",
    r"group_norm": "norm",
    r"to_out\.0": "to_out",
    r"conv_norm_out": "norm_out",
}


def rename(state: dict[str, Any], prefix: str = "") -> None:
    """Rename weights of diffusers' `UNet2DModel` to the names of `UNet`, in place.

    Args:
        state: The weights by name; weights that already have our names keep them.
        prefix: The prefix of the U-Net's weights; weights without it keep their names.
    """
    for name in [name for name in state if name.startswith(prefix)]:
        inner = name.removeprefix(prefix).removeprefix("unet.")  # the prefix in older checkpoints
        for old, new in _NAMES.items():
            inner = re.sub(rf"\b{old}\b", new, inner)
        state[prefix + inner] = state.pop(name)


def repeat_heads(network: UNet, state: dict[str, Any], prefix: str = "") -> None:
    """Repeat the output layer of a U-Net without heads for each head of `network`, in place.

    Args:
        network: The U-Net that will load the weights; if it has no heads, nothing changes.
        state: The weights by the names of `UNet`; an output layer of another size is not changed.
        prefix: The prefix of the U-Net's weights.
    """
    for part in ("weight", "bias") if network.heads else ():
        name, wanted = f"{prefix}conv_out.{part}", getattr(network.conv_out, part)
        if name in state and len(state[name]) * network.heads == len(wanted):
            state[name] = torch.cat([state[name]] * network.heads)


def _rename_before_loading(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    rename(state, prefix)
