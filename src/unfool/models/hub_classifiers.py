"""Classifiers from other libraries: timm, transformers, and torchvision.

Each library states the mean, std, and size of the input that its weights expect. Images of another
size are resized inside the model. The libraries are optional, and imported only when needed.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unfool.models.checkpoints import load_state, read_state
from unfool.models.classifiers import (
    NormalizedClassifier,
    ReportedAccuracy,
    warn_if_unusual_normalization,
)
from unfool.ranges import Count, CountFromZero, Positive, check_arguments
from unfool.runtime.optional import require
from unfool.spec.menu import hint

PRETRAINED = "pretrained"


def timm_classifier(
    model: str,
    weights: str = PRETRAINED,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    size: Count | None = None,
    labels: Sequence[CountFromZero] | None = None,
) -> NormalizedClassifier:
    """A classifier of timm.

    Args:
        model: Its name in timm, such as `"resnet50"` or `"deit_small_patch16_224"`.
        weights: A file, from which the number of classes is read; or `"pretrained"` for timm's
            weights of this name, which timm downloads if needed.
        mean: The value per channel that is subtracted from images in [0, 1]; None takes what timm
            states.
        std: The value per channel by which the difference is divided; None takes what timm states.
        size: Height and width of the network's input in pixels; None takes what timm states.
        labels: See `NormalizedClassifier`.

    Raises:
        ValueError: timm is not installed or has no such model, or the file does not fit.
    """
    check_arguments(timm_classifier, locals())
    timm = require("timm", "hub")
    architecture, _, _ = model.partition(".")
    if ":" not in model and not timm.is_model(architecture):
        raise ValueError(
            f"timm has no model {model!r}; {hint(architecture, timm.list_models(), _TIMM)}"
        )
    if weights == PRETRAINED:
        network = _create_pretrained(model, lambda: timm.create_model(model, pretrained=True))
    else:
        state = read_state(Path(weights))
        network = timm.create_model(model)
        head = network.pretrained_cfg.get("classifier", "fc")
        head = head if isinstance(head, str) else head[0]
        if (rows := state.get(f"{head}.weight")) is not None and len(rows) != network.num_classes:
            network = timm.create_model(model, num_classes=len(rows))
        load_state(network, state, weights)
    config: dict[str, Any] = network.pretrained_cfg
    sides = config["input_size"][1:] if size is None else size
    warn_if_unusual_normalization(model, (mean, std), (config["mean"], config["std"]))
    return NormalizedClassifier(
        network, mean or config["mean"], std or config["std"], sides, labels
    )


def torchvision_classifier(
    model: str,
    weights: str = PRETRAINED,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    size: Count | None = None,
    labels: Sequence[CountFromZero] | None = None,
) -> NormalizedClassifier:
    """A classifier of torchvision.

    Args:
        model: Its name in torchvision, such as `"resnet50"`.
        weights: A file, from which the number of classes is read; torchvision's name for weights of
            this model (such as `"IMAGENET1K_V2"`), which it downloads if needed; or `"pretrained"`
            for its default weights.
        mean: The value per channel that is subtracted from images in [0, 1]; None takes what
            torchvision states.
        std: The value per channel by which the difference is divided; None takes what torchvision
            states.
        size: Height and width of the network's input in pixels; None takes what torchvision states.
        labels: See `NormalizedClassifier`.

    Raises:
        ValueError: torchvision is not installed or has no such model or weights, or the file does
            not fit.
    """
    check_arguments(torchvision_classifier, locals())
    models = require("torchvision", None).models
    if model not in models.list_models(module=models):
        names = models.list_models(module=models)
        raise ValueError(
            f"torchvision has no model {model!r}; {hint(model, names, 'resnet50 ...')}"
        )
    offered = models.get_model_weights(model)
    weights_name = "DEFAULT" if weights == PRETRAINED else weights
    named = weights_name in offered.__members__
    chosen = offered[weights_name] if named else offered["DEFAULT"]
    if named:
        network = _create_pretrained(model, lambda: models.get_model(model, weights=chosen))
    else:
        state = read_state(Path(weights))
        rows = [value for value in state.values() if value.ndim == 2]
        classes = len(rows[-1]) if rows else 1000
        network = models.get_model(model, weights=None, num_classes=classes)
        load_state(network, state, weights)
    preprocessing = chosen.transforms()
    sides = preprocessing.crop_size[0] if size is None else size
    warn_if_unusual_normalization(model, (mean, std), (preprocessing.mean, preprocessing.std))
    classifier = NormalizedClassifier(
        network, mean or preprocessing.mean, std or preprocessing.std, sides, labels
    )
    measured = chosen.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    if named and measured:
        classifier.reported = ReportedAccuracy(
            measured / 100, "imagenet", f"torchvision ({model}, {chosen.name})"
        )
    return classifier


def transformers_classifier(
    weights: Path,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    size: Count | None = None,
    labels: Sequence[CountFromZero] | None = None,
) -> NormalizedClassifier:
    """An image classifier of transformers, from a folder.

    Args:
        weights: The folder, with `config.json`, `preprocessor_config.json` and the weights, as
            `save_pretrained` writes it and the hub stores it; nothing is downloaded.
        mean: The value per channel that is subtracted from images in [0, 1]; None takes what the
            folder states.
        std: The value per channel by which the difference is divided; None takes what the folder
            states.
        size: Height and width of the network's input in pixels; None takes what the folder states.
        labels: See `NormalizedClassifier`.

    Raises:
        FileNotFoundError: A file is missing in the folder.
        ValueError: transformers is not installed, or the folder holds no image classifier.
    """
    check_arguments(transformers_classifier, locals())
    folder = Path(weights)
    config, preprocessor_file = (
        _settings(folder / "config.json"),
        folder / "preprocessor_config.json",
    )
    preprocessor = (
        _settings(preprocessor_file)
        if mean is None or std is None or preprocessor_file.is_file()
        else {}
    )
    library = require("transformers", "hub")
    try:
        network, loading_info = library.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise ValueError(
            f"{folder} holds no image classifier that transformers can load "
            f"({' '.join(str(error).split())[:200]}): name the folder of one"
        ) from error
    if lacks := [
        *loading_info["missing_keys"],
        *(key for key, *_ in loading_info["mismatched_keys"]),
    ]:
        raise ValueError(
            f"the weights in {folder} are not those of an image classifier, for {len(lacks)} are "
            f"missing ({', '.join(sorted(lacks)[:3])}): name the folder of a model trained to "
            "classify"
        )
    if preprocessor.get("do_normalize", True):
        if preprocessor:
            warn_if_unusual_normalization(
                str(folder), (mean, std), (preprocessor["image_mean"], preprocessor["image_std"])
            )
        mean, std = mean or preprocessor["image_mean"], std or preprocessor["image_std"]
    sides = _size(preprocessor) if size is None else size
    classifier = NormalizedClassifier(_Logits(network), mean, std, sides, labels)
    names = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    if names and labels is None and sorted(names) == list(range(len(names))):
        classifier.class_names = [names[number] for number in range(len(names))]
    return classifier


_TIMM = "timm.list_models() has the names"


class _Logits(nn.Module):
    """A wrapper that returns only the logits of a transformers model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pixel_values=x).logits


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        more = "" if path.name == "config.json" else "; or give `mean`, `std`, and `size` yourself"
        raise FileNotFoundError(
            f"there is no {path.name} in {path.parent}: fetch the whole folder, for example by "
            f"`hf download owner/name --local-dir {path.parent}`{more}"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error


def _size(preprocessor: dict[str, Any]) -> int | tuple[int, int] | None:
    """Return the image size in the settings of a preprocessor: the crop size if it crops."""
    for key in ("crop_size", "size") if preprocessor.get("do_center_crop") else ("size",):
        value = preprocessor.get(key)
        if isinstance(value, int):
            return value
        if isinstance(value, dict) and "height" in value:
            return value["height"], value["width"]
        if isinstance(value, dict) and "shortest_edge" in value:
            return value["shortest_edge"]
    return None


def _create_pretrained(model: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the weights of {model!r} could not be fetched ({' '.join(str(error).split())[:200]}): "
            "name a file of them with `weights`"
        ) from error
