"""Two Gaussians on a line (Zhang et al., 2024, section 5.3.2): does guidance keep a label?

The data are an equal mixture of N(mean, spread^2) and N(-mean, spread^2), the denoiser is exact, and the
purifier is that of `defenses.coup`, started from a point of the upper class. A run that ends with the
other sign has lost its label.

    python examples/two_gaussians.py --out flips.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unfool.defenses.coup import COUP
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.schedule import VP
from unfool.noise import Noise
from unfool.report.figures.style import draw_png
from unfool.statistics import wilson


class Line(Denoiser):
    """The exact denoiser of two Gaussians on a line. Every pixel is an independent instance."""

    def __init__(self, mean: float = 1.0, spread: float = 0.5):
        super().__init__()
        self.mean, self.spread, self.schedule = mean, spread, VP()

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], in closed form."""
        _, alpha, sigma, _ = self.schedule(t.double() if t.ndim == 0 else t)
        variance = (alpha * self.spread) ** 2 + sigma**2
        center = self.mean * torch.tanh(alpha * self.mean / variance * x_t)
        return center + alpha * self.spread**2 / variance * (x_t - alpha * center)


@dataclass(frozen=True, eq=False)
class LabelFlip:
    """The Bayes classifier of `Line` for each pixel, with an error added to its log-odds.

    Each run has its own error, constant over the steps, which models a classifier whose decision
    boundary an attacker has moved.

    Attributes:
        world: The denoiser that defines the two classes.
        error: The error of the log-odds of the upper class, (pixels,); 0 gives the Bayes classifier.
    """

    world: Line
    error: Tensor

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (pixels, 2) of one image (1, 1, 1, pixels), for the classes at -mean and at mean."""
        odds = 2 * self.world.mean / self.world.spread**2 * self.world.encode(x).flatten()
        odds = odds + self.error
        return torch.stack([-odds / 2, odds / 2], 1)


class Endpoints(NamedTuple):
    """The results of runs (N,) that start from a point above 0.

    Attributes:
        end: The points where they ended.
        crossed: Whether they were ever below 0 (the label flip of proposition 1).
    """

    end: Tensor
    crossed: Tensor


def ends(
    weight: float,
    level: float = 0.0,
    *,
    world: Line | None = None,
    start: float = 0.2,
    t: float = 0.1,
    steps: int = 100,
    runs: int = 10000,
    seed: int = 0,
) -> Endpoints:
    """Run COUP from `start`, `runs` times.

    The same seed gives the same draws for every weight and level.

    Args:
        weight: The weight lambda of the guide.
        level: The standard deviation of the classifier's error (see `LabelFlip`).
        world: The two Gaussians; mean 1 and spread 0.5 by default.
        start: The starting point, above 0.
        t: The time t* to which noise is added.
        steps: The number of Euler-Maruyama steps.
        runs: The number of runs.
        seed: Seed of the draws.

    Raises:
        ValueError: An option is out of range.
    """
    if not start > 0 or runs < 1 or not level >= 0:
        raise ValueError(
            f"start must be above 0, runs 1 or more, level 0 or more; not {start}, {runs}, {level}"
        )
    world = world or Line()
    z, noise = torch.full((1, 1, 1, runs), start, dtype=torch.float64), Noise.of(seed, [0])
    error = level * noise.child("error").normal(z).flatten()
    purifier = COUP(world, LabelFlip(world, error), t=t, steps=steps, weight=weight)
    crossed = torch.zeros(runs, dtype=torch.bool)
    with torch.no_grad():
        for _, image in purifier.walk(world.decode(z), noise):
            z = world.encode(image)
            crossed |= z.flatten() < 0
    return Endpoints(z.flatten(), crossed)


def label_flips(
    weights: Sequence[float], levels: Sequence[float], *, runs: int = 10000, **options: Any
) -> np.ndarray:
    """The probability that a run ends with the other label, (levels, weights).

    Args:
        weights: Guidance weights.
        levels: Standard deviations of the classifier's error.
        runs: The number of runs behind each probability.
        options: Further options of `ends`.
    """
    rows = [[ends(w, level, runs=runs, **options).end for w in weights] for level in levels]
    return np.array([[float((end < 0).double().mean()) for end in row] for row in rows])


def figure_of(
    weights: Sequence[float], levels: Sequence[float], shares: np.ndarray, runs: int
) -> Figure:
    """Plot the probabilities `shares` (levels, weights) with 95 % intervals, one line per level."""
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for level, line, marker in zip(levels, shares, "osD^vPX", strict=False):
        spread = [wilson(round(share * runs), runs) for share in line]
        low, high = ([100 * getattr(share, side) for share in spread] for side in ("low", "high"))
        axes.fill_between(weights, low, high, alpha=0.15, linewidth=0)
        axes.plot(weights, 100 * line, marker=marker, label=f"noise level {level:g}")
    axes.set_xlabel("guidance weight")
    axes.set_ylabel("label-flip probability, %")
    axes.legend()
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Plot how often a run loses its label."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("flips.png"))
    options = parser.parse_args(arguments)
    weights, levels = [0, 0.5, 1, 2, 4, 8], [0, 1, 2, 4]
    shares = label_flips(weights, levels, runs=options.runs)
    options.out.write_bytes(draw_png(figure_of(weights, levels, shares, options.runs)).png)


if __name__ == "__main__":
    main()
