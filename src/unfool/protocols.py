"""The interfaces of all replaceable parts. Read this module first.

Every replaceable part is a callable with one of these signatures. Images are (B, C, H, W), float32
in [0, 1]; labels are (B,), int64; logits are (B, K). `noise` is the only source of randomness that
a callable may use. Inside `diffusion/`, images are in the denoiser's own space (for pixel models
[-1, 1]), and times are tensors shaped () or (B, 1, 1, 1).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Correction, Guide, ImageGuide, NoiseLevel, Shaping, Step
from unfool.diffusion.schedule import Schedule
from unfool.noise import Noise
from unfool.threat import Threat

__all__ = [
    "Attack",
    "Classifier",
    "Correction",
    "Dataset",
    "Defended",
    "Denoiser",
    "Guide",
    "ImageGuide",
    "NoiseLevel",
    "Objective",
    "Purifier",
    "Schedule",
    "Shaping",
    "Step",
]


class Classifier(Protocol):
    """Any model under test, defended or not: a function from images to logits.

    Optional attributes:
        batch_size (int): The most images in one call that needs gradients, to save memory.
        classes_kept (int, default 1): The image counts as misclassified when at least this many
            wrong classes score above the true one, as in a stage that keeps several classes.
        decide(x, noise) -> (B,): The predicted class (the lowest index on ties), for models where
            that is cheaper than full logits.
    """

    def __call__(self, x: Tensor, noise: Noise, /) -> Tensor: ...


class Purifier(Protocol):
    """A function from images (B, C, H, W) in [0, 1] to purified images of the same shape."""

    def __call__(self, x: Tensor, noise: Noise, /) -> Tensor: ...


@runtime_checkable
class Defended(Protocol):
    """A classifier behind a purifier, whose two parts an attacker can use separately."""

    classifier: Classifier
    purifier: Purifier

    def __call__(self, x: Tensor, noise: Noise, /) -> Tensor: ...

    def with_purifier(self, purifier: Purifier) -> Classifier:
        """The same classifier behind another purifier, on the same streams of noise."""
        ...


class Attack(Protocol):
    """A function from images to adversarial images, each allowed by the threat.

    Call it with the model, images `x` (B, C, H, W) in [0, 1], labels `y` (B,), the threat, and the
    attacker's noise; it returns images shaped like `x`. An attack that the threat does not limit
    has an attribute `bounded = False`. One that is not designed to fool the model, such as a
    corruption, also has `adversarial = False`.
    """

    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise, /
    ) -> Tensor: ...


class Objective(Protocol):
    """The loss of each image (B,), which training minimizes."""

    def __call__(self, model: Denoiser, x: Tensor, y: Tensor, noise: Noise, /) -> Tensor: ...


class Dataset(Protocol):
    """A data set: an index gives a float32 image (C, H, W) in [0, 1] and its label."""

    @property
    def classes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...
