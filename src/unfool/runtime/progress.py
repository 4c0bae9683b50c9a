"""Progress of long work, on the error stream: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, str], None]


@contextmanager
def progress(what: str, total: int, done: int = 0, quiet: bool = False) -> Iterator[Update]:
    """Show how far `what` has come, and the time left.

    Yields:
        A function to call with how many are done now, and a few words to show beside it.
    """
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
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bar:
            task = bar.add_task(what, total=total, completed=done, words="")
            yield lambda now, words: bar.update(task, completed=now, words=words)
    else:
        yield _lines(what, total, done)


def _lines(what: str, total: int, done: int, every: float = 20.0) -> Update:
    began = said = time.monotonic()

    def update(now: int, words: str) -> None:
        nonlocal said
        clock = time.monotonic()
        if clock - said < every and now < total:
            return
        said = clock
        left = ""
        if now > done:
            left = f", {(clock - began) / (now - done) * (total - now):.0f} s left"
        print(f"{what}: {now}/{total}{left}  {words}", file=sys.stderr, flush=True)

    return update
