"""Processing of many images, or rows of a network's batch, in calls that fit into memory."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from unfool.diffusion.gradient import FREE_SHARE, keep_graphs
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.runtime.memory import free_bytes, kept_by_graphs

MAX_BATCH_SIZES = 256, 4096  # images per call on a CPU, and on a GPU: more are not faster
Result = TypeVar("Result")


class BatchLimit:
    """The maximum number of rows in a call, shared by several parts or views of a model.

    Attributes:
        batch_size: The limit, or None for no limit; `in_parts` halves it when memory runs out.
    """

    def __init__(self, rows: int | None):
        self.batch_size = rows


def in_parts(
    call: Callable[[slice], Result], size: int, model: object, what: str = "images"
) -> list[Result]:
    """Call a function for consecutive slices of 0 .. size - 1, and return the results in order.

    A slice has `model.batch_size` positions, or all if the model has no limit. When memory runs
    out, the limit is halved, a message says so, and the same positions are tried again.

    Args:
        call: The function, which takes a slice.
        size: Number of positions.
        model: The model whose `batch_size` applies.
        what: What the positions are, for the message.

    Raises:
        torch.OutOfMemoryError: Memory does not suffice for one image, or the model has no limit.
    """
    results, first = [], 0
    while first < size:
        rows = min(getattr(model, "batch_size", None) or size, size - first)
        try:
            results.append(call(slice(first, first + rows)))
        except torch.OutOfMemoryError:
            if rows == 1 or not getattr(model, "batch_size", None):
                raise
        else:
            first += rows
            continue
        # outside of the handler, because its error keeps alive what the call had allocated
        model.batch_size = rows // 2  # pyright: ignore[reportAttributeAccessIssue]
        print(
            f"unfool: out of memory with {rows} {what} in one call; continuing with {rows // 2}",
            file=sys.stderr,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def estimate_batch_size(model: Classifier, x: Tensor) -> int:
    """Return how many images fit into a call whose graphs may take a quarter of the free memory.

    Args:
        model: The model; it is differentiated twice, at one image.
        x: One image (1, C, H, W) or more.
    """

    def graph_bytes() -> int:
        image = x[:1].detach().clone().requires_grad_()
        with keep_graphs(0), kept_by_graphs(model) as kept, torch.enable_grad():
            logits = model(image, Noise.of(0, [0]))
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), image, allow_unused=True)
        return kept.peak

    graph_bytes()  # in the first run, a chain measures its own steps, which hides them from this count
    bytes_per_image = max(graph_bytes(), 1)
    free, largest = free_bytes(str(x.device)), MAX_BATCH_SIZES[x.is_cuda]
    if free is None:
        return largest
    return min(max(int(FREE_SHARE * free / bytes_per_image), 1), largest)
