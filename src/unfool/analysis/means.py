"""Means with intervals that stay within what a number can be."""

from collections.abc import Sequence

import numpy as np

from unfool.statistics import mean_interval


def bounded(
    values: Sequence[float] | np.ndarray, least: float, most: float = np.inf
) -> dict[str, float]:
    """`mean`, `low` and `high` of a 95 % interval, cut to what a value can be.

    Raises:
        ValueError: There are fewer than two values.
    """
    mean, low, high = mean_interval([float(value) for value in values])
    return {"mean": mean, "low": max(low, least), "high": min(high, most)}
