"""A toy data set with closed-form solutions.

It has Gaussian classes of tiny images, with their exact denoiser and their Bayes classifier. Tests
and tours use it for whole runs, from the command to the report.
"""

import torch
from torch import Tensor, nn

from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import Schedule
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise
from unfool.ranges import Count, check_arguments

CLASSES = ("dark", "bright")
SPREAD = 0.2  # standard deviation of a class, in [-1, 1] units


class Blobs:
    """Two Gaussian classes of `side` x `side` gray images, alternately dark and bright.

    Args:
        size: The number of images.
        side: Their height and width in pixels.
    """

    classes = CLASSES

    def __init__(self, size: Count = 256, side: Count = 4):
        check_arguments(Blobs, locals())
        self.size, self.means = size, _means(side)
        self.shape = (1, side, side)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % 2
        z = self.means[label] + SPREAD * Noise.of(0, [index]).normal(self.means[:1])[0]
        return ((z + 1) / 2).clamp(0, 1), label


def mixture(side: Count = 4, schedule: Schedule | None = None) -> Mixture:
    """The exact denoiser of `Blobs`.

    Args:
        side: Height and width of the images in pixels.
        schedule: The noise schedule; continuous VP if None.
    """
    check_arguments(mixture, locals())
    return Mixture(_means(side), SPREAD, schedule)


def bayes(side: Count = 4) -> NormalizedClassifier:
    """The Bayes classifier of `Blobs`: logits are log-likelihoods, up to a term that classes share.

    Args:
        side: Height and width of the images in pixels.
    """
    check_arguments(bayes, locals())
    means = _means(side).flatten(1)
    linear = nn.Linear(means.shape[1], len(means))
    with torch.no_grad():
        linear.weight.copy_(means / SPREAD**2)
        linear.bias.copy_(-means.square().sum(1) / (2 * SPREAD**2))
    network = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    return NormalizedClassifier(network, mean=(0.5,), std=(0.5,))


def _means(side: int) -> Tensor:
    return torch.stack([torch.full((1, side, side), level) for level in (-0.25, 0.25)])
