"""The exact gradient through a chain of steps, within the memory that is available.

The states between the steps are stored, which takes one image each. The backward pass replays one
step at a time and takes one vector-Jacobian product of it. Replay is exact because the randomness
of a step is a function of its key. Each step costs one forward call, and on the backward pass one
more with its product. Steps whose graphs fit into free memory keep them and need no replay,
starting with the last.
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
FREE_SHARE = 0.25  # the share of free memory that the graphs of all chains may take
CPU_LIMIT = 2**30  # and the most bytes on a CPU, where keeping much more is slower than replaying
_graphs_to_keep: ContextVar[int | None] = ContextVar("graphs_to_keep", default=None)
may_be_replayed = ContextVar("may_be_replayed", default=False)  # whether steps may be replayed
# measured bytes per image of a step's graph, by model and kind of step
graph_bytes: WeakKeyDictionary[nn.Module, dict[Kind, float]] = WeakKeyDictionary()


@contextmanager
def keep_graphs(graphs: int | None) -> Iterator[None]:
    """Make chains in this block keep the graphs of their last `graphs` steps and replay the others.

    None, which is the default outside of such a block, keeps as many as fit into a quarter of the
    free memory, over all chains.

    A kept graph takes the memory of its activations and saves a forward call on the backward pass.
    With all graphs kept, a chain is plain autograd, which can be differentiated twice.
    """
    token = _graphs_to_keep.set(graphs)
    try:
        yield
    finally:
        _graphs_to_keep.reset(token)


def chain(
    advance: Advance,
    x: Tensor,
    steps: int,
    other_inputs: Sequence[Tensor] = (),
    owner: nn.Module | None = None,
    kind: Kind = (),
) -> Tensor:
    """Carry `x` through `advance(0, x)`, `advance(1, x)`, ... `advance(steps - 1, x)`.

    Args:
        advance: A step, which maps its number and the state to the next state. A pure function.
        x: The first state (B, ...).
        steps: The number of steps.
        other_inputs: Other tensors that `advance` uses and that may need a gradient, such as the image
            that a guide looks at or the weights of a network in training.
        owner: The network of the steps. The memory of their graphs is measured on the first
            backward pass and remembered with it; without an owner, all steps are replayed.
        kind: What else that memory depends on.
    """
    differentiated = list(
        {id(tensor): tensor for tensor in other_inputs if tensor.requires_grad}.values()
    )
    graphs = _graphs_to_keep.get()
    is_plain = graphs is not None and graphs >= steps
    if torch.is_grad_enabled() and (x.requires_grad or differentiated) and not is_plain:
        autocast = torch.is_autocast_enabled(x.device.type)
        memory = GraphMemory(owner, (*kind, x.shape[1:], x.dtype, autocast))
        first = max(0, steps - memory.graphs_to_keep(len(x), x.device))
        with _as_replayed():
            return _Chain.apply(advance, steps, first, memory, x, *differentiated)  # pyright: ignore
    for i in range(steps):
        x = advance(i, x)
    return x


def vector_jacobian(out: Tensor, inputs: Sequence[Tensor], vector: Tensor) -> tuple[Tensor, ...]:
    """`vector` times the derivative of `out` by each input; None for inputs that are not used.

    `torch.autograd.grad` gives the same if it gets the vector, but imports sympy for that the first
    time, which takes half a second.
    """
    with torch.enable_grad():
        product = (out * vector).sum()
    return torch.autograd.grad(product, inputs, allow_unused=True)


class GraphMemory:
    """The memory of a step's graph per image, as measured on the first backward pass.

    Args:
        owner: The network of the steps, with which it is remembered; None measures nothing.
        kind: What else it depends on.
    """

    def __init__(self, owner: nn.Module | None, kind: Kind):
        self.owner, self.kind = owner, kind
        self.is_measured = owner is None or kind in graph_bytes.get(owner, {})

    def graphs_to_keep(self, images: int, device: torch.device) -> int:
        """The number of graphs of `images` images to keep: as many as fit, or as `keep_graphs` sets."""
        if (graphs := _graphs_to_keep.get()) is not None:
            return graphs
        bytes_per_image = (
            graph_bytes.get(self.owner, {}).get(self.kind) if self.owner is not None else None
        )
        if bytes_per_image is None or (free := free_bytes(str(device))) is None:
            return 0
        already_kept = _CountedBytes.total  # what other chains keep until their backward pass
        allowed = FREE_SHARE * (free + already_kept)
        allowed = (allowed if device.type == "cuda" else min(allowed, CPU_LIMIT)) - already_kept
        return max(0, int(allowed / max(bytes_per_image * images, 1)))

    def counted_bytes(self, images: int) -> "_CountedBytes":
        """An object that counts the memory of a graph of `images` images while it exists."""
        bytes_per_image = (
            graph_bytes.get(self.owner, {}).get(self.kind, 0) if self.owner is not None else 0
        )
        return _CountedBytes(bytes_per_image * images)

    def forget(self) -> None:
        """Discard the measurement: keep no graphs until another backward pass measures them."""
        if self.owner is not None:
            graph_bytes.get(self.owner, {}).pop(self.kind, None)

    @contextmanager
    def measure(self, images: int) -> Iterator[None]:
        """Measure the graph of a step that runs inside; the largest on a backward pass counts."""
        if self.is_measured or self.owner is None:
            yield
            return
        with kept_by_graphs(self.owner) as kept:
            yield
        sizes = graph_bytes.setdefault(self.owner, {})
        sizes[self.kind] = max(sizes.get(self.kind, 0), kept.peak / images)


class _CountedBytes:
    """Bytes of a kept graph.

    Attributes:
        total: Bytes of all kept graphs.
    """

    total = 0.0

    def __init__(self, size: float):
        self.size = size
        _CountedBytes.total += size

    def __del__(self) -> None:
        _CountedBytes.total -= self.size


@contextmanager
def _as_replayed() -> Iterator[None]:
    token = may_be_replayed.set(True)
    try:
        yield
    finally:
        may_be_replayed.reset(token)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Make attention in this block use its only implementation with second derivatives.

    Compiled networks have none, so they run without compilation.
    """
    compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiling else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), eager:
        yield


def same_precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of contexts with the current autocast state, for a replay under another one."""
    enabled, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype=kind, enabled=enabled)


class _Chain(torch.autograd.Function):
    """A chain that keeps the graphs of the steps from number `first` on and replays the others.

    Each step is differentiated on its own in both cases, so that they agree to the last bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        advance: Advance,
        steps: int,
        first: int,
        memory: GraphMemory,
        x: Tensor,
        *other_inputs: Tensor,
    ) -> Tensor:
        states, x = [], x.detach()  # gradients are off here, and no state should require one
        storage = x.new_empty(steps, *x.shape)  # one allocation takes less memory than many
        ctx.kept = {}
        for i in range(steps):
            states.append(storage[i].copy_(x) if x.dtype == storage.dtype else x)
            if i < first:
                x = advance(i, x)
            else:
                ctx.kept[i] = (*_Chain.step(advance, i, x), memory.counted_bytes(len(x)))
                x = ctx.kept[i][1].detach()
        ctx.advance, ctx.memory = advance, memory
        ctx.precision = same_precision(x.device.type)
        ctx.save_for_backward(*states, *other_inputs)
        ctx.steps = steps
        return x if steps else x.clone()

    @staticmethod
    def step(advance: Advance, i: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run a step with its graph; return its input and its output."""
        with torch.enable_grad():
            x = state.detach().requires_grad_()
            return x, advance(i, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        saved = ctx.saved_tensors
        states, other_inputs = saved[: ctx.steps], saved[ctx.steps :]
        totals: list[Tensor | None] = [None] * len(other_inputs)
        for i in reversed(range(ctx.steps)):
            if i in ctx.kept:  # its graph is freed now; a second backward pass replays it
                x, out, _ = ctx.kept.pop(i)
            else:
                with ctx.memory.measure(len(gradient)), ctx.precision():
                    x, out = _Chain.step(ctx.advance, i, states[i])
            gradient, *parts = vector_jacobian(out, (x, *other_inputs), gradient)
            for j, part in enumerate(parts):
                if part is not None:
                    total = totals[j]
                    totals[j] = part if total is None else total + part
        return None, None, None, None, gradient, *totals
