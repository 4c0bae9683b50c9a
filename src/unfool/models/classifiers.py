"""Networks as classifiers: images of [0, 1] in, logits out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr


class NormalizedClassifier(nn.Module):
    """An undefended classifier: a network, and how its input is normalized.

    The normalization is part of the model, so that attacks work in pixels of [0, 1]. It draws no
    noise.

    Args:
        network: Normalized images (B, C, H, W) to logits (B, K).
        mean: What is subtracted, a number per channel or one for all; None for nothing.
        std: What the difference is divided by, likewise.

    Raises:
        ValueError: `std` is not above 0.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
    ) -> None:
        super().__init__()
        mean, std = _numbers(mean, 0.0), _numbers(std, 1.0)
        if min(std) <= 0:
            raise ValueError(f"std must be above 0, not {tuple(std)}")
        self.network = network
        # Options of the model and not weights: a checkpoint neither has nor needs them.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: The images have another number of channels than `mean` or `std`, or the
                network does not give logits.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise ValueError(f"{name} has {len(values)} numbers for {x.shape[1]} channels")
        logits = self.network((x - self.mean) / self.std)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must give logits ({len(x)}, K), and gave {found}")
        return logits


def _numbers(given: Sequence[float] | float | None, unit: float) -> Sequence[float]:
    if given is None or isinstance(given, int | float):
        return [unit if given is None else given]
    return given or [unit]
