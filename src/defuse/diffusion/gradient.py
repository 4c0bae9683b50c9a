"""The exact gradient through a chain of steps, with the activations of one step in memory.

The states between the steps are kept (an image each: small); the way back replays one step at a
time and asks it for one vector-Jacobian product. Replay is exact because the randomness of a step is
a function of its key. Time: one forward to go, one forward and one product per step to return.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

Advance = Callable[[int, Tensor], Tensor]
_graphs: ContextVar[int] = ContextVar("graphs", default=0)


@contextmanager
def keeping(graphs: int) -> Iterator[None]:
    """Inside this block, chains keep the graphs of their last `graphs` steps, and replay the others.

    A step that is kept takes its activations' memory and saves a forward pass of the way back. With
    all steps kept it is plain autograd, which may be differentiated again.
    """
    token = _graphs.set(graphs)
    try:
        yield
    finally:
        _graphs.reset(token)


def chain(advance: Advance, x: Tensor, steps: int, beside: Sequence[Tensor] = ()) -> Tensor:
    """`x` carried through `advance(0, x)`, `advance(1, x)`, ... `advance(steps - 1, x)`.

    Args:
        advance: A step: its number and the state to the next state. A pure function.
        x: The first state (B, ...).
        steps: How many.
        beside: Other tensors that `advance` uses and that may need a gradient: the image that a
            guide looks at, or the weights of a network in training.
    """
    needed = list({id(tensor): tensor for tensor in beside if tensor.requires_grad}.values())
    if torch.is_grad_enabled() and (x.requires_grad or needed):
        replayed = max(0, steps - _graphs.get())
        if replayed:
            x = _Chain.apply(advance, replayed, x, *needed)  # pyright: ignore[reportAssignmentType]
    else:
        replayed = 0
    for i in range(replayed, steps):
        x = advance(i, x)
    return x


def twice_differentiable() -> AbstractContextManager[Any]:
    """A context where attention takes the one form that has second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, advance: Advance, steps: int, x: Tensor, *beside: Tensor) -> Tensor:
        states, x = [], x.detach()  # here gradients are off, and nothing should seem to need one
        for i in range(steps):
            states.append(x)
            x = advance(i, x)
        ctx.advance = advance
        ctx.save_for_backward(*states, *beside)
        ctx.steps = steps
        return x if steps else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        saved = ctx.saved_tensors
        states, beside = saved[: ctx.steps], saved[ctx.steps :]
        totals: list[Tensor | None] = [None] * len(beside)
        for i in reversed(range(ctx.steps)):
            with torch.enable_grad():
                x = states[i].detach().requires_grad_()
                out = ctx.advance(i, x)
            gradient, *parts = torch.autograd.grad(out, (x, *beside), gradient, allow_unused=True)
            for j, part in enumerate(parts):
                if part is not None:
                    total = totals[j]
                    totals[j] = part if total is None else total + part
        return None, None, gradient, *totals
