"""The progress of a block of images, starting with its first call of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from unfool.runtime.progress import Update

NEARLY = 0.99  # the largest share of an unwritten block, because some of its work is not forecast


@dataclass(frozen=True)
class Expected:
    """The expected cost per image, by condition, and for judging (`verdict`, `distances`).

    Attributes:
        seconds: Expected time.
        ticks: Expected work, in the units of `progress.tick`.
    """

    seconds: dict[str, float]
    ticks: dict[str, float]

    @property
    def seconds_per_image(self) -> float:
        """Expected seconds per image, in total."""
        return sum(self.seconds.values())


class BlockProgress:
    """Shows how far a block has come, by comparing the calls of the model with the expected ones.

    Args:
        show: The function that shows it.
        done_before: Number of images that were done before the block.
        size: Number of images in the block.
        conditions: Names of the conditions in order. Other keys of `expected` come after them.
        expected: The expected cost per image. If None, only whole blocks count.
    """

    def __init__(
        self,
        show: Update,
        done_before: int,
        size: int,
        conditions: Sequence[str],
        expected: Expected | None,
    ) -> None:
        self.show, self.done_before, self.size = show, done_before, size
        self.conditions, self.expected = conditions, expected
        self.passed, self.work = 0, 0.0

    def tick(self, work: float) -> None:
        """Add work that was done for the current condition."""
        self.work += work
        self._update()

    def next(self) -> None:
        """Mark the current condition as done."""
        self.passed, self.work = self.passed + 1, 0.0
        self._update()

    def _update(self) -> None:
        current = self.conditions[self.passed : self.passed + 1]
        done = self.done_before + self.size * self._share()
        self.show(done, current[0] if current else "results")

    def _share(self) -> float:
        """The share of the block that is done, by time."""
        if self.expected is None or not self.expected.seconds_per_image:
            return 0.0
        seconds, ticks = self.expected.seconds, self.expected.ticks
        elapsed = sum(seconds.get(name, 0.0) for name in self.conditions[: self.passed])
        current = self.conditions[self.passed : self.passed + 1]
        names = current or [name for name in seconds if name not in self.conditions]
        forecast_work = self.size * sum(ticks.get(name, 0.0) for name in names)
        share = min(1.0, self.work / forecast_work) if forecast_work else 0.0
        elapsed += share * sum(seconds.get(name, 0.0) for name in names)
        return min(elapsed / self.expected.seconds_per_image, NEARLY)
