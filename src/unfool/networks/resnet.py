"""Residual networks of He et al. (2016) in the form that is common for 32x32 images.

The first convolution is 3x3 with stride 1, and shortcuts between stages are convolutions. Modules
are named as in the public code for CIFAR-10 (Liu, 2017, "pytorch-cifar").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResNet(nn.Module):
    """A ResNet in which each stage after the first halves the resolution and doubles the width.

    Args:
        blocks: Blocks of each stage.
        width: Channels of the first stage, before the expansion of a bottleneck.
        classes: Number of classes.
        bottleneck: Whether blocks have three convolutions (1x1, 3x3, 1x1), the last four times as
            wide.
        pre_activation: Whether normalization and ReLU come before each convolution (He et al.,
            2016b).
        last_norm: With `pre_activation`: whether features are normalized again before pooling.
        shortcut_of_input: With `pre_activation`: whether shortcut convolutions get the input of
            their block before normalization and ReLU, instead of after.
        max_pool: Whether max pooling after the first convolution halves the resolution.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        classes: int = 10,
        *,
        bottleneck: bool = False,
        pre_activation: bool = False,
        last_norm: bool = False,
        shortcut_of_input: bool = False,
        max_pool: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = None if pre_activation else nn.BatchNorm2d(width)
        self.max_pool = max_pool
        expansion, before = 4 if bottleneck else 1, width
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        for i, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            inner, stage = width * 2**i, nn.Sequential()
            for j in range(count):
                stride = 2 if i and not j else 1
                block = (
                    PreActivationBlock(before, inner, stride, bottleneck, shortcut_of_input)
                    if pre_activation
                    else Block(before, inner, stride, bottleneck)
                )
                stage.append(block)
                before = inner * expansion
            self.add_module(name, stage)
        self.bn = nn.BatchNorm2d(before) if last_norm else None
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = torch.relu(self.bn1(x))
        if self.max_pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        if self.bn is not None:
            x = torch.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """A residual block of two convolutions (three in a bottleneck), with ReLU after the sum."""

    def __init__(self, before: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = inner * 4 if bottleneck else inner
        for i, (a, b, size, step) in enumerate(_sizes(before, inner, stride, bottleneck), 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.count, self.shortcut = 3 if bottleneck else 2, nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features (B, C', H', W')."""
        out = x
        for i in range(1, self.count + 1):
            out = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(out))
            out = torch.relu(out) if i < self.count else out
        return torch.relu(out + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """A residual block of two convolutions (or three), each after normalization and ReLU."""

    def __init__(
        self, before: int, inner: int, stride: int, bottleneck: bool, shortcut_of_input: bool
    ) -> None:
        super().__init__()
        after = inner * 4 if bottleneck else inner
        for i, (a, b, size, step) in enumerate(_sizes(before, inner, stride, bottleneck), 1):
            self.add_module(f"bn{i}", nn.BatchNorm2d(a))
            self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
        self.count, self.of_input = 3 if bottleneck else 2, shortcut_of_input
        self.shortcut = None
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features (B, C', H', W')."""
        active = out = torch.relu(self.get_submodule("bn1")(x))
        out = self.get_submodule("conv1")(out)
        for i in range(2, self.count + 1):
            out = self.get_submodule(f"conv{i}")(torch.relu(self.get_submodule(f"bn{i}")(out)))
        if self.shortcut is None:
            return out + x
        return out + self.shortcut(x if self.of_input else active)


def _sizes(
    before: int, inner: int, stride: int, bottleneck: bool
) -> tuple[tuple[int, int, int, int], ...]:
    """Return the input channels, output channels, kernel size, and stride of each convolution."""
    if bottleneck:
        return (before, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1)
    return (before, inner, 3, stride), (inner, inner, 3, 1)
