"""How far a block of images has come, from its first call of the model on."""

from collections.abc import Sequence
from dataclasses import dataclass

from unfool.runtime.progress import Update

NEARLY = 0.99  # of a block that is not written yet: not all that it does was expected


@dataclass(frozen=True)
class Expected:
    """What an image is expected to take, by condition (and by what judges it).

    Attributes:
        seconds: Of time.
        ticks: Of work, as `progress.tick` counts it.
    """

    seconds: dict[str, float]
    ticks: dict[str, float]

    @property
    def each(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


class BlockProgress:
    """Shows how far a block has come, by the calls of the model that were made and that were expected.

    Args:
        show: Shows it.
        here: How many images were done before the block.
        size: How many it has.
        conditions: In their order; what else is expected comes after them.
        expected: What an image takes; None if nobody knows, and then only whole blocks count.
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
        """Some work is done of the condition that is being made."""
        self.work += work
        self._say()

    def next(self) -> None:
        """The condition that was being made is done."""
        self.passed, self.work = self.passed + 1, 0.0
        self._say()

    def _say(self) -> None:
        now = self.conditions[self.passed : self.passed + 1]
        self.show(self.here + self.size * self._share(), now[0] if now else "results")

    def _share(self) -> float:
        """The part of the block that is done, by time."""
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
