"""MobileNetV2 (Sandler et al., 2018) in its common forms for 32x32 images.

The first convolution and the second stage have stride 1. Modules are named as in "pytorch-cifar"
(Liu, 2017).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
REPEATS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 1, 2, 2, 1, 2, 1)
CHANNELS = (16, 24, 32, 64, 96, 160, 320)


class MobileNetV2(nn.Module):
    """A MobileNetV2 with seven stages of inverted residual blocks.

    Args:
        classes: Number of classes.
        first: Channels of the first convolution.
        channels: Channels of each stage.
        last: Channels of the last convolution.
        all_shortcuts: Whether to build the form of "pytorch-cifar": every block of stride 1 has a
            shortcut (a convolution where the width changes), the first block also expands, and the
            activation is ReLU instead of ReLU6.
    """

    def __init__(
        self,
        classes: int = 10,
        first: int = 32,
        channels: Sequence[int] = CHANNELS,
        last: int = 1280,
        all_shortcuts: bool = True,
    ) -> None:
        super().__init__()
        self.active = torch.relu if all_shortcuts else nn.functional.relu6
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layers, before = nn.Sequential(), first
        for expansion, count, stride, after in zip(
            EXPANSIONS, REPEATS, STRIDES, channels, strict=True
        ):
            for j in range(count):
                step = 1 if j else stride
                self.layers.append(_Block(before, after, step, expansion, all_shortcuts))
                before = after
        self.conv2 = nn.Conv2d(before, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = self.layers(self.active(self.bn1(self.conv1(x))))
        return self.linear(self.active(self.bn2(self.conv2(x))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(
        self, before: int, after: int, stride: int, expansion: int, all_shortcuts: bool
    ) -> None:
        super().__init__()
        inner = before * expansion
        self.active = torch.relu if all_shortcuts else nn.functional.relu6
        self.expands = all_shortcuts or expansion != 1
        if self.expands:
            self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.adds = stride == 1 and (all_shortcuts or before == after)
        self.shortcut = nn.Sequential()
        if self.adds and before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.active(self.bn1(self.conv1(x))) if self.expands else x
        out = self.bn3(self.conv3(self.active(self.bn2(self.conv2(out)))))
        return out + self.shortcut(x) if self.adds else out
