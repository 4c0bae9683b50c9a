"""How much memory a training will take, told before it starts."""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from defuse.data import fetch
from defuse.menu import SpecError
from defuse.noise import Noise
from defuse.protocols import Dataset

TRIED = 2  # images of the trial


def check_memory(
    model: nn.Module, objective: Any, data: Dataset, batch: int, device: str, half: bool
) -> None:
    """Refuse a training that cannot fit.

    A step on two images is tried, and what it keeps for its gradient is counted.

    Args:
        model: What is to be trained, on `device`.
        objective: The loss.
        data: What it is trained on.
        batch: Images of a step.
        device: Where it will be trained.
        half: Whether products are computed in bfloat16.

    Raises:
        SpecError: It needs more memory than there is.
    """
    fixed, each = forecast(model, objective, data, device, half)
    needed, free = fixed + each * batch, free_bytes(device)
    if free is None or needed <= free:
        return
    fits = int((free - fixed) // each)
    cure = f"set training.batch to {fits} or less" if fits > 0 else "choose a smaller network"
    raise SpecError(
        f"a step of {batch} images takes about {needed / 2**30:.1f} GiB, and {device} has "
        f"{free / 2**30:.1f} GiB free: {cure}"
    )


def forecast(
    model: nn.Module, objective: Any, data: Dataset, device: str, half: bool
) -> tuple[int, int]:
    """The bytes that a training takes whatever its batch, beyond the model, and for each image."""
    size = min(TRIED, len(data))
    x, y = (part.to(device) for part in fetch(data, range(size)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tally = _Tally(weights)
    kind = torch.device(device).type
    buffers = [buffer.clone() for buffer in model.buffers()]
    with (
        torch.autograd.graph.saved_tensors_hooks(tally.keep, lambda kept: kept.tensor),
        torch.autocast(kind, dtype=torch.bfloat16, enabled=half),
    ):
        objective(model, x, y, Noise.of(0, range(size)).fold("forecast"))
    with torch.no_grad():
        for buffer, was in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(was)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    # the gradient, two moments of the optimizer, the average, and a checkpoint on its way to disk
    return 8 * parameters, tally.peak // size


class _Tally:
    """The most bytes that graphs kept at one time, beyond the weights."""

    def __init__(self, weights: set[int]):
        self.weights, self.users, self.now, self.peak = weights, Counter[int](), 0, 0

    def keep(self, tensor: Tensor) -> "_Kept":
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        size = 0 if place in self.weights else storage.nbytes()
        self.users[place] += 1
        if self.users[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        return _Kept(tensor, partial(self._drop, place, size))

    def _drop(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            self.now -= size


class _Kept:
    """A tensor that a graph keeps, until the graph is gone."""

    def __init__(self, tensor: Tensor, drop: Callable[[], None]):
        self.tensor, self._drop = tensor, drop

    def __del__(self) -> None:
        self._drop()


def free_bytes(device: str) -> int | None:
    """The memory that is free on a device; None if it cannot be told."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as source:
            facts = dict(line.split(":", 1) for line in source)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = "SC_AVPHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in os.sysconf_names else None
