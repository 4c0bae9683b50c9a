"""Joint energy-based models (Grathwohl et al., 2020): classifiers whose logits also give an energy.

The network is a WideResNet without normalization. Modules are named as in the published checkpoints
of JEM, which load without renaming.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.diffusion.reverse import ascent
from unfool.noise import Noise
from unfool.ranges import AtLeastTwo, Count, CountFromZero, Depth, NotNegative, check_arguments
from unfool.runtime.text import html_repr, short_repr

LEAK = 0.2


class JEM(nn.Module):
    """A joint energy-based model.

    The softmax of the logits is p(y | x), and their logsumexp is log p(x) up to a constant. As in
    the release's attack, logits may be averaged over `chains` copies of the image, each with
    Gaussian noise `sigma` and `refine` steps of Langevin dynamics toward higher log p(x). Gradients
    go through these steps, whereas the release's attack treats them as the identity. Chain i draws
    from the stream ("jem", i).

    Args:
        depth: Layers with weights, 6n + 4; 28 in the paper.
        width: The width factor, relative to a plain ResNet; 10 in the paper.
        classes: Number of classes.
        chains: Copies of the image whose logits are averaged; 5 in the paper's attacks.
        sigma: The standard deviation of a copy's noise, for pixels in [0, 1]; 0.015 (0.03 in
            [-1, 1]) in training and in the paper's attacks. With 0, one chain, and no steps, the
            model is the plain network.
        refine: Steps of Langevin dynamics, with step size 1 and noise 0.01 in [-1, 1].

    Raises:
        ValueError: There is no network of this depth or width, or an option is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        depth: Depth = 28,
        width: Count = 10,
        classes: AtLeastTwo = 10,
        *,
        chains: Count = 1,
        sigma: NotNegative = 0.0,
        refine: CountFromZero = 0,
    ) -> None:
        super().__init__()
        check_arguments(JEM, locals())
        if depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 (16, 28, 34 ...), not {depth}")
        self.f = Features((depth - 4) // 6, width)
        self.energy_output = nn.Linear(64 * width, 1)  # in the published files, but not used
        self.class_output = nn.Linear(64 * width, classes)
        self.chains, self.sigma, self.refine = chains, sigma, refine

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) in [0, 1]."""
        streams = [noise.child("jem", i) for i in range(self.chains)]
        return torch.stack([self._chain(2 * x - 1, stream) for stream in streams]).mean(0)

    def density(self, x: Tensor) -> Tensor:
        """Values of log p(x) (B,), up to a constant, of images (B, 3, H, W) in [0, 1]."""
        return self._logits(2 * x - 1).logsumexp(1)

    def _chain(self, z: Tensor, noise: Noise) -> Tensor:
        if self.sigma:
            z = z + 2 * self.sigma * noise.child("start").normal(z)
        for i in range(self.refine):
            slope = ascent(lambda at: self._logits(at).logsumexp(1), z)
            z = z + slope + 0.01 * noise.child("step", i).normal(z)
        return self._logits(z)

    def _logits(self, z: Tensor) -> Tensor:
        return self.class_output(self.f(z))


class Features(nn.Module):
    """The WideResNet without its linear output layer."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        for i, stride in enumerate((1, 2, 2)):
            first = _Block(widths[i], widths[i + 1], stride)
            rest = [_Block(widths[i + 1], widths[i + 1], 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(widths[-1], 10)  # in the files, even for 100 classes, but not used

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, 64 width) of images (B, 3, H, W) in [-1, 1]."""
        z = self.conv1(z)
        for i in (1, 2, 3):
            z = self.get_submodule(f"layer{i}")(z)
        return F.leaky_relu(z, LEAK).mean((2, 3))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1)
        same = before == after and stride == 1
        self.shortcut = (
            nn.Sequential() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride))
        )

    def forward(self, z: Tensor) -> Tensor:
        inner = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(z, LEAK)), LEAK))
        return inner + self.shortcut(z)
