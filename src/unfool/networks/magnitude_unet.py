"""The U-Net of EDM2 (Karras et al., 2024), whose layers preserve the magnitude of features.

It has neither biases nor normalization layers. Weights are normalized once, when they are loaded
(see `models.published.edm2`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP = -1, 1
SHARE, LABEL_SHARE = 0.3, 0.5  # the weight of the second branch in a sum
LARGEST = 256.0


class MagnitudeUNet(nn.Module):
    """A U-Net of magnitude-preserving residual blocks.

    Args:
        widths: Channels of each level; each level has half the resolution of the one before.
        layers: Residual blocks per level on the way down; there is one more on the way up.
        attention: The levels (from 0) that have self-attention; the middle always has it.
        channels: Channels of an image.
        embedding_size: Dimensions of the embedding of time and label; the largest width if None.
        frequencies: Number of frequencies that embed the time; the first width if None.
        classes: Labels to condition on, besides the null class; 0 for none.
        head_width: Channels per attention head.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        *,
        layers: int = 3,
        attention: Sequence[int] = (),
        channels: int = 3,
        embedding_size: int | None = None,
        frequencies: int | None = None,
        classes: int = 0,
        head_width: int = 64,
    ):
        super().__init__()
        embedding_size, waves = embedding_size or max(widths), frequencies or widths[0]
        self.register_buffer("frequencies", torch.zeros(waves))
        self.register_buffer("phases", torch.zeros(waves))
        self.time = nn.Linear(waves, embedding_size, bias=False)
        self.label = nn.Linear(classes, embedding_size, bias=False) if classes else None

        def block(
            inputs: int, width: int, encodes: bool, attends: bool = False, resample: int = 0
        ) -> Block:
            head = head_width if attends else 0
            return Block(
                inputs, width, embedding_size, encodes=encodes, resample=resample, head=head
            )

        self.conv_in = convolution(channels + 1, widths[0], 3)  # plus a channel of ones
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, after in enumerate(widths):
            if level:
                self.down.append(block(width, width, True, resample=DOWN))
                skips.append(width)
            for _ in range(layers):
                self.down.append(block(width, after, True, level in attention))
                skips.append(width := after)
        self.middle.extend([block(width, width, False, True), block(width, width, False)])
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(layers + 1):
                self.up.append(block(width + skips.pop(), after, False, level in attention))
                width = after
            if level:
                self.up.append(block(width, width, False, resample=UP))
        self.conv_out = convolution(width, channels, 3)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict from x (B, C, H, W) and times (B,); the label `classes` is the null class."""
        waves = time[:, None] * self.frequencies + self.phases
        embedding = self.time(math.sqrt(2) * waves.cos())
        if self.label is not None and label is not None:
            known = self.label.in_features
            hot = F.one_hot(label, known + 1)[:, :known].to(x) * math.sqrt(known)
            embedding = weighted_sum(embedding, self.label(hot), LABEL_SHARE)
        embedding = silu(embedding)
        x = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        skips = [x]
        for block in self.down:
            skips.append(x := block(x, embedding))
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            x = block(x if block.resample else joined(x, skips.pop()), embedding)
        return self.conv_out(x)


class Block(nn.Module):
    """A residual block with optional resampling and attention.

    Args:
        inputs: Input channels.
        width: Output channels.
        embedding_size: Dimensions of the embedding.
        encodes: Whether the block is on the way down, where features are normalized first.
        resample: `DOWN`, `UP`, or 0.
        head: Channels per attention head; 0 for no attention.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        embedding_size: int,
        *,
        encodes: bool,
        resample: int,
        head: int,
    ):
        super().__init__()
        self.encodes, self.resample, self.head = encodes, resample, head
        self.conv1 = convolution(width if encodes else inputs, width, 3)
        self.conv2 = convolution(width, width, 3)
        self.time = nn.Linear(embedding_size, width, bias=False)
        self.shortcut = convolution(inputs, width, 1) if inputs != width else nn.Identity()
        self.qkv = convolution(width, 3 * width, 1) if head else None
        self.out = convolution(width, width, 1) if head else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features (B, inputs, H, W) and embeddings (B, embedding_size) to (B, width, H', W')."""
        if self.resample:
            x = F.interpolate(x, scale_factor=2.0) if self.resample == UP else F.avg_pool2d(x, 2)
        if self.encodes:
            x = to_unit(self.shortcut(x), (1,))
        inner = self.conv1(silu(x)) * (self.time(embedding) + 1)[:, :, None, None]
        inner = self.conv2(silu(inner))
        x = weighted_sum(x if self.encodes else self.shortcut(x), inner, SHARE)
        if self.qkv is not None and self.out is not None:
            # The query, key and value of a channel are adjacent.
            table = self.qkv(x).flatten(2).unflatten(1, (-1, self.head, 3))
            q, k, v = (part.transpose(2, 3) for part in to_unit(table, (2,)).unbind(3))
            attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
            x = weighted_sum(x, self.out(attended), SHARE)
        return x.clamp(-LARGEST, LARGEST)


def convolution(inputs: int, width: int, side: int) -> nn.Conv2d:
    """Build a convolution without bias that keeps the resolution."""
    return nn.Conv2d(inputs, width, side, padding=side // 2, bias=False)


def to_unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Scale `x` to a root mean square of 1 over `dims`."""
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (1e-4 + length * math.sqrt(length.numel() / x.numel()))


def silu(x: Tensor) -> Tensor:
    """Compute SiLU, scaled to preserve the magnitude of normally distributed inputs."""
    return F.silu(x) / 0.596


def weighted_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Sum two branches with weights 1 - `share` and `share`, scaled to preserve the magnitude."""
    return a.lerp(b, share) / math.sqrt((1 - share) ** 2 + share**2)


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two branches to (B, C + D, H, W), scaled so that both contribute equally."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([a * (scale / math.sqrt(a.shape[1])), b * (scale / math.sqrt(b.shape[1]))], 1)
