"""Whether models and images fit each other, told before the work begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from defuse.defenses.purified import image_shape
from defuse.menu import SpecError
from defuse.noise import Noise
from defuse.protocols import Attack, Dataset


@torch.no_grad()
def fits(model: Any, data: Dataset, indices: Sequence[int], device: str) -> None:
    """Try one image, so that parts that do not fit are told before the work begins.

    Raises:
        SpecError: Model and images do not fit each other.
    """
    image, _ = data[indices[0]]
    shape = tuple(image.shape)
    wanted = image_shape(getattr(model, "purifier", None))
    if wanted is not None and tuple(wanted) != shape:
        raise SpecError(
            f"the images are {_size(shape)} and the denoiser was made for {_size(wanted)}; "
            "choose a data set and a denoiser of the same size"
        )
    try:
        logits = model(image[None].to(device), Noise.of(0, [0]))
    except Exception as error:  # a stranger's part may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SpecError(f"the model does not take images of {_size(shape)} ({said})") from error
    if not bool(logits.isfinite().all()):
        raise SpecError("the model returns logits that are not finite; see `defuse doctor`")
    if logits.ndim != 2 or logits.shape[1] < len(data.classes):
        raise SpecError(
            f"the classifier returns {tuple(logits.shape)}, and the data set has "
            f"{len(data.classes)} classes, the last {data.classes[-1]!r}; a diffusion classifier knows "
            "those that its denoiser's prompts, labels or classes name"
        )


def fits_sources(
    attacks: Mapping[str, Any], data: Dataset, indices: Sequence[int], device: str
) -> None:
    """Try one image on what attacks by transfer climb instead of the model.

    Raises:
        SpecError: A source and the images do not fit each other.
    """
    for label, viewed in attacks.items():
        attack: Attack = viewed.attack
        source = getattr(attack, "source", None)
        if isinstance(source, nn.Module):
            try:
                fits(source.eval().to(device), data, indices, device)
            except SpecError as error:
                raise SpecError(f"the source of the attack {label}: {error}") from error


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
