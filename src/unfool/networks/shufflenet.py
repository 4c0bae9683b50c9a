"""ShuffleNetV2 (Ma et al., 2018) in its common form for 32x32 images.

The first convolution has stride 1, and no pooling follows it. Modules are named as in
"pytorch-cifar" (Liu, 2017).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ShuffleNetV2(nn.Module):
    """Three stages: a block that halves the resolution, then blocks that keep half of the channels.

    Args:
        classes: Number of classes.
        channels: Channels of each of the three stages, and of the last convolution.
        blocks: Blocks of each stage.
        first: Channels of the first convolution.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: Sequence[int] = (116, 232, 464, 1024),
        blocks: Sequence[int] = (4, 8, 4),
        first: int = 24,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, channels[0], blocks[0])
        self.layer2 = _stage(channels[0], channels[1], blocks[1])
        self.layer3 = _stage(channels[1], channels[2], blocks[2])
        self.conv2 = nn.Conv2d(channels[2], channels[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[3])
        self.linear = nn.Linear(channels[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class _Down(nn.Module):
    """A block that halves the resolution and processes all channels in both of its branches."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        self.conv1 = nn.Conv2d(before, before, 3, 2, 1, groups=before, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.conv2 = nn.Conv2d(before, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(before, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(torch.relu(self.bn3(self.conv3(x)))))
        return _shuffled(left, torch.relu(self.bn5(self.conv5(right))))


class _Keep(nn.Module):
    """A block that passes one half of the channels through unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(right)))))
        return _shuffled(left, torch.relu(self.bn3(self.conv3(right))))


def _shuffled(left: Tensor, right: Tensor) -> Tensor:
    """Interleave the channels of both halves."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


def _stage(before: int, after: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Down(before, after), *(_Keep(after) for _ in range(blocks - 1)))
