"""Wide residual networks (Zagoruyko and Komodakis, 2016) for 32x32 images.

Modules are named as in the checkpoints of TRADES and RobustBench, which load without renaming.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class WideResNet(nn.Module):
    """Three stages of 16, 32 and 64 times `width` channels; normalization before convolution.

    Args:
        blocks: Blocks per stage, each of two convolutions.
        width: The width factor, relative to a plain ResNet.
        classes: Number of classes.
        dropout: The share of features that each block drops in training.
    """

    def __init__(self, blocks: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        first, second, third = 16 * width, 32 * width, 64 * width
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, first, blocks, 1, dropout)
        self.block2 = _stage(first, second, blocks, 2, dropout)
        self.block3 = _stage(second, third, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
        self.register_load_state_dict_pre_hook(_without_spare_stage)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W), normalized as in training."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        same = before == after
        self.convShortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        out = self.conv2(self.dropout(torch.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


def wide_resnet(
    depth: int = 28, width: int = 10, classes: int = 10, dropout: float = 0.0
) -> WideResNet:
    """Build the network WRN-depth-width.

    Args:
        depth: Layers with weights: 28, 34, 70 or another 6n + 4.
        width: The width factor, relative to a plain ResNet.
        classes: Number of classes.
        dropout: The share of features that each block drops in training, from 0 up to 1.

    Raises:
        ValueError: There is no network of this depth or width.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6n + 4 (16, 28, 34, 70 ...), not {depth}")
    if width < 1:
        raise ValueError(f"width must be 1 or more, not {width}")
    return WideResNet((depth - 4) // 6, width, classes, dropout)


def _stage(before: int, after: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = _Block(before, after, stride, dropout)
    rest = [_Block(after, after, 1, dropout) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


def _without_spare_stage(_: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Drop the weights of the stage that TRADES builds and saves but never uses."""
    for key in [key for key in state if key.startswith(f"{prefix}sub_block1.")]:
        del state[key]
