"""Training on several processes, started by torchrun: each takes its share of every batch.

Gradients are averaged in one message, before clipping, as in DistributedDataParallel, but for any loss:
an objective here calls parts of the model (`predict`, `estimate`), some of them without gradients of the
weights (CGPO of ADDT), instead of `forward`, which is what DistributedDataParallel observes.
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
PATIENCE = timedelta(days=1)  # the others wait while the first makes adversarial images or measures


@dataclass(frozen=True)
class Processes:
    """The processes of a training run, seen from one of them.

    Attributes:
        rank: The rank of this process; the one with rank 0 writes all files.
        count: The number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes all files."""
        return self.rank == 0

    def average(self, weights: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Replace the gradients of `weights` by their mean over processes, and return the mean `loss`.

        With more than one process, a missing gradient counts as 0.

        Args:
            weights: The weights that are trained, in the same order in every process.
            loss: The loss of this process, a scalar ().
        """
        if self.count == 1:
            return loss
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([*(g.flatten() for g in grads), loss.flatten().to(grads[0])])
        distributed.all_reduce(flat)
        *parts, loss = (flat / self.count).split([*(w.numel() for w in weights), 1])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        return loss[0]

    def broadcast(self, value: T) -> T:
        """Return the `value` of the first process in all processes, which wait for it."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values)
        return values[0]


def rank_and_count() -> Processes:
    """Read rank and count from torchrun's RANK and WORLD_SIZE; without these, one process."""
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Connect the processes of torchrun inside the context: by NCCL on a GPU, else by gloo.

    Raises:
        ValueError: There are several processes, but torchrun's variables for connecting are missing.
    """
    processes = rank_and_count()
    if processes.count == 1:
        yield Processes()
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield processes
    finally:
        distributed.destroy_process_group()
