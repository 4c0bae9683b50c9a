"""Whether models and images fit each other, told before the work begins."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unfool.data.folder import Folder
from unfool.defenses.purified import image_shape
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.protocols import Attack, Dataset


@torch.no_grad()
def check_fit(model: Any, data: Dataset, indices: Sequence[int], device: str) -> int:
    """Try one image, so that parts that do not fit are told before the work begins.

    Returns:
        How many classes the model tells apart. If they are more than the data set's, stderr says so.

    Raises:
        SpecError: Model and images do not fit each other.
    """
    check_classes(data)
    image, _ = data[indices[0]]
    shape = tuple(image.shape)
    wanted = image_shape(getattr(model, "purifier", None))
    if wanted is not None and tuple(wanted) != shape:
        raise SpecError(
            f"the images are {_size(shape)} and the denoiser was made for {_size(wanted)}; "
            "choose a data set and a denoiser of the same size"
        )
    logits = answer(model, image[None].to(device), Noise.of(0, [0]))
    if not bool(logits.isfinite().all()):
        raise SpecError("the model returns logits that are not finite; see `unfool doctor`")
    if logits.shape[1] < len(data.classes):
        raise SpecError(
            f"the classifier returns {tuple(logits.shape)}, and the data set has "
            f"{len(data.classes)} classes ({_listed(data.classes)}); a diffusion classifier knows "
            "those that its denoiser's prompts, labels or classes name"
        )
    if logits.shape[1] > len(data.classes):
        print(
            f"unfool: the model tells {logits.shape[1]} classes apart and the data set has "
            f"{len(data.classes)} ({_listed(data.classes)}); if one is missing in between, the labels of "
            "all later ones are wrong",
            file=sys.stderr,
        )
    return logits.shape[1]


def check_sources(
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
                check_fit(source.eval().to(device), data, indices, device)
            except SpecError as error:
                raise SpecError(f"the source of the attack {label}: {error}") from error


def answer(model: Any, x: Tensor, noise: Noise) -> Tensor:
    """What a model says to images, (B, K).

    Raises:
        SpecError: It does not take them, or does not return logits.
    """
    try:
        logits = model(x, noise)
    except Exception as error:  # a stranger's part may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, TypeError) and _takes_images_alone(model):
            raise SpecError(
                f"the classifier takes images alone, and is called with (x, noise) ({said}): put a "
                "network (images to logits) into {name: network, network: ...}"
            ) from error
        size = _size(x.shape[1:])
        raise SpecError(f"the model does not take images of {size} ({said})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SpecError(f"the classifier must return logits ({len(x)}, K), and returned {found}")
    return logits


def check_classes(data: Dataset) -> None:
    """Refuse a folder of pictures of one class: no other number than 0 would count as right.

    Data sets of other kinds number their classes themselves, and may well hold one alone.

    Raises:
        SpecError: All its pictures are of one class.
    """
    if isinstance(data, Folder) and len(data.classes) == 1:
        raise SpecError(
            f"the pictures of the folder are all of one class, {data.classes[0]!r}: put those of each "
            "class into a sub-folder (FOLDER/cat/1.png); or, if their names tell it after an underscore "
            "(1_cat.png), set data.label=name"
        )


def _takes_images_alone(model: Any) -> bool:
    """Whether a classifier, bare or in a defense, is called without noise."""
    for name in ("model", "classifier"):
        model = getattr(model, name, model)
    try:
        taken = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        taken.bind("x")
    except (TypeError, ValueError):
        return False
    try:
        taken.bind("x", "noise")
    except TypeError:
        return True
    return False


def _listed(classes: Sequence[str]) -> str:
    """The names of classes, the first and the last ones if they are many."""
    names = [repr(name) for name in classes]
    return ", ".join(names if len(names) <= 12 else [*names[:8], "...", *names[-2:]])


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
