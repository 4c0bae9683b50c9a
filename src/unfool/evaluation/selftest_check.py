"""A check of the self-test: a known value and the measured one."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["accuracy", "coverage", "times", "images", "yes"]
TOLERANCE = 0.01  # of an accuracy under attack


@dataclass(frozen=True)
class Check:
    """One thing that is known, and what was found.

    Attributes:
        part: The model, or the interval.
        what: What was measured on it.
        unit: Of the numbers.
        truth: By the closed form.
        found: By this installation.
        low: The least that may be found.
        high: The most that may be found.
    """

    part: str
    what: str
    unit: Unit
    truth: float
    found: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        """Whether what was found is allowed; what is no number is not."""
        return self.low <= self.found <= self.high


def reaches(part: str, what: str, best: float, left: float, tolerance: float = TOLERANCE) -> Check:
    """An attack leaves hardly more accuracy than the best one."""
    return Check(part, what, "accuracy", best, left, best - 1e-4, best + tolerance)
