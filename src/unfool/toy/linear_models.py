"""Models whose worst case has a closed form, to check attacks, intervals, and verdicts against.

All but `RandomGuess` classify tiny images by planes through gray, at known distances from the
images. A spec may name them, such as `unfool.toy.linear_models:RandomGuess`, to try out your own
attack.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfool.defenses.purified_classifier import Purified
from unfool.noise import Noise
from unfool.threat import Threat

SHAPE = (3, 4, 4)
GRAY = 0.5
CLASSES = ("right", "left", "low", "lowest")


class RandomGuess(nn.Module):
    """A classifier that is right with probability `p`, whatever the image; class 0 is always right.

    Per draw, its accuracy is `p` under every attack. The number of right answers in k draws is
    binomial, which gives the probability that the majority is right; all k are right with
    probability p^k.
    """

    def __init__(self, p: float = 0.9):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, from 0 to 1, not {p}")
        self.p = p

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, 4) of images (B, C, H, W), whose gradient is 0."""
        right = noise.child("coin").uniform(x[:, 0, 0, 0]) < self.p
        logits = torch.zeros_like(x[:, 0, 0, :1]).repeat(1, len(CLASSES))
        logits[:, 0] = torch.where(right, 1.0, -1.0).to(x)
        logits[:, 1] = -logits[:, 0]
        return logits + 0 * x.flatten(1).sum(1, keepdim=True)


class LinearClassifier(nn.Module):
    """A classifier by a plane through gray: class 0 on one side, class 1 on the other.

    The two other classes have far lower logits.

    Args:
        scale: The scale of the logits; the predicted classes do not depend on it.
    """

    weight: Tensor

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", normal_vector())

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, 4) of images (B, C, H, W): the scaled distance, its negative, two low ones."""
        distance = ((x - GRAY) * self.weight.to(x)).flatten(1).sum(1)
        low = torch.full_like(distance, -3.0)
        return self.scale * torch.stack([distance, -distance, low, low - 1], 1)


class MultiPlaneClassifier(nn.Module):
    """A noise-free linear classifier of `classes` classes, whose decision boundaries are known."""

    weights: Tensor

    def __init__(self, classes: int = 5):
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be 2 or more, not {classes}")
        like = torch.zeros(classes, *SHAPE)
        self.register_buffer("weights", Noise.of(1, range(classes)).child("plane").normal(like))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        return (x - GRAY).flatten(1) @ self.weights.to(x).flatten(1).T

    def distances(self, x: Tensor, norm: str) -> Tensor:
        """The distance of each image to the nearest of another class, (B,), even beyond [0, 1]."""
        logits = self(x, Noise(()))
        predicted = logits.argmax(1)
        normals = (
            (self.weights[predicted][:, None] - self.weights[None]).flatten(2).to(x)
        )  # (B, K, D)
        lengths = normals.abs().sum(2) if norm == "linf" else normals.norm(dim=2)
        gap = logits.gather(1, predicted[:, None]) - logits
        return (gap / lengths).scatter(1, predicted[:, None], torch.inf).amin(1)


class AddGaussianNoise(nn.Module):
    """A purifier that only adds Gaussian noise, without clipping.

    Args:
        sigma: The standard deviation, in units of [0, 1] pixels.
    """

    def __init__(self, sigma: float = 0.2):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be above 0, not {sigma}")
        self.sigma = sigma

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Noisy images, shaped like `x`."""
        return x + self.sigma * noise.normal(x)


class Quantize(nn.Module):
    """A purifier that rounds pixels to `levels` steps; its gradient is 0 everywhere."""

    def __init__(self, levels: int = 8):
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels must be 1 or more, not {levels}")
        self.levels = levels

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Rounded images, shaped like `x`."""
        return (x * self.levels).round() / self.levels


def noisy_plane(sigma: float = 0.2) -> Purified:
    """A linear classifier behind Gaussian noise."""
    return Purified(LinearClassifier(), AddGaussianNoise(sigma))


def rounded_plane(levels: int = 8) -> Purified:
    """A linear classifier behind rounding, which masks its gradient."""
    return Purified(LinearClassifier(), Quantize(levels))


class Points:
    """Images near gray, alternately of class 0 and 1, at evenly spaced distances from the plane.

    Args:
        size: The number of images.
        nearest: The Euclidean distance of the first image from the plane.
        farthest: The Euclidean distance of the last image from the plane.
        one_class: Whether to label all images 0, as for `RandomGuess`.
    """

    classes: Sequence[str] = CLASSES

    def __init__(
        self,
        size: int = 32,
        nearest: float = 0.02,
        farthest: float = 0.5,
        one_class: bool = False,
    ):
        if size < 2:
            raise ValueError(f"size must be 2 or more, not {size}")
        self.size, self.nearest, self.farthest, self.one_class = size, nearest, farthest, one_class

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        normal, label = normal_vector(), index % 2
        spread = 0.2 * (Noise.of(2, [index]).uniform(normal[None])[0] - 0.5)
        projection = (spread * normal).sum()
        distance = self.nearest + (self.farthest - self.nearest) * index / (self.size - 1)
        x = GRAY + spread + ((1 - 2 * label) * distance - projection) * normal
        return x, 0 if self.one_class else label


def normal_vector() -> Tensor:
    """The unit normal of the plane, shaped SHAPE."""
    normal = Noise.of(0, [0]).child("plane").normal(torch.zeros(1, *SHAPE))[0]
    return normal / normal.norm()


def signed_distances(x: Tensor, y: Tensor) -> Tensor:
    """The Euclidean distance from the plane, (B,), positive on the side of the true class."""
    distance = ((x - GRAY) * normal_vector().to(x)).flatten(1).sum(1)
    return (1 - 2 * y) * distance


def accuracy(x: Tensor, y: Tensor, sigma: float = 0.2) -> Tensor:
    """The probability that `noisy_plane(sigma)` is right on each image, (B,), in closed form."""
    return torch.special.ndtr(signed_distances(x.double(), y) / sigma)


def worst_case(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The worst-case images of a plane, noisy or not, for images that are far from 0 and 1.

    The distance from the plane falls by eps times the dual norm of the plane's normal. For l1, 0
    and 1 may be near: the values with the largest weights go that far, until the budget is spent.
    """
    normal = normal_vector().to(x)
    direction = (2 * y - 1).to(x)[:, None, None, None] * normal
    if threat.norm == "l1":
        room = torch.where(direction > 0, 1 - x, x).flatten(1)
        order = normal.flatten().abs().argsort(descending=True)
        used = room[:, order].cumsum(1)
        sizes = (threat.eps - used + room[:, order]).clamp(min=0).minimum(room[:, order])
        sizes = torch.zeros_like(room).index_copy(1, order, sizes)
        return x + direction.sign() * sizes.view_as(x)
    return x + threat.eps * threat.steepest(direction)


def worst_case_rounded(x: Tensor, y: Tensor, eps: float, levels: int = 8) -> Tensor:
    """The least value of `signed_distances` behind `rounded_plane(levels)` within `eps` of linf, (B,).

    Rounding is monotone, so each pixel moves against the plane as far as it may.
    """
    x_adv = worst_case(x, y, Threat("linf", eps))
    return signed_distances(Quantize(levels)(x_adv, Noise(())), y)
