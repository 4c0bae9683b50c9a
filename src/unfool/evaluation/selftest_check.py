"""A check of the self-test: a known value and the measured one."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["accuracy", "coverage", "times", "images", "yes"]
TOLERANCE = 0.01  # of an accuracy under attack


@dataclass(frozen=True)
class Check:
    """A known value and the measured one.

    Attributes:
        part: The model, or the interval.
        what: What was measured on it.
        unit: Unit of the values.
        truth: The known value, from a closed form.
        measured: The value that this installation measured.
        low: The smallest allowed value.
        high: The largest allowed value.
    """

    part: str
    what: str
    unit: Unit
    truth: float
    measured: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        """Whether the measured value is allowed; NaN is not."""
        return self.low <= self.measured <= self.high


def reaches(
    part: str, what: str, best: float, accuracy: float, tolerance: float = TOLERANCE
) -> Check:
    """Check that an attack leaves hardly more accuracy than the best possible attack."""
    return Check(part, what, "accuracy", best, accuracy, best - 1e-4, best + tolerance)
