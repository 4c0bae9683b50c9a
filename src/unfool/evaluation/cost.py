"""The cost of an evaluation: calls of the networks, and memory."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.diffusion.denoiser import Denoiser
from unfool.models.classifiers import NormalizedClassifier
from unfool.models.jem import Features


@dataclass
class CallCounter:
    """Counts the images that pass through networks, forward and backward.

    Attributes:
        counts: Numbers of images, not batches: `nfe_forward` (with what a backward pass computes
            again) and `nfe_vjp` of the denoiser, `classifier_forward` and `classifier_vjp` of the
            classifier.
    """

    counts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: object) -> Iterator[None]:
        """Count the calls of a model's denoisers and classifiers inside the `with`."""
        with ExitStack() as hooks:
            for module in model.modules() if isinstance(model, nn.Module) else ():
                if isinstance(module, Denoiser):
                    hook = module.register_forward_hook(self._counter("nfe"))
                elif isinstance(module, NormalizedClassifier | Features):
                    hook = module.register_forward_hook(self._counter("classifier"))
                else:
                    continue
                hooks.callback(hook.remove)
            yield

    def take(self) -> dict[str, int]:
        """Return the counts since the last call of this method, and reset them."""
        taken, self.counts = self.counts, {}
        return taken

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, inputs: Any, out: Tensor) -> None:
            self._add(f"{name}_forward", len(out))
            if out.requires_grad:
                out.register_hook(lambda gradient: self._add(f"{name}_vjp", len(gradient)))

        return count

    def _add(self, key: str, size: int) -> None:
        self.counts[key] = self.counts.get(key, 0) + size


def peak_bytes() -> int:
    """The peak memory so far: of the GPU if it was used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # on Linux, where ru_maxrss starts at the parent's peak
    _, _, peak = (status.read_text() if status.exists() else "").partition("VmHWM:")
    if peak:
        return int(peak.split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
