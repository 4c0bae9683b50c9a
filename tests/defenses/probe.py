"""Helpers for tests of purifiers: exact moments of their outputs, and images of the toy data.

If the data are one Gaussian, a purifier without a guide is affine in the image and in each of its
draws. Its output on a given image is therefore Gaussian, and its mean and standard deviation can be
computed exactly from one batch: image 0 gets no noise, and image j gets 1 in the j-th draw and 0 in
all others.
"""

import pytest
import torch
from torch import nn

from unfool.diffusion.denoiser import Mixture
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch
from unfool.toy.blobs import Blobs


class Probe:
    """Noise that is 0, except for a 1 in one draw per image; `drawn` lists the paths of the draws."""

    def __init__(self, path: tuple = (), drawn: list | None = None):
        self.path, self.drawn = path, [] if drawn is None else drawn

    def child(self, *path) -> "Probe":
        return Probe(self.path + path, self.drawn)

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        if self.path not in self.drawn:
            self.drawn.append(self.path)
        out = torch.zeros_like(like)
        out[self.drawn.index(self.path) + 1] = 1
        return out


def mean_and_deviation(go, probe: Probe, draws: int) -> tuple[float, float]:
    """Return mean and deviation of `go` on a pixel 0.8 in [-1, 1], for at most `draws` draws."""
    z = torch.full((draws + 1, 1, 1, 1), 0.8, dtype=torch.float64)
    out = go(z, probe).flatten()
    response = out[1:] - out[0]
    return float(out[0]), float(response.square().sum().sqrt())


def world(spread: float, **options) -> Mixture:
    """Return a denoiser for one Gaussian pixel with mean 0.2 in [-1, 1]."""
    return Mixture(torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64), spread, **options)


def blobs(size: int = 4, side: int = 4) -> torch.Tensor:
    data = Blobs(size, side)
    return torch.stack([data[i][0] for i in range(size)]).double()


def assert_gradient(go, x: torch.Tensor, step: float = 1e-7, rel: float = 1e-5) -> None:
    """Check the gradient of `go` (images to images) by central differences in a random direction."""
    noise = Noise.of(7, range(len(x)))
    aim, way = (noise.child(name).normal(x) for name in ("aim", "way"))
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((aim * go(at)).sum(), at)
    with torch.no_grad():
        up, down = (go(x + sign * step * way) for sign in (1, -1))
    slope = float((aim * (up - down)).sum() / (2 * step))
    assert float((gradient * way).sum()) == pytest.approx(slope, rel=rel, abs=1e-8)


def curved(dtype: torch.dtype = torch.float64) -> NormalizedClassifier:
    """Return a nonlinear classifier of 4 x 4 images whose probabilities are never close to 1."""
    seed_torch(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    model = NormalizedClassifier(network.to(dtype)).requires_grad_(False).eval()
    for weight in model.parameters():
        weight.mul_(3)
    return model
