"""Networks as classifiers: images of [0, 1] in, logits out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unfool.checks import check_logits
from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr

Values = Sequence[float] | float | np.ndarray | np.floating | Tensor


class NormalizedClassifier(nn.Module):
    """An undefended classifier: a network, and how its input is normalized.

    The normalization is part of the model, so that attacks work in pixels of [0, 1]. It draws no
    noise.

    Args:
        network: Normalized images (B, C, H, W) to logits (B, K).
        mean: What is subtracted, a number per channel or one for all (a list, an array or a tensor of
            any shape); None for nothing.
        std: What the difference is divided by, likewise.

    Raises:
        ValueError: `mean` or `std` is not finite, or `std` not above 0.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Values | None = None,
        std: Values | None = None,
    ) -> None:
        super().__init__()
        center, scale = _numbers("mean", mean, 0.0), _numbers("std", std, 1.0)
        if not bool((scale > 0).all()):
            raise ValueError(f"std must be above 0, not {tuple(scale.tolist())}")
        self.network = network
        # Options of the model and not weights: a checkpoint neither has nor needs them.
        self.register_buffer("mean", center.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", scale.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: The images have another number of channels than `mean` or `std`, or the
                network does not give logits of 2 classes or more.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise ValueError(f"{name} has {len(values)} numbers for {x.shape[1]} channels")
        logits = self.network((x - self.mean) / self.std)
        check_logits(logits, len(x))
        return logits


def _numbers(name: str, given: Values | None, unit: float) -> Tensor:
    """What is given, as float32 (N,); `unit` where it is nothing."""
    if isinstance(given, list | tuple):
        given = [float(number) for number in given]
    values = torch.as_tensor(unit if given is None else given).detach()
    values = values.to("cpu", torch.float32).reshape(-1)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, not {tuple(values.tolist())}")
    return values if len(values) else torch.tensor([unit], dtype=torch.float32)
