"""Networks as classifiers: images of [0, 1] in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr


@dataclass(frozen=True)
class Stated:
    """The clean accuracy that the source of a classifier states.

    Attributes:
        accuracy: From 0 to 1.
        data: The data set, as a spec names it; its test images are meant.
        source: Who states it.
    """

    accuracy: float
    data: str
    source: str


class NormalizedClassifier(nn.Module):
    """An undefended classifier: a network, and how its input is normalized.

    The normalization is part of the model, so that attacks work in pixels of [0, 1]. It draws no
    noise.

    Args:
        network: Normalized images (B, C, H, W) to logits (B, K).
        mean: What is subtracted, a number per channel or one for all; None for nothing.
        std: What the difference is divided by, likewise.
        size: Height and width that the network wants, one number if they are equal. Images of another
            size are resized (bicubic) inside the model, so an attack still changes their own pixels.
        labels: The network's number of each class of the data set, in its order; the logits of other
            classes are left out. None keeps all in the network's order.

    Attributes:
        stated: The accuracy that the source of the weights states, if it does.
        class_names: The names of the logits' classes, if the source of the weights tells them.

    Raises:
        ValueError: `std` is not above 0, `size` is below 1, or a label is below 0.
    """

    __repr__, _repr_html_ = short_repr, html_repr
    stated: Stated | None = None
    class_names: Sequence[str] | None = None

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        size: int | Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size) if size else None
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size must be 1 or more, or two such numbers, not {size}")
        if labels is not None and (not labels or min(labels) < 0):
            raise ValueError(f"labels must be numbers of classes, 0 or more, not {list(labels)}")
        self.labels = None if labels is None else list(labels)
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
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        logits = self.network((x - self.mean) / self.std)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must give logits ({len(x)}, K), and gave {found}")
        if self.labels is None:
            return logits
        if max(self.labels) >= logits.shape[1]:
            raise ValueError(
                f"labels go up to {max(self.labels)}, and the network tells {logits.shape[1]} classes "
                "apart, numbered from 0"
            )
        return logits[:, self.labels]


def _numbers(given: Sequence[float] | float | None, unit: float) -> Sequence[float]:
    if given is None or isinstance(given, int | float):
        return [unit if given is None else given]
    return given or [unit]
