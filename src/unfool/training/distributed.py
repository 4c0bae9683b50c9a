"""A training over several processes, as torchrun starts them: each takes its share of every batch.

Gradients are averaged in one message, before clipping. This is what DistributedDataParallel does, but for
any loss: an objective here calls parts of the model (`predict`, `estimate`), some of them without
gradients of the weights (CGPO of ADDT), and not its `forward`, which DistributedDataParallel watches.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # while the first process makes adversarial images, or measures


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: The number of this one; the one numbered 0 writes.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def average(self, weights: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Replace the gradients of `weights` by their mean over processes, and return that of `loss`.

        A weight without a gradient counts as one whose gradient is 0, where there are more processes
        than one.

        Args:
            weights: The weights that are trained, in the same order in every process.
            loss: A number ().
        """
        if self.count == 1:
            return loss
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        whole = torch.cat([*(g.flatten() for g in grads), loss.flatten().to(grads[0])])
        distributed.all_reduce(whole)
        *parts, loss = (whole / self.count).split([*(w.numel() for w in weights), 1])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        return loss[0]

    def agreed(self, value: T) -> T:
        """What the first process says; the others wait for it."""
        said = [value]
        if self.count > 1:
            distributed.broadcast_object_list(said)
        return said[0]


def numbers() -> Processes:
    """This process among those of torchrun, from RANK and WORLD_SIZE; else the only one."""
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Inside, the processes of torchrun can talk to each other: by NCCL on a GPU, else by gloo.

    Raises:
        ValueError: There are several, but they were not told how to meet, as torchrun tells them.
    """
    found = numbers()
    if found.count == 1:
        yield Processes()
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield found
    finally:
        distributed.destroy_process_group()
