"""Losses at every reverse step: the distance to the forward process (DiffAttack).

Kang et al. (2023) add to the loss of the logits, at each time of the reverse process, the distance
between its state and that of the forward process. The backward pass visits each state anyway, so it
adds the gradient of these losses there, without calling a network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unfool.diffusion.schedule import Scales


@dataclass
class Deviation:
    """The per-step loss of the chains inside `deviating`.

    Attributes:
        weight: The weight of the mean squared distance of the states, averaged over a chain's
            steps.
        chains: The number of chains that took part.
    """

    weight: float
    chains: int = 0


_DEVIATION: ContextVar[Deviation | None] = ContextVar("deviation", default=None)


@contextmanager
def deviating(weight: float) -> Iterator[Deviation]:
    """Make the gradient through chains in this block that of the loss plus their deviation.

    Only the gradient changes; all values stay the same to the bit. The loss must be differentiated
    with a weight of 1 for each image, as for a sum over images.

    Args:
        weight: The weight of the deviation: the mean over steps, channels and pixels of the squared
            distance between the state and that of the forward process, in the denoiser's space.
    """
    deviation = Deviation(weight)
    token = _DEVIATION.set(deviation)
    try:
        yield deviation
    finally:
        _DEVIATION.reset(token)


class ForwardPath:
    """The forward process that led to a chain's first state: at each time alpha x + sigma eps.

    Args:
        image: The image in the denoiser's space (B, C, H, W).
        start: The chain's first state, at `scales(0)`; its noise is eps.
        scales: Maps the number of a time to its scales, shaped () or (B, 1, 1, 1).
        times: The number of times.
        weight: The weight of the deviation.
    """

    def __init__(
        self,
        image: Tensor,
        start: Tensor,
        scales: Callable[[int], Scales],
        times: int,
        weight: float,
    ):
        self.image, self.start, self.scales = image.detach(), start.detach(), scales
        self.factor = 2 * weight / (start[0].numel() * (times - 1))
        self.to_image = self.to_start = torch.zeros_like(self.start)  # gradients of a backward pass

    def begin(self, start: Tensor, image: Tensor) -> Tensor:
        """Return the first state, whose gradient includes its effect on the forward path."""
        return _Begin.apply(start, image, self)  # pyright: ignore

    def add_deviation(self, state: Tensor, i: int) -> Tensor:
        """Return the state after step `i`, whose gradient includes that of its deviation."""
        return _AddDeviation.apply(state, i, self)  # pyright: ignore

    def deviation_gradient(self, state: Tensor, i: int) -> Tensor:
        """The gradient of the deviation after step `i`; also adds its parts for image and start."""
        first, now = self.scales(0), self.scales(i + 1)
        of_start = now.sigma / first.sigma
        of_image = now.alpha - of_start * first.alpha
        gradient = self.factor * (state - of_image * self.image - of_start * self.start)
        self.to_image = self.to_image - of_image * gradient
        self.to_start = self.to_start - of_start * gradient
        return gradient

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of a backward pass for start and image, and reset them to 0."""
        gradients = self.to_start, self.to_image
        self.to_image = self.to_start = torch.zeros_like(self.start)
        return gradients


def forward_path(
    image: Tensor | None, start: Tensor, scales: Callable[[int], Scales], times: int
) -> ForwardPath | None:
    """The path of a chain inside `deviating`; None elsewhere, or without image or gradients."""
    deviation = _DEVIATION.get()
    if deviation is None or image is None or not torch.is_grad_enabled():
        return None
    deviation.chains += 1
    return ForwardPath(image, start, scales, times, deviation.weight)


def count_chain() -> None:
    """Count a chain that does not run, as in the stand-ins of a dry run."""
    if (deviation := _DEVIATION.get()) is not None:
        deviation.chains += 1


class _Begin(torch.autograd.Function):
    """The first state. All steps follow it, so its backward pass runs after theirs."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, image: Tensor, path: ForwardPath) -> Tensor:
        ctx.path = path
        return start.view_as(start)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        to_start, to_image = ctx.path.take_gradients()
        return gradient + to_start, to_image, None


class _AddDeviation(torch.autograd.Function):
    """A state; the backward pass adds the gradient of its deviation."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, i: int, path: ForwardPath) -> Tensor:
        ctx.save_for_backward(state)
        ctx.i, ctx.path = i, path
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (state,) = ctx.saved_tensors
        return gradient + ctx.path.deviation_gradient(state, ctx.i), None, None
