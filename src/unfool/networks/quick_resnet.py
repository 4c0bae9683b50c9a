"""A small residual network that learns CIFAR-10 within two hours on one CPU core.

It follows Page (2018, "How to train your ResNet") and Jordan (2024, "94% on CIFAR-10 in 3.29
seconds", section 3): the input is whitened, pooling comes before normalization, every convolution
starts as the identity, and the normalizations learn only their shifts, not their scales.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickResNet(nn.Module):
    """A residual network on whitened 2x2 patches, with global max pooling before the linear layer.

    Args:
        widths: Channels of each stage; each stage halves the resolution.
        classes: Number of classes.
        channels: Channels of an image.

    Raises:
        ValueError: `widths` is empty, or a width is below 1.
    """

    whitening: Tensor

    def __init__(
        self, widths: Sequence[int] = (64, 128, 256), classes: int = 10, channels: int = 3
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be 1 or more, not {tuple(widths)}")
        patch = 4 * channels
        self.register_buffer("whitening", torch.eye(patch).view(patch, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(2 * patch))
        before = (2 * patch, *widths[:-1])
        self.stages = nn.Sequential(*map(_Stage, before, widths))
        self.linear = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Fit the whitening, which is not trained, to normalized training images (B, C, H, W).

        Every eigenvector of the covariance of the 2x2 patches is divided by the square root of its
        eigenvalue, so that the whitened patches have unit covariance.
        """
        patches = F.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T.cov())
        scaled = vectors / (values + 5e-4).sqrt()
        self.whitening.copy_(scaled.T.flip(0).view_as(self.whitening))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, C, H, W)."""
        both = torch.cat((self.whitening, -self.whitening))
        x = self.stages(torch.relu(F.conv2d(x, both, self.bias)))
        return self.linear(x.amax((2, 3))) / 9


class _Stage(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(before, after), _Shift(after)
        self.conv2, self.norm2 = _convolution(after, after), _Shift(after)
        self.conv3, self.norm3 = _convolution(after, after), _Shift(after)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        out = self.norm3(self.conv3(torch.relu(self.norm2(self.conv2(x)))))
        return torch.relu(x + out)


class _Shift(nn.BatchNorm2d):
    """Batch normalization with a learned shift and no scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


def _convolution(before: int, after: int) -> nn.Conv2d:
    """Build a 3x3 convolution whose first outputs initially equal its inputs."""
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[: min(before, after)])
    return convolution
