"""Estimate the memory that a training run needs before it starts."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unfool.data import fetch
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.protocols import Dataset
from unfool.runtime.memory import count_graph_memory, free_bytes

TRIAL_IMAGES = 2  # images in the trial step
# Training state in multiples of the weights' size: gradient, two moments, running average, and a
# checkpoint on its way to disk.
STATE_PER_WEIGHT = 8
# Memory of a backward pass in multiples of what the graph keeps, because of gradients and workspaces
# (measured at batch sizes from 512 to 2,048).
BACKWARD = 1.7


def check_weights(build: Callable[[], nn.Module], device: str) -> None:
    """Refuse a network whose weights and training state alone do not fit in memory.

    The network is built on the meta device, without values. If that fails, this check passes, and
    the actual construction reports the error.

    Args:
        build: Builds the network.
        device: Device on which it will be trained.

    Raises:
        SpecError: The network needs more memory than is free.
    """
    try:
        # torch warns of every weight in a file, because it is not loaded on this device.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            weights = list(build().parameters())
    except Exception:  # a user's own network may raise anything
        return
    needed = (1 + STATE_PER_WEIGHT) * sum(p.numel() * p.element_size() for p in weights)
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
    """Refuse a training run that does not fit in memory.

    The estimate comes from a trial forward pass on two images: the memory that its graph keeps for
    the backward pass is measured.

    Args:
        model: The model to train, on `device`.
        objective: The loss.
        data: The training data.
        batch: Images per step.
        parts: Number of parts into which a batch is split, over processes and one after another.
        device: Device on which the model will be trained.
        half: Whether matrix products are computed in bfloat16.

    Raises:
        SpecError: A step needs more memory than is free.
    """
    fixed, per_image = forecast(model, objective, data, device, half)
    at_once, free = batch // parts, free_bytes(device)
    needed = fixed + per_image * at_once
    if free is None or needed <= free:
        return
    fitting_batch = int((free - fixed) // per_image)
    advice = "choose a smaller network"
    if fitting_batch > 0:
        accumulate_advice = (
            f", or training.accumulate to split it into {-(-batch // fitting_batch)} parts or more"
        )
        advice = f"set training.batch_size to {fitting_batch * parts} or less{accumulate_advice}"
    raise SpecError(
        f"a step of {at_once} images takes about {needed / 2**30:.1f} GiB, and {device} has "
        f"{free / 2**30:.1f} GiB free: {advice}"
    )


def forecast(
    model: nn.Module, objective: Any, data: Dataset, device: str, half: bool
) -> tuple[int, int]:
    """Return the bytes needed beyond the model itself: a fixed amount, and an amount per image."""
    size = min(TRIAL_IMAGES, len(data))
    x, y = (part.to(device) for part in fetch(data, range(size)))
    kind = torch.device(device).type
    buffers = [buffer.clone() for buffer in model.buffers()]
    with (
        count_graph_memory(model) as graph_memory,
        torch.autocast(kind, dtype=torch.bfloat16, enabled=half),
    ):
        objective(model, x, y, Noise.of(0, range(size)).child("forecast"))
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return STATE_PER_WEIGHT * parameters, int(BACKWARD * graph_memory.peak / size)
