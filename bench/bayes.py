"""Measure how often the diffusion classifier agrees with Bayes' rule, in a world where that is known.

    python bench/bayes.py

The world has 5 classes with equal numbers of points, each a Gaussian (standard deviation 0.22 in every
direction) around its own mean in 4 dimensions. Bayes' rule is the nearest mean, and it makes errors, too.
The diffusion classifier uses the exact denoiser of that world, so it differs from Bayes' rule only due to
its finite number of draws and its limited span of times. Prints the Markdown rows of docs/classifier.md;
intervals are 95 % Wilson intervals.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.diffusion.denoiser import Mixture
from unfool.noise import Noise
from unfool.statistics import Share, wilson

HEADS = (
    "| draws | same decision as Bayes' rule | accuracy | accuracy of Bayes' rule | points | seed |"
)
CLASSES, SPREAD = 5, 0.22


def main() -> None:
    """Print a row for each number of draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--draws", type=int, nargs="+", default=[30, 120, 500])
    parser.add_argument(
        "--seed", type=int, default=0, help="of the world, its points and the draws"
    )
    parser.add_argument(
        "--span", type=float, nargs=2, default=(0.05, 0.6), help="the first time and the last"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADS, "|---:|---:|---:|---:|---:|---:|", sep="\n")
    for draws in options.draws:
        shares = " | ".join(map(str, measure(options.points, draws, options.seed, options.span)))
        print(f"| {draws} | {shares} | {options.points:,} | {options.seed} |", flush=True)


@torch.no_grad()
def measure(
    points: int, draws: int, seed: int, span: Sequence[float]
) -> tuple[Share, Share, Share]:
    """The share of equal decisions, and the accuracies of the diffusion classifier and Bayes' rule."""
    means, z, y = world(points, seed)
    bayes = (z[:, None] - means).square().flatten(2).sum(2).argmin(1)
    model = DiffusionClassifier(
        Mixture(means, SPREAD),
        draws=draws,
        weight="elbo",
        span=(span[0], span[1]),
        batch_size=10**5,
    )
    noise = Noise.of(seed, range(points)).child("draws")
    predicted = torch.cat(
        [
            model((part + 1) / 2, noise.take(range(first, first + len(part)))).argmax(1)
            for first, part in zip(range(0, points, 500), z.split(500), strict=True)
        ]
    )
    same, right, best = (
        int(hits.sum()) for hits in (predicted == bayes, predicted == y, bayes == y)
    )
    return wilson(same, points), wilson(right, points), wilson(best, points)


def world(points: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw class means (5, 1, 2, 2), points (B, 1, 2, 2), both in [-1, 1] space, and classes (B,)."""
    like = torch.empty(1, 2, 2)
    means = 0.5 * Noise.of(seed, range(CLASSES)).child("means").normal(
        like.expand(CLASSES, 1, 2, 2)
    )
    y = torch.arange(points) % CLASSES
    scatter = Noise.of(seed, range(points)).child("points").normal(like.expand(points, 1, 2, 2))
    return means, means[y] + SPREAD * scatter, y


if __name__ == "__main__":
    main()
