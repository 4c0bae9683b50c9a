"""The residual networks of Gowal et al. (2020), Rebuffi et al. (2021), and Wang et al. (2023).

They differ from other wide residual networks in two ways: convolutions of stride 2 are padded only
on the right and bottom, and the activation is mostly SiLU. Modules are named as in these authors'
checkpoints.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "silu"]
_ACTIVATIONS = {"relu": torch.relu, "silu": F.silu}


class DeepMindWideResNet(nn.Module):
    """Three stages of 16, 32 and 64 times `width` channels; normalization before convolution.

    Args:
        depth: Layers with weights: 28, 34, 70 or another 6n + 4.
        width: The width factor, relative to a plain ResNet.
        classes: Number of classes.
        activation: `"silu"` or `"relu"`, which cannot be read from the weights.

    Raises:
        ValueError: There is no network of this depth.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, classes: int = 10, activation: Activation = "silu"
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 (16, 28, 34, 70 ...), not {depth}")
        self.active = _ACTIVATIONS[activation]
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential()
        widths = (16, 16 * width, 32 * width, 64 * width)
        for i in range(3):
            stage = nn.Sequential()
            for j in range((depth - 4) // 6):
                before, stride = widths[i] if j == 0 else widths[i + 1], 2 if i and not j else 1
                stage.append(_WideBlock(before, widths[i + 1], stride, activation))
            self.layer.append(nn.Sequential())
            self.layer[i].add_module("block", stage)
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.logits = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = self.layer(self.init_conv(x))
        return self.logits(self.active(self.batchnorm(x)).mean((2, 3)))


class DeepMindPreActResNet(nn.Module):
    """Four stages of 64 to 512 channels; shortcuts between them are 3x3 convolutions.

    Args:
        blocks: Blocks of each stage.
        classes: Number of classes.
        activation: `"silu"` or `"relu"`, which cannot be read from the weights.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        classes: int = 10,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.active = _ACTIVATIONS[activation]
        self.conv_2d = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        before, self.stages = 64, [f"layer_{i}" for i in range(len(blocks))]
        for i, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(_PreActBlock(before, 64 * 2**i, 2 if i and not j else 1, activation))
                before = 64 * 2**i
            self.add_module(name, stage)
        self.batchnorm = nn.BatchNorm2d(before)
        self.logits = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        x = self.conv_2d(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.logits(self.active(self.batchnorm(x)).mean((2, 3)))


class _WideBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.stride, self.active = stride, _ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(before)
        self.conv_0 = nn.Conv2d(before, after, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(after)
        self.conv_1 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.active(self.batchnorm_0(x))
        out = self.active(self.batchnorm_1(self.conv_0(_padded(active, self.stride))))
        return self.conv_1(out) + (x if self.shortcut is None else self.shortcut(active))


class _PreActBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.stride, self.active = stride, _ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(before)
        self.conv_2d_1 = nn.Conv2d(before, after, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(after)
        self.conv_2d_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 3, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(_padded(self.active(self.batchnorm_0(x)), self.stride))
        out = self.conv_2d_2(self.active(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(_padded(x, self.stride)))


def _padded(x: Tensor, stride: int) -> Tensor:
    """Pad features with zeros as TensorFlow's "SAME" does for a 3x3 convolution."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
