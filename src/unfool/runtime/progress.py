"""The progress of long work, on stderr: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Update = Callable[[float, str], None]
EVERY = 20.0  # seconds between two lines
# The expected speed weighs as much as TRUST seconds of work, at most the share MOST of all work.
TRUST, MOST = 5.0, 0.02

_TICKS: ContextVar[Callable[[float], None] | None] = ContextVar("ticks", default=None)


@contextmanager
def ticking(tell: Callable[[float], None]) -> Iterator[None]:
    """Call `tell` on every `tick` in this block, so that long work need not know its observer."""
    token = _TICKS.set(tell)
    try:
        yield
    finally:
        _TICKS.reset(token)


def tick(work: float) -> None:
    """Report finished work to the enclosing `ticking` block, if any."""
    if (tell := _TICKS.get()) is not None:
        tell(work)


@dataclass
class TimeLeft:
    """The time left: by the expected speed at first, more and more by the measured one.

    Attributes:
        total: Units of work.
        done: Units that were done before.
        seconds_per_unit: Expected seconds per unit; None if unknown.
        began: The start time, by `time.monotonic`.
    """

    total: float
    done: float = 0
    seconds_per_unit: float | None = None
    began: float = field(default_factory=time.monotonic)

    def after(self, completed: float) -> float | None:
        """Return the seconds left when `completed` units are done; None if unknown yet."""
        seconds, units = time.monotonic() - self.began, completed - self.done
        if self.seconds_per_unit:
            prior = min(TRUST / self.seconds_per_unit, MOST * (self.total - self.done))
            seconds, units = seconds + self.seconds_per_unit * prior, units + prior
        return seconds / units * (self.total - completed) if units > 0 else None


@contextmanager
def progress(
    what: str, total: int, done: int = 0, quiet: bool = False, seconds_per_unit: float | None = None
) -> Iterator[Update]:
    """Show the progress of some work, and the time left.

    Args:
        what: The name of the work.
        total: Units of work.
        done: Units that were done before.
        quiet: Show nothing.
        seconds_per_unit: Expected seconds per unit; if given, the time left is shown from the start.

    Yields:
        A function to call with the units that are done, which may be fractional, and a few words to
        show beside them.
    """
    estimate = TimeLeft(total, done, seconds_per_unit)
    if quiet:
        yield lambda completed, words: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            initial = _time_left(estimate.after(done))
            task = bar.add_task(what, total=total, completed=done, words="", left=initial)
            yield lambda completed, words: bar.update(
                task, completed=completed, words=words, left=_time_left(estimate.after(completed))
            )
    else:
        yield _lines(what, estimate)


def _lines(what: str, estimate: TimeLeft) -> Update:
    last_line = time.monotonic()

    def say(completed: float, words: str) -> None:
        nonlocal last_line
        last_line = time.monotonic()
        time_left = _time_left(estimate.after(completed))
        time_left = f", {time_left}" if time_left else ""
        print(
            f"{what}: {int(completed)}/{estimate.total}{time_left}  {words}",
            file=sys.stderr,
            flush=True,
        )

    def update(completed: float, words: str) -> None:
        if time.monotonic() - last_line >= EVERY or completed >= estimate.total:
            say(completed, words)

    if estimate.seconds_per_unit is not None and estimate.done < estimate.total:
        say(estimate.done, "")
    return update


def _time_left(seconds: float | None) -> str:
    """Return the time left in words."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min left" if minutes >= 120 else f"{minutes} min left"
