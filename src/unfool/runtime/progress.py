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
        each: Expected seconds per unit; None if unknown.
        began: The start time, by `time.monotonic`.
    """

    total: float
    done: float = 0
    each: float | None = None
    began: float = field(default_factory=time.monotonic)

    def after(self, now: float) -> float | None:
        """Return the seconds left when `now` units are done; None if unknown yet."""
        took, made = time.monotonic() - self.began, now - self.done
        if self.each:
            prior = min(TRUST / self.each, MOST * (self.total - self.done))
            took, made = took + self.each * prior, made + prior
        return took / made * (self.total - now) if made > 0 else None


@contextmanager
def progress(
    what: str, total: int, done: int = 0, quiet: bool = False, each: float | None = None
) -> Iterator[Update]:
    """Show the progress of some work, and the time left.

    Args:
        what: The name of the work.
        total: Units of work.
        done: Units that were done before.
        quiet: Show nothing.
        each: Expected seconds per unit; if given, the time left is shown from the start.

    Yields:
        A function to call with the units that are done, which may be fractional, and a few words to
        show beside them.
    """
    left = TimeLeft(total, done, each)
    if quiet:
        yield lambda now, words: None
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
            said = _said(left.after(done))
            task = bar.add_task(what, total=total, completed=done, words="", left=said)
            yield lambda now, words: bar.update(
                task, completed=now, words=words, left=_said(left.after(now))
            )
    else:
        yield _lines(what, left)


def _lines(what: str, left: TimeLeft) -> Update:
    said = time.monotonic()

    def say(now: float, words: str) -> None:
        nonlocal said
        said = time.monotonic()
        told = _said(left.after(now))
        told = f", {told}" if told else ""
        print(f"{what}: {int(now)}/{left.total}{told}  {words}", file=sys.stderr, flush=True)

    def update(now: float, words: str) -> None:
        if time.monotonic() - said >= EVERY or now >= left.total:
            say(now, words)

    if left.each is not None and left.done < left.total:
        say(left.done, "")
    return update


def _said(seconds: float | None) -> str:
    """Return the time left in words."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min left" if minutes >= 120 else f"{minutes} min left"
