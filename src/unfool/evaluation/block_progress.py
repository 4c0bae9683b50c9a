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
    def each(self) -> float:
        """Expected seconds per image, in total."""
        return sum(self.seconds.values())


class BlockProgress:
    """Shows how far a block has come, by comparing the calls of the model with the expected ones.

    Args:
        show: The function that shows it.
        here: Number of images that were done before the block.
        size: Number of images in the block.
        conditions: Names of the conditions in order. Other keys of `expected` come after them.
        expected: The expected cost per image. If None, only whole blocks count.
    """

    def __init__(
        self,
        show: Update,
        here: int,
        size: int,
        conditions: Sequence[str],
        expected: Expected | None,
    ) -> None:
        self.show, self.here, self.size = show, here, size
        self.conditions, self.expected = conditions, expected
        self.passed, self.work = 0, 0.0

    def tick(self, work: float) -> None:
        """Add work that was done for the current condition."""
        self.work += work
        self._say()

    def next(self) -> None:
        """Mark the current condition as done."""
        self.passed, self.work = self.passed + 1, 0.0
        self._say()

    def _say(self) -> None:
        now = self.conditions[self.passed : self.passed + 1]
        self.show(self.here + self.size * self._share(), now[0] if now else "results")

    def _share(self) -> float:
        """The share of the block that is done, by time."""
        if self.expected is None or not self.expected.each:
            return 0.0
        seconds, ticks = self.expected.seconds, self.expected.ticks
        made = sum(seconds.get(name, 0.0) for name in self.conditions[: self.passed])
        now = self.conditions[self.passed : self.passed + 1]
        names = now or [name for name in seconds if name not in self.conditions]
        whole = self.size * sum(ticks.get(name, 0.0) for name in names)
        part = min(1.0, self.work / whole) if whole else 0.0
        made += part * sum(seconds.get(name, 0.0) for name in names)
        return min(made / self.expected.each, NEARLY)
