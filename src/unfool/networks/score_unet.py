"""The U-Net of published diffusion models on pixels, in the variants that their authors trained.

One network serves ADM (Nichol and Dhariwal, 2021; Dhariwal and Nichol, 2021), DDPM (Ho et al., 2020),
and DDPM++ and NCSN++ (Song et al., 2021). They share the order of their blocks and differ in details,
which a `Style` names.
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
    """What distinguishes one family of these U-Nets from another.

    Attributes:
        groups: The most groups of a normalization.
        group_width: The fewest channels of a group.
        eps: Of the normalization.
        sines_first: Whether the embedding of the time begins with the sines; otherwise with the cosines.
        reaches_end: Whether the last frequency of the embedding is 1/10,000; otherwise it is above.
        fourier: Whether the time is embedded at stored frequencies.
        labels_first: Whether the label is added to the embedding of the time before the two linear
            layers; otherwise after them.
        blocks_resample: Whether residual blocks resample, instead of a convolution.
        centered: Whether the convolution that halves the resolution is padded on all sides; otherwise
            on the right and below.
        scale_shift: Whether the time scales and shifts the features, instead of being added to them.
        normalizes_sums: Whether every sum is divided by sqrt(2), and every block that resamples has a
            convolution in its shortcut.
        attends_once: Whether only the last block of a level has attention on the way up.
        taps: The filter that smooths what a block resamples.
        pyramid: Whether the image is added at each level on the way down.
    """

    groups: int = 32
    group_width: int = 1
    eps: float = 1e-5
    sines_first: bool = False
    reaches_end: bool = False
    fourier: bool = False
    labels_first: bool = False
    blocks_resample: bool = True
    centered: bool = True
    scale_shift: bool = True
    normalizes_sums: bool = False
    attends_once: bool = False
    taps: tuple[int, ...] = (1, 1)
    pyramid: bool = False

    def norm(self, width: int) -> nn.GroupNorm:
        """The normalization of `width` channels."""
        return nn.GroupNorm(self.groups_of(width), width, eps=self.eps)

    def groups_of(self, width: int) -> int:
        """The number of groups that `width` channels are normalized in."""
        return min(self.groups, width // self.group_width)

    def sum(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of two branches."""
        return (a + b) / math.sqrt(2) if self.normalizes_sums else a + b


ADM = Style()
DDPM = Style(
    eps=1e-6,
    sines_first=True,
    reaches_end=True,
    blocks_resample=False,
    centered=False,
    scale_shift=False,
)
DDPMPP = Style(
    group_width=4,
    eps=1e-6,
    sines_first=True,
    reaches_end=True,
    labels_first=True,
    scale_shift=False,
    normalizes_sums=True,
    attends_once=True,
)


class ScoreUNet(nn.Module):
    """A U-Net of residual blocks.

    Args:
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks of a level on the way down; there is one more on the way up.
        attention: The levels (from 0) that have self-attention; the middle always has it.
        channels: Of an image.
        outputs: Channels of the prediction; more than `channels` if it includes a variance.
        first: Channels of the first convolution; the width of the first level if None.
        embedded: Numbers that the time is embedded in; those of the first convolution if None.
        labels: Rows of the table of labels; 0 for none.
        heads: Of the attention, if their number is fixed; otherwise their width is.
        head_width: Channels of a head where `heads` is 0.
        style: What distinguishes the family.
        dropout: The rate in the residual blocks.
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
        embedded: int | None = None,
        labels: int = 0,
        heads: int = 0,
        head_width: int = 64,
        style: Style = ADM,
        dropout: float = 0.0,
    ):
        super().__init__()
        first = first or widths[0]
        self.style, self.told = style, embedded or first
        inner = self.told * 2 if style.fourier else self.told
        told = self.told * 4
        if style.fourier:
            self.register_buffer("frequencies", torch.zeros(self.told))
        self.time = nn.ModuleList([nn.Linear(inner, told), nn.Linear(told, told)])
        self.label = nn.Embedding(labels, inner if style.labels_first else told) if labels else None

        def block(inputs: int, width: int, attends: bool = False, resample: int = 0) -> Block:
            head = (width // heads if heads else head_width) if attends else 0
            return Block(inputs, width, told, style, head, resample, dropout)

        def resample(width: int, direction: int) -> nn.Module:
            if style.blocks_resample:
                return block(width, width, resample=direction)
            return Resample(width, direction, style.centered)

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
                attends = level in attention and (i == layers or not style.attends_once)
                self.up.append(block(width + skips.pop(), after, attends))
                width = after
            if level:
                self.up.append(resample(width, UP))
        self.norm_out = style.norm(width)
        self.conv_out = Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction (B, outputs, H, W).

        Args:
            x: Images (B, C, H, W); H and W are multiples of 2^(levels - 1).
            time: What the network is told of the time, (B,).
            label: Rows of the table of labels (B,); None if there is no table.
        """
        embedding = self._embed(x, time, label)
        image = x
        pyramid = iter(self.pyramid)
        skips = [x := self.conv_in(x)]
        for block in self.down:
            x = block(x, embedding)
            if block.resample and self.style.pyramid:
                image = x = self.style.sum(x, next(pyramid)(_smoothed(image, self.style.taps)))
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            x = block(x if block.resample else torch.cat([x, skips.pop()], 1), embedding)
        return self.conv_out(norm_silu(self.norm_out, x))

    def _embed(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """The embedding of the time and the label (B, D), ready for the linear layers of the blocks."""
        style = self.style
        if style.fourier:
            angles = 2 * math.pi * time[:, None] * self.frequencies
            embedding = torch.cat([angles.sin(), angles.cos()], 1)
        else:
            embedding = timestep_embedding(time, self.told, style.reaches_end)
            if style.sines_first:
                embedding = embedding.roll(self.told // 2, 1)
        embedding = embedding.to(x.dtype)
        row = 0 if self.label is None else self.label(label)
        if style.labels_first:
            embedding = embedding + row
        first, second = self.time
        embedding = second(F.silu(first(embedding)))
        return F.silu(embedding if style.labels_first else embedding + row)


class Block(nn.Module):
    """A residual block, which may resample, and the attention after it.

    Args:
        inputs: Channels that come in.
        width: Channels that go out.
        told: Numbers of the embedding of time and label.
        style: What distinguishes the family.
        head: Channels of a head of the attention; 0 for no attention.
        resample: `DOWN`, `UP`, or 0.
        dropout: The rate before the second convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        told: int,
        style: Style,
        head: int = 0,
        resample: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.style, self.resample = style, resample
        self.norm1 = style.norm(inputs)
        self.conv1 = Conv2d(inputs, width, 3, padding=1)
        self.time = nn.Linear(told, 2 * width if style.scale_shift else width)
        self.norm2 = style.norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        projects = inputs != width or (resample and style.normalizes_sums)
        self.shortcut = Conv2d(inputs, width, 1) if projects else nn.Identity()
        groups = style.groups_of(width)
        self.attention = Attention(width, groups, head, style.eps) if head else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, inputs, H, W) and embeddings (B, told) to features (B, width, H', W')."""
        inner = norm_silu(self.norm1, x)
        if self.resample:
            inner, x = (resampled(part, self.resample, self.style.taps) for part in (inner, x))
        inner, told = self.conv1(inner), self.time(embedding)[:, :, None, None]
        if self.style.scale_shift:
            inner = norm_silu(self.norm2, inner, *told.chunk(2, 1))
        else:
            inner = norm_silu(self.norm2, inner + told)
        x = self.style.sum(self.shortcut(x), self.conv2(self.dropout(inner)))
        if self.attention is None:
            return x
        x = self.attention(x)  # with its own residual connection
        return x / math.sqrt(2) if self.style.normalizes_sums else x


class Resample(nn.Module):
    """A convolution that halves the resolution, or one after it was doubled."""

    def __init__(self, width: int, resample: int, centered: bool):
        super().__init__()
        self.resample, self.centered = resample, centered
        padding = 1 if resample == UP or centered else 0
        self.conv = Conv2d(width, width, 3, stride=1 if resample == UP else 2, padding=padding)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """Features (B, C, H, W) to features of half or twice the resolution."""
        if self.resample == UP:
            return self.conv(F.interpolate(x, scale_factor=2.0))
        return self.conv(x if self.centered else F.pad(x, (0, 1, 0, 1)))


def resampled(x: Tensor, resample: int, taps: Sequence[int]) -> Tensor:
    """Features (B, C, H, W) of twice (`UP`) or half (`DOWN`) the resolution, smoothed by a filter."""
    if len(taps) == 2:
        return F.interpolate(x, scale_factor=2.0) if resample == UP else F.avg_pool2d(x, 2)
    kernel, edge = _kernel(x, taps), len(taps) // 2 - 1
    if resample == DOWN:
        return F.conv2d(x, kernel, stride=2, padding=edge, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=edge, groups=x.shape[1])


def _smoothed(x: Tensor, taps: Sequence[int]) -> Tensor:
    """Features smoothed, with a margin for a convolution of 3 x 3 with stride 2 and no padding."""
    return F.conv2d(x, _kernel(x, taps), padding=len(taps) // 2, groups=x.shape[1])


def _kernel(x: Tensor, taps: Sequence[int]) -> Tensor:
    line = torch.tensor(taps, dtype=x.dtype, device=x.device)
    return (line.outer(line) / line.sum() ** 2).expand(x.shape[1], 1, -1, -1)
