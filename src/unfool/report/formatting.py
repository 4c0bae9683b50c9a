"""Format numbers: shares, means with intervals, times, and sizes."""

from collections.abc import Mapping
from typing import Any

from unfool.statistics import percent, percent_interval

Share = Mapping[str, Any]  # a `ShareEntry` of report.json


def interval(share: Share) -> str:
    """Format the interval of a share: `64.9 to 77.6 %`."""
    return f"{100 * share['low']:.1f} to {percent(share['high'])}"


def cell(share: Share) -> str:
    """Format a share with its interval: `71.7 % [64.9, 77.6]`."""
    return percent_interval(share["accuracy"], share["low"], share["high"])


def mean(value: Mapping[str, float | None] | None, digits: str) -> str:
    """Format a mean with its interval, if any: `2.13 [1.90, 2.36]`; None gives `-`."""
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:{digits}}"
    return f"{value['mean']:{digits}} [{value['low']:{digits}}, {value['high']:{digits}}]"


def points(change: Mapping[str, Any], digits: str = ".1f", unit: str = "") -> str:
    """Format a difference of shares in percentage points: `3.1 [-0.4, 6.6]`."""
    middle, low, high = (round(100 * change[k], 1) + 0.0 for k in ("mean", "low", "high"))
    return f"{middle:{digits}}{unit} [{low:{digits}}, {high:{digits}}]"


def complement(share: Share) -> dict[str, float]:
    """Return the share of wrong answers, given the share of right ones."""
    return {"accuracy": 1 - share["accuracy"], "low": 1 - share["high"], "high": 1 - share["low"]}


def memory(size: float) -> str:
    """Format a number of bytes in MiB, or in GiB from one GiB on."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes, or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
