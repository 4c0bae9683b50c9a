"""How much memory a training will take, told before it starts."""

from typing import Any

import torch
from torch import nn

from defuse.data import fetch
from defuse.graphs import free_bytes, kept_by_graphs
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
    kind = torch.device(device).type
    buffers = [buffer.clone() for buffer in model.buffers()]
    with (
        kept_by_graphs(model) as kept,
        torch.autocast(kind, dtype=torch.bfloat16, enabled=half),
    ):
        objective(model, x, y, Noise.of(0, range(size)).fold("forecast"))
    with torch.no_grad():
        for buffer, was in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(was)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    # the gradient, two moments of the optimizer, the average, and a checkpoint on its way to disk
    return 8 * parameters, kept.peak // size
