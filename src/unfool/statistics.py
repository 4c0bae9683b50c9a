"""Confidence intervals and tests for shares and means."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def percent(value: float, digits: int = 1) -> str:
    """Format a share as a percentage, as everywhere in the package: 0.717 is `71.7 %`."""
    return f"{100 * value:.{digits}f} %"


def percent_interval(value: float, low: float, high: float) -> str:
    """Format a share with its interval: `71.7 % [64.9, 77.6]`."""
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


class Share(NamedTuple):
    """A proportion with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return percent_interval(*self)


class Mean(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean of independent values with Student's 95 % interval.

    Raises:
        ValueError: There are fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2:
        raise ValueError("a confidence interval of a mean needs at least two values")
    from scipy.special import stdtrit

    half_width = float(stdtrit(array.size - 1, 0.975) * array.std(ddof=1) / array.size**0.5)
    mean = float(array.mean())
    return Mean(mean, mean - half_width, mean + half_width)


def bounded_mean_interval(
    values: Sequence[float] | np.ndarray, lowest: float, highest: float = np.inf
) -> dict[str, float]:
    """`mean`, `low`, and `high` of `mean_interval`, the bounds clipped to [`lowest`, `highest`].

    Raises:
        ValueError: There are fewer than two values.
    """
    mean, low, high = mean_interval([float(value) for value in values])
    return {"mean": mean, "low": max(low, lowest), "high": min(high, highest)}


def paired_difference_interval(differences: Sequence[float], draws: int) -> Mean:
    """The mean of paired differences of rates in [0, 1], one per image, with its 95 % interval.

    The interval is that of Agresti and Min (2005) for pairs, which adds two images with opposite
    differences, so that it has a width even if no image differs. With several draws per image, the
    added squared differences are divided by `draws`, like the variance of a mean of that many.

    Args:
        differences: One per image, each the mean of `draws` differences.
        draws: Draws per image.

    Raises:
        ValueError: There are no images.
    """
    values = np.asarray(differences, dtype=float)
    if not values.size:
        raise ValueError("a mean of no images is not a number")
    n = values.size + 2
    shrunk_mean = float(values.sum()) / n
    spread = (float((values**2).sum()) + 1 / draws) / n - shrunk_mean**2
    half_width = Z * (spread / n) ** 0.5
    return Mean(float(values.mean()), shrunk_mean - half_width, shrunk_mean + half_width)


def wilson(hits: int, total: int) -> Share:
    """The share of `hits` in `total` independent trials, with Wilson's interval (1927).

    Raises:
        ValueError: There are no trials.
    """
    if total < 1:
        raise ValueError("a share of no trials is not a number")
    return _wilson(hits / total, total)


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact two-sided test (1947) that neither side of pairs is better.

    It is the probability that the heads and tails of `only_first + only_second` fair coins
    differ at least as much as these two numbers; 1 if no pair disagrees.

    Args:
        only_first: Number of pairs in which only the first side is right.
        only_second: Number of pairs in which only the second side is right.
    """
    n = only_first + only_second
    ways = tail = 1  # the ways to get `heads` heads, and at most that many
    for heads in range(min(only_first, only_second)):
        ways = ways * (n - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def lower_bound(hits: int, total: int, alpha: float) -> float:
    """The lower confidence bound, at level 1 - `alpha`, on the rate of `hits` in `total` trials.

    This is the exact one-sided bound of Clopper and Pearson (1934).
    """
    from scipy.special import betaincinv

    return float(betaincinv(hits, total - hits + 1, alpha)) if hits else 0.0


def mean_rate_interval(rates: Sequence[float], draws: float) -> Share:
    """The mean of one rate in [0, 1] per image, with an interval over images.

    This is Wilson's interval with an effective number of trials: the tosses after which the mean of
    a coin would vary as much as the mean over images does. With one draw per image, it is Wilson's
    own. Draws of the same image are not independent, so with more draws, the effective number lies
    between the number of images and the number of all draws.

    Args:
        rates: One per image, each the mean of `draws` draws.
        draws: Draws per image.

    Raises:
        ValueError: There are no images.
    """
    values = np.asarray(rates, dtype=float)
    if not values.size:
        raise ValueError("a mean of no images is not a number")
    mean, trials = float(values.mean()), float(values.size)
    coin_variance = mean * (1 - mean)
    # Shrink the variance of few images toward that of coins, with the weight of four images.
    variance = (float(values.var()) * values.size + 4 * coin_variance) / (values.size + 4)
    if variance > 0:
        trials = min(max(trials, coin_variance / variance * trials), trials * draws)
    return _wilson(mean, trials)


def resubmissions(hits: Sequence[int], draws: int) -> list[Share]:
    """How often m answers to one image are all right, for m = 1 .. `draws`.

    For an image with r of k draws right, C(r, m) / C(k, m) is the share of its sets of m draws that
    are all right. This estimate is unbiased, unlike the m-th power of r / k. The interval is that
    of a mean over images, each with at most k / m sets that share no draw; it includes the variance
    that the draws add to that between images.

    Args:
        hits: Number of right draws of each image.
        draws: Draws per image, k.

    Raises:
        ValueError: There are no images.
    """
    curve = []
    for m in range(1, draws + 1):
        rates = [comb(right, m) / comb(draws, m) for right in hits]
        curve.append(mean_rate_interval(rates, draws / m))
    return curve


def _wilson(share: float, trials: float) -> Share:
    """Wilson's interval for a share of independent trials, whose number need not be whole."""
    center = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    variance = share * (1 - share) / trials + Z**2 / (4 * trials**2)
    half_width = Z / (1 + Z**2 / trials) * variance**0.5
    low, high = max(0.0, center - half_width), min(1.0, center + half_width)
    return Share(share, low if share > 0 else 0.0, high if share < 1 else 1.0)
