"""How much memory the graphs of autograd keep, on any device, and how much is free."""

import contextvars
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

_processes = contextvars.ContextVar("processes", default=1)  # that share a CPU's memory


class Kept:
    """The bytes that graphs keep.

    Attributes:
        peak: The most at one time, beyond the weights.
    """

    def __init__(self, weights: set[int]):
        self.peak = 0
        self._weights, self._users, self._now = weights, Counter[int](), 0

    def add(self, tensor: Tensor) -> "_Held":
        """Count a tensor that a graph saves, until that graph is gone."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        size = 0 if place in self._weights else storage.nbytes()
        self._users[place] += 1
        if self._users[place] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)
        return _Held(tensor, partial(self._drop, place, size))

    def _drop(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self._now -= size


class _Held:
    def __init__(self, tensor: Tensor, drop: Callable[[], None]):
        self.tensor, self._drop = tensor, drop

    def __del__(self) -> None:
        self._drop()


@contextmanager
def kept_by_graphs(model: object) -> Iterator[Kept]:
    """Count what the graphs made inside this block keep, without the weights of `model`."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    kept = Kept({p.untyped_storage().data_ptr() for p in weights})
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda held: held.tensor):
        yield kept


@contextmanager
def shared_by(processes: int) -> Iterator[None]:
    """Inside this block, of a CPU's free memory each of so many processes like this one has its part."""
    token = _processes.set(processes)
    try:
        yield
    finally:
        _processes.reset(token)


def lack_of_memory(error: BaseException) -> str:
    """What an error says if it is a lack of memory, "out of memory (745.1 GiB ...)"; else "".

    On a CPU, torch tells it as a RuntimeError, which has no class of its own.
    """
    said = " ".join(str(error).split())
    asked = re.search(r"tried to allocate (\d+) bytes", said)
    if asked:
        return f"out of memory (one allocation asked for {int(asked[1]) / 2**30:,.1f} GiB)"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory ({said[:200]})" if said else "out of memory"
    return ""


def free_bytes(device: str) -> int | None:
    """The memory that is free on a device; None if it cannot be told.

    Of a CPU's, what the machine has and what the limits of the process leave (containers, SLURM).
    """
    if torch.device(device).type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + spare
    if (processes := _processes.get()) > 1:
        with shared_by(1):
            whole = free_bytes(device)
        return whole and whole // processes
    try:
        with open("/proc/meminfo", encoding="ascii") as source:
            facts = dict(line.split(":", 1) for line in source)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = "SC_AVPHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in os.sysconf_names else None
    return min([free, *left_by_groups()])


def left_by_groups(
    told: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What each control group of this process that has a limit of memory leaves, in bytes.

    Args:
        told: Names the groups.
        root: Where their files are.
    """
    try:
        lines = told.read_text().splitlines()
    except OSError:
        return
    for number, kinds, place in (line.split(":", 2) for line in lines):
        if number == "0":  # version 2
            base, limit, used, spare = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            base, spare = root / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / place.lstrip("/")
        for folder in (group, *group.parents):  # each within the limits of those above
            with suppress(OSError, ValueError):  # no limit ("max"), or not seen from here
                most = int((folder / limit).read_text())
                if most < 2**60:  # of version 1 such a number says that there is none
                    stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                    taken = int((folder / used).read_text()) - int(stat.get(spare, 0))
                    yield max(0, most - taken)
            if folder == base:
                break
