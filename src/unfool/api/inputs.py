"""A user's torch module, tensors, or torch data set, prepared for the evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unfool.argument_checks import NORMALIZED, check_channels_first
from unfool.data.arrays import Arrays
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset
from unfool.runtime.device import pick_device

ACCEPTED_DATA = (
    "data must be a pair of tensors (images, labels), a torch Dataset of (image, label), or a data "
    "set of unfool"
)


class TorchImages:
    """A torch data set of (image, label) as a data set of unfool: float32 images in [0, 1].

    Args:
        data: The torch data set. Its images are tensors (C, H, W), uint8 or in [0, 1], or Pillow images.
        classes: The name of each class.
    """

    classes: Sequence[str]

    def __init__(self, data: Any, classes: Sequence[str]) -> None:
        self.data, self.classes = data, classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index][:2]
        return _image(image), int(label)


def as_classifier(model: Any) -> Classifier:
    """Return a model that is called with (x, noise); wrap a module that takes only images.

    Raises:
        TypeError: The model cannot be called.
    """
    if not callable(model):
        raise TypeError(f"model must be a module or a function, not a {type(model).__name__}")
    if isinstance(model, nn.Module) and not takes_noise(model):
        return NormalizedClassifier(model)
    return cast(Classifier, model)


def takes_noise(model: nn.Module) -> bool:
    """Whether a module's second argument is noise: it is named `noise`, or has no default."""
    try:
        parameters = list(signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    if len(parameters) < 2 or parameters[1].kind in (Parameter.VAR_KEYWORD, Parameter.KEYWORD_ONLY):
        return False
    return parameters[1].name == "noise" or parameters[1].default is Parameter.empty


def as_dataset(
    data: Any, classes: Sequence[str] | None, count_classes: Callable[[Tensor], int]
) -> Dataset:
    """Convert any kind of data that a user may pass to a data set of unfool.

    Args:
        data: A pair (images, labels), a torch data set, or a data set of unfool.
        classes: The name of each class; None takes those of the data set, or numbers.
        count_classes: A function from one image (1, C, H, W) to the model's number of classes.

    Raises:
        TypeError: The data are of another kind.
        ValueError: The data are empty, or an image or a label is invalid.
    """
    if isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape"):
        return _arrays(data[0], data[1], classes, count_classes)
    if isinstance(data, DataLoader):
        raise TypeError(f"{ACCEPTED_DATA}; of a DataLoader, pass its `.dataset`")
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(f"{ACCEPTED_DATA}, not a {type(data).__name__}")
    if not len(data):
        raise ValueError("the data set must hold at least one image")
    names = classes or getattr(data, "classes", None)
    if not isinstance(data, TorchDataset) and names is not None and classes is None:
        return cast(Dataset, data)
    return TorchImages(data, names or _numbers(count_classes(_image(data[0][0])[None])))


@contextmanager
def frozen_on(model: Classifier, device: str) -> Iterator[None]:
    """Move a module to `device`, in eval mode and frozen, then restore all but its device."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = {module: module.training for module in model.modules()}
    requires_grad = {p: p.requires_grad for p in model.parameters()}
    model.eval().requires_grad_(False).to(device)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


def device_of(model: Classifier, name: str | None) -> str:
    """Prepare the device of that name; None is the device of the model's weights.

    Raises:
        SpecError: The device is not available.
    """
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    own = next((str(weight.device) for weight in weights), "auto")
    return pick_device(own if name is None else str(name))


@torch.no_grad()
def number_of_classes(model: Classifier, x: Tensor) -> int:
    """Count the model's classes, K, from the logits (1, K) of one image (1, C, H, W)."""
    logits = model(x, Noise.of(0, [0]))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must return logits (1, K) of one image, and returned {returned}"
        )
    return logits.shape[1]


def _arrays(
    images: Any, labels: Any, classes: Sequence[str] | None, count_classes: Callable[[Tensor], int]
) -> Arrays:
    x, y = torch.as_tensor(images).detach().cpu(), torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels must be whole numbers (N,), not {y.dtype}")
    x = x.float() if x.is_floating_point() else x
    if x.ndim != 4 or not len(x):
        raise ValueError(f"images must be (N, C, H, W) and at least one, not {tuple(x.shape)}")
    check_channels_first(x.shape)
    names = classes or _numbers(count_classes(_image(x[0])[None]))
    try:
        return Arrays(x, y.long(), names)
    except ValueError as error:
        if x.is_floating_point() and not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"{error}; {NORMALIZED}") from error
        raise


def _image(image: Any) -> Tensor:
    """Convert an image to float32 in [0, 1], (C, H, W)."""
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        array = array[:, :, None] if array.ndim == 2 else array
        image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    if image.ndim == 3:
        check_channels_first(image.shape)
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if not ((image >= 0) & (image <= 1)).all():
        raise ValueError(
            f"images must lie in [0, 1], and this one goes from {image.min():.4g} to "
            f"{image.max():.4g}; {NORMALIZED}"
        )
    return image


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(count))
