"""The exact gradient through a chain of steps, in as much memory as there is, and no more.

The states between the steps are kept (an image each: small); the way back replays one step at a
time and asks it for one vector-Jacobian product. Replay is exact because the randomness of a step is
a function of its key. Time: one forward to go, one forward and one product per step to return. Steps
whose graphs fit into free memory keep them, and need no replay: the last ones first.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from unfool.runtime.memory import free_bytes, kept_by_graphs

Advance = Callable[[int, Tensor], Tensor]
Kind = tuple[Any, ...]
FREE = 0.25  # the share of free memory that the graphs of a chain may take
CPU = 2**30  # and the most bytes of it on a CPU, where much more is slower than to replay
_graphs: ContextVar[int | None] = ContextVar("graphs", default=None)
replayed = ContextVar("replayed", default=False)  # whether steps may be replayed
# what the graph of a step takes of one image, as learned, by the model and the kind of the step
graph_bytes: WeakKeyDictionary[nn.Module, dict[Kind, float]] = WeakKeyDictionary()


@contextmanager
def keeping(graphs: int | None) -> Iterator[None]:
    """Inside this block, chains keep the graphs of their last `graphs` steps, and replay the others.

    None, as outside of it, is as many as fit into a quarter of the free memory, all chains together.

    A step that is kept takes its activations' memory and saves a forward pass of the way back. With
    all steps kept it is plain autograd, which may be differentiated again.
    """
    token = _graphs.set(graphs)
    try:
        yield
    finally:
        _graphs.reset(token)


def chain(
    advance: Advance,
    x: Tensor,
    steps: int,
    beside: Sequence[Tensor] = (),
    owner: nn.Module | None = None,
    kind: Kind = (),
) -> Tensor:
    """`x` carried through `advance(0, x)`, `advance(1, x)`, ... `advance(steps - 1, x)`.

    Args:
        advance: A step: its number and the state to the next state. A pure function.
        x: The first state (B, ...).
        steps: How many.
        beside: Other tensors that `advance` uses and that may need a gradient: the image that a
            guide looks at, or the weights of a network in training.
        owner: The network of the steps. What their graphs take is learned on the first way back, and
            remembered with it; without one, all steps are replayed.
        kind: What else that depends on.
    """
    needed = list({id(tensor): tensor for tensor in beside if tensor.requires_grad}.values())
    asked = _graphs.get()
    plain = asked is not None and asked >= steps
    if torch.is_grad_enabled() and (x.requires_grad or needed) and not plain:
        cast = torch.is_autocast_enabled(x.device.type)
        learn = Learned(owner, (*kind, x.shape[1:], x.dtype, cast))
        first = max(0, steps - learn.graphs(len(x), x.device))
        with _as_replayed():
            return _Chain.apply(advance, steps, first, learn, x, *needed)  # pyright: ignore
    for i in range(steps):
        x = advance(i, x)
    return x


def vector_jacobian(out: Tensor, inputs: Sequence[Tensor], vector: Tensor) -> tuple[Tensor, ...]:
    """`vector` times the derivative of `out` by each input; None for those that `out` does not use.

    `torch.autograd.grad` gives the same if it is given the vector, but imports sympy for it the first
    time, which takes half a second.
    """
    with torch.enable_grad():
        along = (out * vector).sum()
    return torch.autograd.grad(along, inputs, allow_unused=True)


class Learned:
    """What the graph of a step takes, per image, as the first way back has shown.

    Args:
        owner: The network of the steps, with which it is remembered; None for nothing.
        kind: What else it depends on.
    """

    def __init__(self, owner: nn.Module | None, kind: Kind):
        self.owner, self.kind = owner, kind
        self.known = owner is None or kind in graph_bytes.get(owner, {})

    def graphs(self, images: int, device: torch.device) -> int:
        """How many graphs of so many images are kept: as many as fit, or as `keeping` says."""
        if (asked := _graphs.get()) is not None:
            return asked
        size = graph_bytes.get(self.owner, {}).get(self.kind) if self.owner is not None else None
        if size is None or (free := free_bytes(str(device))) is None:
            return 0
        held = _Held.all  # which other chains keep, until their way back
        most = FREE * (free + held)
        most = (most if device.type == "cuda" else min(most, CPU)) - held
        return max(0, int(most / max(size * images, 1)))

    def held(self, images: int) -> "_Held":
        """To be kept beside a graph of so many images for as long as that is."""
        size = graph_bytes.get(self.owner, {}).get(self.kind, 0) if self.owner is not None else 0
        return _Held(size * images)

    def forget(self) -> None:
        """Keep no graphs until another way back has shown what they take."""
        if self.owner is not None:
            graph_bytes.get(self.owner, {}).pop(self.kind, None)

    @contextmanager
    def watching(self, images: int) -> Iterator[None]:
        """Learn from the graphs of one step that are made inside, the largest of a first way back."""
        if self.known or self.owner is None:
            yield
            return
        with kept_by_graphs(self.owner) as kept:
            yield
        sizes = graph_bytes.setdefault(self.owner, {})
        sizes[self.kind] = max(sizes.get(self.kind, 0), kept.peak / images)


class _Held:
    """Bytes that a graph takes which is kept.

    Attributes:
        all: Those of all such graphs.
    """

    all = 0.0

    def __init__(self, size: float):
        self.size = size
        _Held.all += size

    def __del__(self) -> None:
        _Held.all -= self.size


@contextmanager
def _as_replayed() -> Iterator[None]:
    token = replayed.set(True)
    try:
        yield
    finally:
        replayed.reset(token)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context where attention takes the one form that has second derivatives.

    Compiled networks, which have none, are executed as they are written.
    """
    compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiling else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), eager:
        yield


def same_precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """A context with the autocast of now, for a replay that happens where it may be another."""
    enabled, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype=kind, enabled=enabled)


class _Chain(torch.autograd.Function):
    """The chain, with the graphs of the steps from number `first` on kept, and the others replayed.

    Either way a step is differentiated by itself, so that the two agree to the last bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        advance: Advance,
        steps: int,
        first: int,
        learn: Learned,
        x: Tensor,
        *beside: Tensor,
    ) -> Tensor:
        states, x = [], x.detach()  # here gradients are off, and nothing should seem to need one
        places = x.new_empty(steps, *x.shape)  # in one piece, which takes less than one by one
        ctx.kept = {}
        for i in range(steps):
            states.append(places[i].copy_(x) if x.dtype == places.dtype else x)
            if i < first:
                x = advance(i, x)
            else:
                ctx.kept[i] = (*_Chain.step(advance, i, x), learn.held(len(x)))
                x = ctx.kept[i][1].detach()
        ctx.advance, ctx.learn = advance, learn
        ctx.precision = same_precision(x.device.type)
        ctx.save_for_backward(*states, *beside)
        ctx.steps = steps
        return x if steps else x.clone()

    @staticmethod
    def step(advance: Advance, i: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """A step with its graph: where it begins, and where it ends."""
        with torch.enable_grad():
            x = state.detach().requires_grad_()
            return x, advance(i, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        saved = ctx.saved_tensors
        states, beside = saved[: ctx.steps], saved[ctx.steps :]
        totals: list[Tensor | None] = [None] * len(beside)
        for i in reversed(range(ctx.steps)):
            if i in ctx.kept:  # its graph is gone after this; a second way back replays it
                x, out, _ = ctx.kept.pop(i)
            else:
                with ctx.learn.watching(len(gradient)), ctx.precision():
                    x, out = _Chain.step(ctx.advance, i, states[i])
            gradient, *parts = vector_jacobian(out, (x, *beside), gradient)
            for j, part in enumerate(parts):
                if part is not None:
                    total = totals[j]
                    totals[j] = part if total is None else total + part
        return None, None, None, None, gradient, *totals
