"""Checks, before the work begins, that models and images fit each other."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unfool.data import fetch
from unfool.data.folder import Folder
from unfool.defenses.purified_classifier import image_shape
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.protocols import Attack, Dataset
from unfool.spec import Part

CLASS_OPTIONS = ("prompts", "labels", "classes")  # options that give a denoiser its classes


@torch.no_grad()
def check_fit(model: Any, data: Dataset, indices: Sequence[int], device: str) -> int:
    """Check on one image that a model can be evaluated on a data set.

    Returns:
        The number of classes of the model. If the data set has fewer, a message on stderr says so.

    Raises:
        SpecError: The model and the images do not fit each other.
    """
    check_classes(data)
    image, _ = data[indices[0]]
    _check_size(image.shape, image_shape(getattr(model, "purifier", None)))
    logits = logits_of(model, image[None].to(device), Noise.of(0, [0]))
    if not bool(logits.isfinite().all()):
        raise SpecError(
            "the model returns logits that are not finite: look for the cause with `unfool doctor`"
        )
    if logits.shape[1] < len(data.classes):
        raise SpecError(
            f"the classifier returns logits of shape {tuple(logits.shape)}, and the data set has "
            f"{len(data.classes)} classes ({_listed(data.classes)}): use a classifier with at "
            "least as many (a diffusion classifier has those that its denoiser's prompts, labels, "
            "or classes name)"
        )
    if logits.shape[1] > len(data.classes):
        print(
            f"unfool: the model has {logits.shape[1]} classes, and the data set has "
            f"{len(data.classes)} ({_listed(data.classes)}); if one is missing in between, the "
            "labels of all later classes are wrong",
            file=sys.stderr,
        )
    check_class_names(undefended(model), data)
    return logits.shape[1]


def _listed(classes: Sequence[str]) -> str:
    """The names of classes as text; only the first and last ones if there are many."""
    names = [repr(name) for name in classes]
    return ", ".join(names if len(names) <= 12 else [*names[:8], "...", *names[-2:]])


def check_sources(
    attacks: Mapping[str, Any], data: Dataset, indices: Sequence[int], device: str
) -> None:
    """Check on one image the models that transfer attacks use instead of the attacked one.

    Raises:
        SpecError: A source and the images do not fit each other.
    """
    for label, attack_on_view in attacks.items():
        attack: Attack = attack_on_view.attack
        source = getattr(attack, "source", None)
        if isinstance(source, nn.Module):
            try:
                check_fit(source.eval().to(device), data, indices, device)
            except SpecError as error:
                raise SpecError(f"the source of the attack {label}: {error}") from error


@torch.no_grad()
def check_trainable(kind: str, part: Part, model: Any, data: Dataset) -> None:
    """Check on one image that a model accepts the images of a data set, and knows all its classes.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: The part of the spec that describes the model.
        model: The model, in evaluation mode, on the CPU.
        data: The data to train the model on.

    Raises:
        SpecError: The model does not accept the images, lacks a class, or names them in another
            order.
    """
    x, _ = fetch(data, [0])
    if isinstance(model, Denoiser) and not model.resizes:
        _check_size(x.shape[1:], getattr(model, "shape", None))
    if kind == "denoiser":
        known = getattr(model, "classes", 0)  # 0 if unconditional
        reason = next(
            (f"its {key} {part[key]}" for key in CLASS_OPTIONS if part.get(key)), "its weights"
        )
    else:
        known, reason = logits_of(model, x, Noise.of(0, [0])).shape[1], "what it returns"
        check_class_names(undefended(model), data)
    if known and known < len(data.classes):
        raise SpecError(
            f"the data set has {len(data.classes)} classes (the last is {data.classes[-1]!r}), and "
            f"the {kind} has {known}, given by {reason}: it must have them all"
        )


def check_objective_models(objective: Any, data: Dataset) -> None:
    """Check the models that a training objective uses, if any, as `check_trainable` does.

    Raises:
        SpecError: A model does not accept the images, or lacks a class.
    """
    kinds = {"classifier": "classifier", "source": "classifier", "denoiser": "denoiser"}
    for name, kind in kinds.items():
        model = getattr(objective, name, None)
        if isinstance(model, nn.Module):
            try:
                check_trainable(kind, {"name": name}, model.eval(), data)
            except SpecError as error:
                raise SpecError(f"objective.{name}: {error}") from error


def check_test(kind: str, part: Part, model: nn.Module, data: Dataset, test: Dataset) -> None:
    """Check that a model that is trained on `data` can be evaluated on `test`.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: The part of the spec that describes the model.
        model: The model, in evaluation mode, on the CPU.
        data: The data to train the model on.
        test: The data to evaluate the model on.

    Raises:
        SpecError: The data sets differ in size or classes, or the model does not fit `test`.
    """
    sizes = [_size(dataset[0][0].shape) for dataset in (data, test)]
    if sizes[0] != sizes[1]:
        raise SpecError(
            f"test: its images are {sizes[1]}, and those of data are {sizes[0]}: both must have "
            "the same size"
        )
    if kind == "classifier" and len(test.classes) != len(data.classes):
        raise SpecError(
            f"test: it has {len(test.classes)} classes, and data has {len(data.classes)}: both "
            "must have the same classes"
        )
    labeled = kind == "classifier" or getattr(model, "classes", 0)
    names, test_names = ([_plain(name) for name in dataset.classes] for dataset in (data, test))
    if labeled and names != test_names and sorted(names) == sorted(test_names):
        first = next(i for i, name in enumerate(names) if name != test_names[i])
        raise SpecError(
            f"test: its class {first} is {test.classes[first]!r}, and that of data is "
            f"{data.classes[first]!r}: both must have their classes in the same order"
        )
    try:
        check_trainable(kind, part, model, test)
    except SpecError as error:
        raise SpecError(f"test: {error}") from error


def logits_of(model: Any, x: Tensor, noise: Noise) -> Tensor:
    """Return the logits (B, K) of a model for images.

    Raises:
        SpecError: The model does not accept the images, or does not return logits.
    """
    try:
        logits = model(x, noise)
    except SpecError:  # it says what to do
        raise
    except Exception as error:  # a user's model may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, TypeError) and _takes_images_alone(model):
            raise SpecError(
                f"the classifier cannot be called with (x, noise) ({reason}): wrap a network that "
                "takes only images as {name: network, network: ...}"
            ) from error
        size = _size(x.shape[1:])
        raise SpecError(
            f"the model does not take images of {size} ({reason}): choose a model or a data set of "
            "another size"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SpecError(
            f"the classifier must return logits of shape ({len(x)}, K), and returned {returned}"
        )
    return logits


def check_classes(data: Dataset) -> None:
    """Refuse an image folder with only one class, where all labels would be 0.

    Other kinds of data sets define their own classes, of which there may well be only one.

    Raises:
        SpecError: All images of the folder belong to one class.
    """
    if isinstance(data, Folder) and len(data.classes) == 1:
        raise SpecError(
            f"the images of the folder all belong to one class, {data.classes[0]!r}: put each "
            "class into a sub-folder (FOLDER/cat/1.png), or set data.label=name if file names end "
            "in the class (1_cat.png)"
        )


def _check_size(shape: Sequence[int], expected: Sequence[int] | None) -> None:
    if expected is not None and tuple(expected) != tuple(shape):
        raise SpecError(
            f"the images are {_size(shape)} and the denoiser was made for {_size(expected)}; "
            "choose a data set and a denoiser of the same size"
        )


def check_class_names(classifier: Any, data: Dataset) -> None:
    """Refuse a classifier whose class names are the data set's, but in another order.

    Raises:
        SpecError: The orders differ.
    """
    model_names = [_plain(name) for name in getattr(classifier, "class_names", None) or ()]
    data_names = [_plain(name) for name in data.classes]
    if (
        model_names == data_names
        or len(set(data_names)) < len(data_names)
        or not set(data_names) <= set(model_names)
    ):
        return
    if model_names[: len(data_names)] == data_names:
        return
    labels = [model_names.index(name) for name in data_names]
    first = next(i for i, label in enumerate(labels) if label != i)
    advice = f"`labels: {labels}`" if len(labels) <= 20 else "`labels`"
    raise SpecError(
        f"the classifier's class {first} is {classifier.class_names[first]!r} and the data set's "
        f"is {data.classes[first]!r}: give it the data set's order by {advice}"
    )


def undefended(model: Any) -> Any:
    """Return the classifier inside a defense, or the model itself."""
    for name in ("model", "classifier"):
        model = getattr(model, name, model)
    return model


def _plain(name: object) -> str:
    return str(name).casefold().replace("_", " ").strip()


def _takes_images_alone(model: Any) -> bool:
    """Whether a classifier, alone or in a defense, takes images without noise."""
    model = undefended(model)
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        signature.bind("x")
    except (TypeError, ValueError):
        return False
    try:
        signature.bind("x", "noise")
    except TypeError:
        return True
    return False


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
