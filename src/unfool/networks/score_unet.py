"""The U-Net of published diffusion models on pixels, in the variants that their authors trained.

One class implements ADM (Nichol and Dhariwal, 2021; Dhariwal and Nichol, 2021), DDPM (Ho et al.,
2020), and DDPM++ and NCSN++ (Song et al., 2021). They share the order of their blocks and differ in
details, which a `Style` describes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.networks.frozen_layers import Conv2d, norm_silu
from unfool.networks.unet import Attention, timestep_embedding

DOWN, UP = -1, 1


@dataclass(frozen=True)
class Style:
    """The differences between one family of these U-Nets and another.

    Attributes:
        groups: Maximum number of groups of a group normalization.
        group_width: Minimum number of channels per group.
        eps: Epsilon of the normalization.
        sines_first: Whether the time embedding begins with the sines; otherwise with the cosines.
        lowest_frequency_exact: Whether the lowest frequency of the time embedding is 1/10,000, and
            not above.
        fourier: Whether the time is embedded at frequencies that are stored with the weights.
        labels_first: Whether the label is added to the time embedding before the two linear layers;
            otherwise after them.
        blocks_resample: Whether residual blocks change the resolution; otherwise separate
            convolutions do.
        symmetric_padding: Whether the convolution that halves the resolution is padded on all sides;
            otherwise only on the right and bottom.
        scale_shift: Whether the embedding scales and shifts the features; otherwise it is added.
        normalizes_sums: Whether every sum of two branches is divided by sqrt(2), and every block
            that resamples has a convolution in its shortcut.
        attention_in_last_up_block_only: Whether only the last block of a level has attention on the
            way up.
        resample_filter: The filter that smooths the features which a block resamples.
        pyramid: Whether an input pyramid is added to the features at each level on the way down.
    """

    groups: int = 32
    group_width: int = 1
    eps: float = 1e-5
    sines_first: bool = False
    lowest_frequency_exact: bool = False
    fourier: bool = False
    labels_first: bool = False
    blocks_resample: bool = True
    symmetric_padding: bool = True
    scale_shift: bool = True
    normalizes_sums: bool = False
    attention_in_last_up_block_only: bool = False
    resample_filter: tuple[int, ...] = (1, 1)
    pyramid: bool = False

    def norm(self, width: int) -> nn.GroupNorm:
        """Build the normalization layer for `width` channels."""
        return nn.GroupNorm(self.groups_of(width), width, eps=self.eps)

    def groups_of(self, width: int) -> int:
        """Return the number of groups in which `width` channels are normalized."""
        return min(self.groups, width // self.group_width)

    def sum(self, a: Tensor, b: Tensor) -> Tensor:
        """Add two branches, and divide the sum by sqrt(2) if `normalizes_sums`."""
        return (a + b) / math.sqrt(2) if self.normalizes_sums else a + b


ADM = Style()
DDPM = Style(
    eps=1e-6,
    sines_first=True,
    lowest_frequency_exact=True,
    blocks_resample=False,
    symmetric_padding=False,
    scale_shift=False,
)
DDPMPP = Style(
    group_width=4,
    eps=1e-6,
    sines_first=True,
    lowest_frequency_exact=True,
    labels_first=True,
    scale_shift=False,
    normalizes_sums=True,
    attention_in_last_up_block_only=True,
)


class ScoreUNet(nn.Module):
    """A U-Net of residual blocks.

    Args:
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks per level on the way down; there is one more on the way up.
        attention: The levels (from 0) that have self-attention; the middle always has it.
        channels: Channels of an image.
        outputs: Channels of the prediction; more than `channels` if it includes a variance.
        first: Channels of the first convolution; the width of the first level if None.
        time_size: Dimensions of the time embedding (frequencies with `fourier`); `first` if None.
        labels: Rows of the label embedding; 0 for none.
        heads: Number of attention heads; 0 if `head_width` is fixed instead.
        head_width: Channels per attention head if `heads` is 0.
        style: The details of the family.
        dropout: The dropout rate of the residual blocks.
    """

    frequencies: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        *,
        layers: int = 1,
        attention: Sequence[int] = (),
        channels: int = 3,
        outputs: int = 3,
        first: int | None = None,
        time_size: int | None = None,
        labels: int = 0,
        heads: int = 0,
        head_width: int = 64,
        style: Style = ADM,
        dropout: float = 0.0,
    ):
        super().__init__()
        first = first or widths[0]
        self.style, self.time_size = style, time_size or first
        inner = self.time_size * 2 if style.fourier else self.time_size
        embedding_size = self.time_size * 4
        if style.fourier:
            self.register_buffer("frequencies", torch.zeros(self.time_size))
        self.time = nn.ModuleList(
            [nn.Linear(inner, embedding_size), nn.Linear(embedding_size, embedding_size)]
        )
        self.label = (
            nn.Embedding(labels, inner if style.labels_first else embedding_size)
            if labels
            else None
        )

        def block(inputs: int, width: int, attends: bool = False, resample: int = 0) -> Block:
            head = (width // heads if heads else head_width) if attends else 0
            return Block(inputs, width, embedding_size, style, head, resample, dropout)

        def resample(width: int, direction: int) -> nn.Module:
            if style.blocks_resample:
                return block(width, width, resample=direction)
            return Resample(width, direction, style.symmetric_padding)

        self.conv_in = Conv2d(channels, first, 3, padding=1)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.pyramid = nn.ModuleList()
        width, skips = first, [first]
        for level, after in enumerate(widths):
            if level:
                self.down.append(resample(width, DOWN))
                skips.append(width)
                if style.pyramid:
                    self.pyramid.append(
                        Conv2d(widths[level - 2] if level > 1 else channels, width, 3, stride=2)
                    )
            for _ in range(layers):
                self.down.append(block(width, after, level in attention))
                skips.append(width := after)
        self.middle.extend([block(width, width, True), block(width, width)])
        for level, after in reversed(list(enumerate(widths))):
            for i in range(layers + 1):
                attends = level in attention and (
                    i == layers or not style.attention_in_last_up_block_only
                )
                self.up.append(block(width + skips.pop(), after, attends))
                width = after
            if level:
                self.up.append(resample(width, UP))
        self.norm_out = style.norm(width)
        self.conv_out = Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction (B, outputs, H, W).

        Args:
            x: Images (B, C, H, W); H and W are multiples of 2^(levels - 1).
            time: Time inputs of the network, (B,).
            label: Rows of the label embedding (B,); None if the network has none.
        """
        embedding = self._embed(x, time, label)
        image = x
        pyramid = iter(self.pyramid)
        skips = [x := self.conv_in(x)]
        for block in self.down:
            x = block(x, embedding)
            if block.resample and self.style.pyramid:
                image = x = self.style.sum(
                    x, next(pyramid)(_smoothed(image, self.style.resample_filter))
                )
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            x = block(x if block.resample else torch.cat([x, skips.pop()], 1), embedding)
        return self.conv_out(norm_silu(self.norm_out, x))

    def _embed(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """Return the embedding (B, D) of time and label, after the last activation."""
        style = self.style
        if style.fourier:
            angles = 2 * math.pi * time[:, None] * self.frequencies
            embedding = torch.cat([angles.sin(), angles.cos()], 1)
        else:
            embedding = timestep_embedding(time, self.time_size, style.lowest_frequency_exact)
            if style.sines_first:
                embedding = embedding.roll(self.time_size // 2, 1)
        embedding = embedding.to(x.dtype)
        row = 0 if self.label is None else self.label(label)
        if style.labels_first:
            embedding = embedding + row
        first, second = self.time
        embedding = second(F.silu(first(embedding)))
        return F.silu(embedding if style.labels_first else embedding + row)


class Block(nn.Module):
    """A residual block with optional resampling and attention.

    Args:
        inputs: Input channels.
        width: Output channels.
        embedding_size: Dimensions of the embedding of time and label.
        style: The details of the family.
        head: Channels per attention head; 0 for no attention.
        resample: `DOWN`, `UP`, or 0.
        dropout: The dropout rate before the second convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        embedding_size: int,
        style: Style,
        head: int = 0,
        resample: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.style, self.resample = style, resample
        self.norm1 = style.norm(inputs)
        self.conv1 = Conv2d(inputs, width, 3, padding=1)
        self.time = nn.Linear(embedding_size, 2 * width if style.scale_shift else width)
        self.norm2 = style.norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        projects = inputs != width or (resample and style.normalizes_sums)
        self.shortcut = Conv2d(inputs, width, 1) if projects else nn.Identity()
        groups = style.groups_of(width)
        self.attention = Attention(width, groups, head, style.eps) if head else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features (B, inputs, H, W) and embeddings (B, embedding_size) to (B, width, H', W')."""
        inner = norm_silu(self.norm1, x)
        if self.resample:
            inner, x = (
                resampled(part, self.resample, self.style.resample_filter) for part in (inner, x)
            )
        inner, modulation = self.conv1(inner), self.time(embedding)[:, :, None, None]
        if self.style.scale_shift:
            inner = norm_silu(self.norm2, inner, *modulation.chunk(2, 1))
        else:
            inner = norm_silu(self.norm2, inner + modulation)
        x = self.style.sum(self.shortcut(x), self.conv2(self.dropout(inner)))
        if self.attention is None:
            return x
        x = self.attention(x)  # which has its own residual connection
        return x / math.sqrt(2) if self.style.normalizes_sums else x


class Resample(nn.Module):
    """A convolution of stride 2, or a doubling of the resolution followed by a convolution."""

    def __init__(self, width: int, resample: int, symmetric_padding: bool):
        super().__init__()
        self.resample, self.symmetric_padding = resample, symmetric_padding
        padding = 1 if resample == UP or symmetric_padding else 0
        self.conv = Conv2d(width, width, 3, stride=1 if resample == UP else 2, padding=padding)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features of half or twice the resolution."""
        if self.resample == UP:
            return self.conv(F.interpolate(x, scale_factor=2.0))
        return self.conv(x if self.symmetric_padding else F.pad(x, (0, 1, 0, 1)))


def resampled(x: Tensor, resample: int, resample_filter: Sequence[int]) -> Tensor:
    """Double (`UP`) or halve (`DOWN`) the resolution of features (B, C, H, W), with smoothing."""
    if len(resample_filter) == 2:
        return F.interpolate(x, scale_factor=2.0) if resample == UP else F.avg_pool2d(x, 2)
    kernel, edge = _kernel(x, resample_filter), len(resample_filter) // 2 - 1
    if resample == DOWN:
        return F.conv2d(x, kernel, stride=2, padding=edge, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=edge, groups=x.shape[1])


def _smoothed(x: Tensor, resample_filter: Sequence[int]) -> Tensor:
    """Smooth features, with a margin for a 3x3 convolution with stride 2 and no padding."""
    return F.conv2d(
        x, _kernel(x, resample_filter), padding=len(resample_filter) // 2, groups=x.shape[1]
    )


def _kernel(x: Tensor, resample_filter: Sequence[int]) -> Tensor:
    line = torch.tensor(resample_filter, dtype=x.dtype, device=x.device)
    return (line.outer(line) / line.sum() ** 2).expand(x.shape[1], 1, -1, -1)
