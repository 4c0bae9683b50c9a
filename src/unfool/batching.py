"""Many images, or rows of a network, in as many calls as memory asks for."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from unfool.diffusion.gradient import FREE, keeping
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.runtime.memory import free_bytes, kept_by_graphs

MAX_BATCH = 256, 4096  # images in one call on a CPU, and on a GPU: more are no faster
Found = TypeVar("Found")


class BatchLimit:
    """The most rows of a call, where several parts or views of a model share that number.

    Attributes:
        batch_size: It, or None for any; `in_parts` halves it when memory runs out.
    """

    def __init__(self, rows: int | None):
        self.batch_size = rows


def in_parts(
    call: Callable[[slice], Found], size: int, model: object, what: str = "images"
) -> list[Found]:
    """What `call` returns for each part of the places 0 .. size - 1, in order.

    A part has `model.batch_size` places, or all if the model names no number. When memory runs out, that
    number is halved, which is said, and the same places are asked again.

    Args:
        call: Of a slice of the places.
        size: How many places there are.
        model: Whose `batch_size` count.
        what: What these are, for what is said.

    Raises:
        torch.OutOfMemoryError: There is not enough for one image, or the model names no number.
    """
    found, first = [], 0
    while first < size:
        rows = min(getattr(model, "batch_size", None) or size, size - first)
        try:
            found.append(call(slice(first, first + rows)))
        except torch.OutOfMemoryError:
            if rows == 1 or not getattr(model, "batch_size", None):
                raise
        else:
            first += rows
            continue
        # out of the handler, whose error holds on to what the call had allocated
        model.batch_size = rows // 2  # pyright: ignore[reportAttributeAccessIssue]
        print(
            f"unfool: out of memory with {rows} {what} in one call; continuing with {rows // 2}",
            file=sys.stderr,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def fitting(model: Classifier, x: Tensor) -> int:
    """How many images one call of a model may have, so that their graphs take a quarter of what is free.

    Args:
        model: The model; it is differentiated twice, at one image.
        x: One image (1, C, H, W) or more.
    """

    def taken() -> int:
        at = x[:1].detach().clone().requires_grad_()
        with keeping(0), kept_by_graphs(model) as kept, torch.enable_grad():
            logits = model(at, Noise.of(0, [0]))
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), at, allow_unused=True)
        return kept.peak

    taken()  # the first time, the chain itself learns what a step takes, and hides it
    each = max(taken(), 1)
    free, most = free_bytes(str(x.device)), MAX_BATCH[x.is_cuda]
    return most if free is None else min(max(int(FREE * free / each), 1), most)
