"""Measures the memory that autograd graphs keep, on any device, and the memory that is free."""

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

_processes = contextvars.ContextVar("processes", default=1)  # how many share a CPU's memory


class SavedTensors:
    """The number of bytes that autograd graphs keep.

    Attributes:
        peak: The most at one time, without the weights.
    """

    def __init__(self, weights: set[int]):
        self.peak = 0
        self._weights, self._users, self._now = weights, Counter[int](), 0

    def add(self, tensor: Tensor) -> "_SavedTensor":
        """Count a tensor that a graph saves, until the graph is freed."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        size = 0 if address in self._weights else storage.nbytes()
        self._users[address] += 1
        if self._users[address] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)
        return _SavedTensor(tensor, partial(self._drop, address, size))

    def _drop(self, address: int, size: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            self._now -= size


class _SavedTensor:
    def __init__(self, tensor: Tensor, drop: Callable[[], None]):
        self.tensor, self._drop = tensor, drop

    def __del__(self) -> None:
        self._drop()


@contextmanager
def count_graph_memory(model: object) -> Iterator[SavedTensors]:
    """Count the bytes that graphs made in this block keep, without the weights of `model`."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    saved = SavedTensors({p.untyped_storage().data_ptr() for p in weights})
    with torch.autograd.graph.saved_tensors_hooks(
        saved.add, lambda saved_tensor: saved_tensor.tensor
    ):
        yield saved


@contextmanager
def shared_by(processes: int) -> Iterator[None]:
    """Inside this block, divide a CPU's free memory among this many equal processes."""
    token = _processes.set(processes)
    try:
        yield
    finally:
        _processes.reset(token)


def lack_of_memory(error: BaseException) -> str:
    """Return "out of memory (745.1 GiB ...)" if an error is due to a lack of memory; else "".

    On a CPU, torch raises a plain RuntimeError for it, so the message of the error is checked.
    """
    message = " ".join(str(error).split())
    request = re.search(r"tried to allocate (\d+) bytes", message)
    if request:
        return f"out of memory (one allocation asked for {int(request[1]) / 2**30:,.1f} GiB)"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory ({message[:200]})" if message else "out of memory"
    return ""


def free_bytes(device: str) -> int | None:
    """Return the free memory of a device in bytes; None if unknown.

    For a CPU, this is what the machine has and the limits of the process leave (containers, SLURM),
    divided by the processes of `shared_by`.
    """
    if torch.device(device).type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + spare
    if (processes := _processes.get()) > 1:
        with shared_by(1):
            total = free_bytes(device)
        return total and total // processes
    try:
        with open("/proc/meminfo", encoding="ascii") as source:
            facts = dict(line.split(":", 1) for line in source)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = "SC_AVPHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in os.sysconf_names else None
    return min([free, *free_bytes_of_groups()])


def free_bytes_of_groups(
    group_list: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Yield the bytes that each control group with a memory limit leaves to this process.

    Args:
        group_list: The file that lists the groups.
        root: The folder of the groups' files.
    """
    try:
        lines = group_list.read_text().splitlines()
    except OSError:
        return
    for number, kinds, path in (line.split(":", 2) for line in lines):
        if number == "0":  # version 2
            base, limit, used, spare = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            base, spare = root / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):  # the limits of parent groups apply, too
            with suppress(OSError, ValueError):  # no limit ("max"), or not visible from here
                maximum = int((folder / limit).read_text())
                if maximum < 2**60:  # in version 1, a larger number means that there is no limit
                    stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                    in_use = int((folder / used).read_text()) - int(stat.get(spare, 0))
                    yield max(0, maximum - in_use)
            if folder == base:
                break
