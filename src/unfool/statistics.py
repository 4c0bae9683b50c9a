"""Intervals for what is counted."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, as all of the package writes it: 0.717 is `71.7 %`."""
    return f"{100 * value:.{digits}f} %"


def percent_interval(value: float, low: float, high: float) -> str:
    """A share with its interval: `71.7 % [64.9, 77.6]`."""
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


class Share(NamedTuple):
    """A proportion with its 95 % interval."""

    accuracy: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The proportion itself: another name for `accuracy`."""
        return self.accuracy

    def __str__(self) -> str:
        return percent_interval(*self)


class Mean(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean of independent values with Student's interval.

    Raises:
        ValueError: There are fewer than two.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2:
        raise ValueError("a confidence interval of a mean needs at least two values")
    from scipy.special import stdtrit

    half = float(stdtrit(array.size - 1, 0.975) * array.std(ddof=1) / array.size**0.5)
    mean = float(array.mean())
    return Mean(mean, mean - half, mean + half)


def bounded_mean_interval(
    values: Sequence[float] | np.ndarray, least: float, most: float = np.inf
) -> dict[str, float]:
    """`mean`, `low` and `high` as `mean_interval` has them, cut to [`least`, `most`].

    Raises:
        ValueError: There are fewer than two values.
    """
    mean, low, high = mean_interval([float(value) for value in values])
    return {"mean": mean, "low": max(low, least), "high": min(high, most)}


def change_of(gaps: Sequence[float], draws: int) -> Mean:
    """The mean of paired differences of rates in [0, 1], one per image, with its 95 % interval.

    The interval is that of Agresti and Min (2005) for pairs: as if two more images had been seen, of
    opposite differences. So it has a width even if no image differs. With several draws per image,
    the two differ by as much less as the mean of so many draws scatters less.

    Args:
        gaps: One per image, each the mean of `draws` differences.
        draws: Per image.

    Raises:
        ValueError: There are no images.
    """
    values = np.asarray(gaps, dtype=float)
    if not values.size:
        raise ValueError("a mean of no images is not a number")
    n = values.size + 2
    middle = float(values.sum()) / n
    spread = (float((values**2).sum()) + 1 / draws) / n - middle**2
    half = Z * (spread / n) ** 0.5
    return Mean(float(values.mean()), middle - half, middle + half)


def wilson(hits: int, total: int) -> Share:
    """The share of `hits` in `total` independent trials, with Wilson's interval (1927).

    Raises:
        ValueError: There are no trials.
    """
    if total < 1:
        raise ValueError("a share of no trials is not a number")
    return _wilson(hits / total, total)


def mcnemar(one: int, other: int) -> float:
    """How likely pairs that disagree split so unevenly if neither side is better: McNemar's p.

    The exact two-sided test: of `one + other` fair coins, `one` are heads (McNemar, 1947). Where no
    pair disagrees it is 1.

    Args:
        one: Pairs in which the one side alone is right.
        other: Pairs in which the other side alone is right.
    """
    n, ways, tail = one + other, 1, 1  # ways to throw so many heads, and to throw no more
    for heads in range(min(one, other)):
        ways = ways * (n - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def lower_bound(hits: int, total: int, alpha: float) -> float:
    """What the rate behind `hits` in `total` trials exceeds, but for a chance of `alpha`.

    The exact one-sided bound of Clopper and Pearson (1934).
    """
    from scipy.special import betaincinv

    return float(betaincinv(hits, total - hits + 1, alpha)) if hits else 0.0


def mean_of(rates: Sequence[float], draws: float) -> Share:
    """The mean of one rate in [0, 1] per image, with an interval over images.

    Wilson's interval at the number of trials that a coin of the same mean would need to scatter as
    the images do: with one draw per image it is Wilson's own; with many draws of the same image,
    which are not independent, it is as wide as the images' scatter says: between that of as many
    coins as there are images, and of as many as there are draws.

    Args:
        rates: One per image, each the mean of `draws` draws.
        draws: Per image.

    Raises:
        ValueError: There are no images.
    """
    values = np.asarray(rates, dtype=float)
    if not values.size:
        raise ValueError("a mean of no images is not a number")
    mean, n = float(values.mean()), float(values.size)
    coin = mean * (1 - mean)
    # What few images show of their scatter is drawn towards that of coins, as if by four more.
    scatter = (float(values.var()) * values.size + 4 * coin) / (values.size + 4)
    if scatter > 0:
        n = min(max(n, coin / scatter * n), n * draws)
    return _wilson(mean, n)


def resubmissions(hits: Sequence[int], draws: int) -> list[Share]:
    """How often m answers to one image are all right, for m = 1 .. `draws`.

    Of an image with r of k right draws, C(r, m) / C(k, m) is the share of its sets of m draws that
    are all right: an unbiased estimate, where the m-th power of r / k is too low or too high. The
    interval is that of a mean over images, each of which holds no more than k / m such sets that
    share no draw; what the draws add to the scatter of the images is in it.

    Args:
        hits: Right draws of each image.
        draws: k, per image.

    Raises:
        ValueError: There are no images.
    """
    curve = []
    for m in range(1, draws + 1):
        rates = [comb(right, m) / comb(draws, m) for right in hits]
        curve.append(mean_of(rates, draws / m))
    return curve


def _wilson(share: float, trials: float) -> Share:
    """Wilson's interval around a share of so many independent trials, whole or not."""
    center = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    scatter = share * (1 - share) / trials + Z**2 / (4 * trials**2)
    half = Z / (1 + Z**2 / trials) * scatter**0.5
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Share(share, low if share > 0 else 0.0, high if share < 1 else 1.0)
