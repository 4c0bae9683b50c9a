"""How much memory a training will take, told before it starts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unfool.data import fetch
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.protocols import Dataset
from unfool.runtime.memory import free_bytes, kept_by_graphs

TRIED = 2  # images of the trial
# times the weights: their gradient, two moments, the average, and a checkpoint on its way to disk
BESIDE = 8
BACKWARD = 1.7  # times what a graph keeps: gradients and workspaces (measured, batch 512 to 2,048)


def check_weights(build: Callable[[], nn.Module], device: str) -> None:
    """Refuse a network whose weights alone, with what training keeps beside them, cannot fit.

    It is built without its numbers; one that cannot be built so says itself what it lacks.

    Args:
        build: Makes the network.
        device: Where it will be trained.

    Raises:
        SpecError: It needs more memory than there is.
    """
    try:
        with torch.device("meta"):
            weights = list(build().parameters())
    except Exception:  # a stranger's network may raise anything
        return
    needed = (1 + BESIDE) * sum(p.numel() * p.element_size() for p in weights)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise SpecError(
            f"training {sum(p.numel() for p in weights):,} weights takes at least "
            f"{needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB free: choose a "
            "smaller network"
        )


def check_memory(
    model: nn.Module,
    objective: Any,
    data: Dataset,
    batch: int,
    parts: int,
    device: str,
    half: bool,
) -> None:
    """Refuse a training that cannot fit.

    A step on two images is tried, and what it keeps for its gradient is counted.

    Args:
        model: What is to be trained, on `device`.
        objective: The loss.
        data: What it is trained on.
        batch: Images of a step.
        parts: How many parts a batch is split into, over processes and one after another.
        device: Where it will be trained.
        half: Whether products are computed in bfloat16.

    Raises:
        SpecError: It needs more memory than there is.
    """
    fixed, each = forecast(model, objective, data, device, half)
    at_once, free = batch // parts, free_bytes(device)
    needed = fixed + each * at_once
    if free is None or needed <= free:
        return
    fits = int((free - fixed) // each)
    cure = "choose a smaller network"
    if fits > 0:
        share = f", or training.accumulate to split it into {-(-batch // fits)} parts or more"
        cure = f"set training.batch_size to {fits * parts} or less{share}"
    raise SpecError(
        f"a step of {at_once} images takes about {needed / 2**30:.1f} GiB, and {device} has "
        f"{free / 2**30:.1f} GiB free: {cure}"
    )


def forecast(
    model: nn.Module, objective: Any, data: Dataset, device: str, half: bool
) -> tuple[int, int]:
    """The bytes that a training takes whatever its batch, beyond the model, and for each image."""
    size = min(TRIED, len(data))
    x, y = (part.to(device) for part in fetch(data, range(size)))
    kind = torch.device(device).type
    buffers = [buffer.clone() for buffer in model.buffers()]
    with kept_by_graphs(model) as kept, torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
        objective(model, x, y, Noise.of(0, range(size)).child("forecast"))
    with torch.no_grad():
        for buffer, was in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(was)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return BESIDE * parameters, int(BACKWARD * kept.peak / size)
