"""Losses at every reverse step: the distance to the forward process (DiffAttack).

Kang et al. (2023) add to the loss of the logits, at each time of the reverse process, the distance of its
state from that of the forward process. The way back visits each state anyway, so the gradient of these
losses is added there, and no network is called for it.
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
    """What is asked of the chains inside `deviating`.

    Attributes:
        weight: Of the mean square distance of the states, the mean over the steps of a chain.
        chains: How many chains took part.
    """

    weight: float
    chains: int = 0


_ASKED: ContextVar[Deviation | None] = ContextVar("deviation", default=None)


@contextmanager
def deviating(weight: float) -> Iterator[Deviation]:
    """Inside this block, the gradient through a chain is that of the loss plus its deviation.

    The gradient alone: what is computed stays the same to the bit. The gradient of the loss must be
    asked for with a weight of 1 for each image, as of a sum over images.

    Args:
        weight: Of the deviation: the mean over steps, channels and places of the squared distance
            between the state and the forward process's at that time, in the denoiser's space.
    """
    asked = Deviation(weight)
    token = _ASKED.set(asked)
    try:
        yield asked
    finally:
        _ASKED.reset(token)


class ForwardPath:
    """The forward process that led to a chain's first state: at each time alpha x + sigma eps.

    Args:
        image: In the denoiser's space (B, C, H, W).
        start: The chain's first state, at `scales[0]`, of which eps is the noise.
        scales: Of the time numbered i of the chain, shaped () or (B, 1, 1, 1).
        times: How many times there are.
        weight: Of the deviation.
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
        self.each = 2 * weight / (start[0].numel() * (times - 1))
        self.to_image = self.to_start = torch.zeros_like(self.start)  # gradients of a way back

    def begin(self, start: Tensor, image: Tensor) -> Tensor:
        """The first state, whose gradient has what the forward path's states add to it."""
        return _Begin.apply(start, image, self)  # pyright: ignore

    def meet(self, state: Tensor, i: int) -> Tensor:
        """The same state after step `i`, whose gradient has that of the deviation there."""
        return _Meet.apply(state, i, self)  # pyright: ignore

    def apart(self, state: Tensor, i: int) -> Tensor:
        """The gradient of the deviation after step `i`, remembered for the image and the start."""
        first, now = self.scales(0), self.scales(i + 1)
        of_start = now.sigma / first.sigma
        of_image = now.alpha - of_start * first.alpha
        apart = self.each * (state - of_image * self.image - of_start * self.start)
        self.to_image = self.to_image - of_image * apart
        self.to_start = self.to_start - of_start * apart
        return apart

    def take(self) -> tuple[Tensor, Tensor]:
        """What a way back has added for the start and the image; the next begins at 0."""
        found = self.to_start, self.to_image
        self.to_image = self.to_start = torch.zeros_like(self.start)
        return found


def forward_path(
    image: Tensor | None, start: Tensor, scales: Callable[[int], Scales], times: int
) -> ForwardPath | None:
    """The forward path of a chain that knows the image it came from, if `deviating` asks for it."""
    asked = _ASKED.get()
    if asked is None or image is None or not torch.is_grad_enabled():
        return None
    asked.chains += 1
    return ForwardPath(image, start, scales, times, asked.weight)


def count_chain() -> None:
    """Count a chain where one is only pretended, as by the stand-ins of a dry run."""
    if (asked := _ASKED.get()) is not None:
        asked.chains += 1


class _Begin(torch.autograd.Function):
    """The first state. All steps are behind it, so its way back comes after theirs."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, image: Tensor, path: ForwardPath) -> Tensor:
        ctx.path = path
        return start.view_as(start)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        to_start, to_image = ctx.path.take()
        return gradient + to_start, to_image, None


class _Meet(torch.autograd.Function):
    """The state; on the way back, the gradient of its deviation is added."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, i: int, path: ForwardPath) -> Tensor:
        ctx.save_for_backward(state)
        ctx.i, ctx.path = i, path
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (state,) = ctx.saved_tensors
        return gradient + ctx.path.apart(state, ctx.i), None, None
