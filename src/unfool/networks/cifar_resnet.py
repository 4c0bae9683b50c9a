"""The residual networks of He et al. (2016) for 32x32 images, with parameter-free shortcuts.

Modules are named as in the public checkpoints, which load without renaming.
"""

import torch
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """A ResNet of three stages with 16, 32 and 64 channels, and option-A shortcuts between them.

    Args:
        blocks: Blocks per stage, each of two convolutions.
        classes: Number of classes.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.extra_channels = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        # Option A: subsample the pixels, and pad the missing channels with zeros on both sides.
        x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            x = nn.functional.pad(
                x, (0, 0, 0, 0, self.extra_channels // 2, self.extra_channels // 2)
            )
        return torch.relu(out + x)


def cifar_resnet(depth: int = 20, classes: int = 10) -> CifarResNet:
    """Build the network with `depth` layers.

    Args:
        depth: Layers with weights: 20, 32, 44, 56 or another 6n + 2.
        classes: Number of classes.

    Raises:
        ValueError: There is no network of this depth.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56 ...), not {depth}")
    return CifarResNet((depth - 2) // 6, classes)


def _stage(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(before, after, stride)
    return nn.Sequential(first, *(_Block(after, after, 1) for _ in range(blocks - 1)))
