"""Time, memory and error, and the tables of them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Run = Callable[[], object]


class Ratio(NamedTuple):
    """Least, middle and most of a ratio over the repetitions."""

    low: float
    middle: float
    high: float

    def __str__(self):
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(values: Sequence[float]) -> Ratio:
    """Their least, median and most."""
    return Ratio(min(values), statistics.median(values), max(values))


def seconds(run: Run, device: str) -> float:
    """What a run takes: on a CPU the process's own seconds, on a GPU those of the clock."""
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
    """The seconds of each run, one after the other, again and again; after one turn to warm up.

    Every other turn goes the other way round.
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
    """The seconds of one run over those of another, repetition by repetition."""
    return ratio([a / b for a, b in zip(took[name], took[floor], strict=True)])


def error(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true|."""
    return float((found.double() - true.double()).norm() / true.double().norm())


def peak_mib(prepare: Run, run: Run, device: str) -> float | None:
    """The most memory that a run takes beyond what was there before, in MiB; None if unknown.

    On a CPU it is measured in a child process, which this one must fork before it ever
    differentiates; the allocator must give every tensor a mapping of its own (`ALLOCATOR`).
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
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            before = high_water()
            run()
            os.write(writing, str((high_water() - before) / 1024).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    os.waitpid(child, 0)
    return float(said) if said else None


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"}


def high_water() -> int:
    """The most KiB that this process took since it began, or since the mark was reset (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown; the first column is of words, the others are flush right."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def shown(value: float | None, digits: int = 3) -> str:
    """A number in few digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}" if value else "0"


def machine(device: str) -> str:
    """What this was measured on."""
    name = platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name()
    elif (facts := Path("/proc/cpuinfo")).exists():
        models = [x for x in facts.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    load = f", load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, one thread{load}"
