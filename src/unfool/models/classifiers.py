"""Networks as classifiers, from images in [0, 1] to logits."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.argument_checks import check_logits
from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr

# A larger difference of means, or of stds on the log scale, suggests another data set.
MAX_NORMALIZATION_GAP = 0.25
Values = Sequence[float] | float | np.ndarray | np.floating | Tensor


@dataclass(frozen=True)
class ReportedAccuracy:
    """The clean accuracy that the source of a classifier states.

    Attributes:
        accuracy: The accuracy on the test images of the data set, from 0 to 1.
        data: The data set, as a spec names it.
        source: The source that states the accuracy.
    """

    accuracy: float
    data: str
    source: str


class NormalizedClassifier(nn.Module):
    """An undefended classifier: a network and the normalization of its input.

    The normalization is part of the model, so that attacks work on pixels in [0, 1]. The model
    draws no noise.

    Args:
        network: A network that maps normalized images (B, C, H, W) to logits (B, K).
        mean: The value that is subtracted from images in [0, 1], one per channel or one for all (a
            list, an array, or a tensor of any shape); None subtracts nothing.
        std: The value by which the difference is divided, in the same form; None divides by 1.
        size: Height and width of the network's input in pixels, or one number if they are equal.
            Images of another size are resized (bicubic) inside the model, so attacks still change
            the original pixels.
        labels: The index of the network's logit for each class of the data set, in the data set's
            order; other logits are dropped. None keeps all logits in the network's order.

    Attributes:
        reported: The accuracy that the source of the weights states, or None.
        class_names: The class names of the logits, if the source of the weights states them.

    Raises:
        ValueError: `mean` or `std` is not finite, `std` is not above 0, `size` is below 1, or
            `labels` is empty or has a label below 0.
    """

    __repr__, _repr_html_ = short_repr, html_repr
    reported: ReportedAccuracy | None = None
    class_names: Sequence[str] | None = None

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Values | None = None,
        std: Values | None = None,
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
        center, scale = _numbers("mean", mean, 0.0), _numbers("std", std, 1.0)
        if not bool((scale > 0).all()):
            raise ValueError(f"std must be above 0, not {tuple(scale.tolist())}")
        self.network = network
        # These are options of the model, not weights, so checkpoints do not contain them.
        self.register_buffer("mean", center.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", scale.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: The images have another number of channels than `mean` or `std`, the network
                does not return logits of at least 2 classes, or `labels` exceeds its classes.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise ValueError(
                    f"{name} must have one number, or one for each of the {x.shape[1]} channels, "
                    f"not {len(values)}"
                )
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        logits = self.network((x - self.mean) / self.std)
        check_logits(logits, len(x))
        if self.labels is None:
            return logits
        if max(self.labels) >= logits.shape[1]:
            raise ValueError(
                f"labels go up to {max(self.labels)}, and the network has {logits.shape[1]} "
                f"classes, numbered from 0: choose labels below {logits.shape[1]}"
            )
        return logits[:, self.labels]


def warn_if_unusual_normalization(
    source: str,
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    known: tuple[Sequence[float], Sequence[float]],
) -> None:
    """Warn on stderr if the given mean and std are far from those known for the weights.

    Args:
        source: The source of the weights, for the message.
        given: The mean and std in the spec; None if the spec does not set them.
        known: The mean and std that the source states, or that are usual for such files.
    """
    (mean, std), (usual_mean, usual_std) = (
        (_numbers("mean", center, 0.0), _numbers("std", scale, 1.0))
        for center, scale in ((given[0] or known[0], given[1] or known[1]), known)
    )
    counts = {len(values) for values in (mean, std, usual_mean, usual_std)} - {1}
    if len(counts) > 1:  # the model will refuse this
        return
    gap = max((mean - usual_mean).abs().max(), (std / usual_std).log().abs().max())
    if gap > MAX_NORMALIZATION_GAP:
        usual = f"mean {_formatted(usual_mean)}, std {_formatted(usual_std)}"
        print(
            f"{source}: the given mean {_formatted(mean)} and std {_formatted(std)} are far from those "
            f"of such weights ({usual}); leave them out unless the network was trained with them",
            file=sys.stderr,
        )


def _formatted(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.tolist())


def _numbers(name: str, given: Values | None, unit: float) -> Tensor:
    """Convert `given` to float32 (N,); if it is None or empty, return `unit`."""
    if isinstance(given, list | tuple):
        given = [float(number) for number in given]
    given = given.detach() if isinstance(given, Tensor) else given
    values = torch.as_tensor(unit if given is None else given, dtype=torch.float32, device="cpu")
    values = values.reshape(-1)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, not {tuple(values.tolist())}")
    return values if len(values) else torch.tensor([unit], dtype=torch.float32, device="cpu")
