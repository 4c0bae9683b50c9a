"""Measure time, memory and error, and format them as tables."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Run = Callable[[], object]


class Ratio(NamedTuple):
    """The least, median and largest value of a ratio over the repetitions."""

    low: float
    middle: float
    high: float

    def __str__(self):
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(values: Sequence[float]) -> Ratio:
    """Return the least, median and largest of `values`."""
    return Ratio(min(values), statistics.median(values), max(values))


def seconds(run: Run, device: str) -> float:
    """Time a run: in CPU seconds of the process on a CPU, in wall-clock seconds on a GPU."""
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def interleaved(
    runs: Mapping[str, Run], device: str, repetitions: int, warm: bool = True
) -> dict[str, list[float]]:
    """Time all runs in turn, for several repetitions after one warm-up turn if `warm`.

    Every other turn is in reverse order.
    """
    took: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(-warm, repetitions):
        for name in names if turn % 2 else names[::-1]:
            spent = seconds(runs[name], device)
            if turn >= 0:
                took[name].append(spent)
    return took


def over(took: Mapping[str, Sequence[float]], name: str, floor: str) -> Ratio:
    """The ratio of the seconds of run `name` to those of run `floor`, taken within each repetition."""
    return ratio([a / b for a, b in zip(took[name], took[floor], strict=True)])


def error(value: Tensor, true: Tensor) -> float:
    """|value - true| / |true|."""
    return float((value.double() - true.double()).norm() / true.double().norm())


def peak_mib(prepare: Run, run: Run, device: str) -> float | None:
    """The peak memory of a run beyond that in use before it, in MiB; None if unknown.

    On a CPU it is measured in a forked child process. This process must not have used autograd before
    the fork, and the allocator must give every tensor a mapping of its own (`ALLOCATOR`).
    """
    if device != "cpu":
        prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            prepare()
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            before = high_water()
            run()
            os.write(writing, str((high_water() - before) / 1024).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(text) if text else None


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"}


def high_water() -> int:
    """Peak resident memory of this process, in KiB, since its start or the last reset (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Format a Markdown table, in which all columns but the first are right-aligned."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def between(page: str, marks: tuple[str, str], lines: Sequence[str]) -> str:
    """Return a page with `lines` in place of what was between two marks."""
    head, _, rest = page.partition(marks[0])
    _, mark, tail = rest.partition(marks[1])
    if not mark:
        sys.exit(f"the page lacks the marks {marks[0]} and {marks[1]}")
    return head + "\n".join([marks[0], "", *lines]).rstrip() + "\n\n" + marks[1] + tail


def shown(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}" if value else "0"


def machine(device: str) -> str:
    """Describe the machine: processor, version of torch, and load."""
    name = platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name()
    elif (facts := Path("/proc/cpuinfo")).exists():
        models = [x for x in facts.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    load = f", load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, one thread{load}"
