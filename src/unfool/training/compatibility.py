"""Whether a model fits the data it is to be trained on, told before the training begins."""

from typing import Any

import torch
from torch import nn

from unfool.data import fetch
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.protocols import Dataset
from unfool.spec import Part

TRAINED = {  # what the objectives of the menu train; one of one's own may be for either
    "denoising": "denoiser",
    "addt": "denoiser",
    "truth-maximization": "denoiser",
    "cross-entropy": "classifier",
    "purified": "classifier",
    "pgd-at": "classifier",
    "trades": "classifier",
}
NAMES = ("prompts", "labels", "classes")  # options by which a denoiser knows classes


def check_objective(kind: str, name: str) -> None:
    """Whether the objective `name` trains a model of this `kind`.

    Raises:
        SpecError: It does not.
    """
    if (wanted := TRAINED.get(name, kind)) != kind:
        others = ", ".join(other for other, trained in TRAINED.items() if trained == kind)
        raise SpecError(
            f"the objective {name} trains a {wanted}, and the spec has a {kind}: name a {wanted}, or "
            f"one of {others}"
        )


def check_guide(objective: Any, data: Dataset) -> None:
    """Whether the models that an objective goes by, if any, take the images and know all classes.

    Raises:
        SpecError: It does not.
    """
    kinds = {"classifier": "classifier", "source": "classifier", "denoiser": "denoiser"}
    for name, kind in kinds.items():
        guide = getattr(objective, name, None)
        if isinstance(guide, nn.Module):
            try:
                check_fit(kind, {"name": name}, guide.eval(), data)
            except SpecError as error:
                raise SpecError(f"objective.{name}: {error}") from error


@torch.no_grad()
def check_fit(kind: str, part: Part, model: nn.Module, data: Dataset) -> None:
    """Whether a model takes the images, and knows all classes.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: The part of a spec that built it.
        model: In evaluation mode, on the CPU.
        data: What it is to be trained on.

    Raises:
        SpecError: It does not.
    """
    x, _ = fetch(data, [0])
    size = " x ".join(map(str, x.shape[1:]))
    wanted = getattr(model, "shape", None) if isinstance(model, Denoiser) else None
    if wanted is not None and tuple(wanted) != tuple(x.shape[1:]) and not model.resizes:
        made = " x ".join(map(str, wanted))
        raise SpecError(f"the images are {size} and the denoiser is made for {made}")
    known, by = _known(kind, part, model, x, size)
    if known and known < len(data.classes):
        raise SpecError(
            f"the data set has {len(data.classes)} classes, the last {data.classes[-1]!r}, and the "
            f"{kind} knows {known}, by {by}: it must know them all"
        )


def check_test(kind: str, part: Part, model: nn.Module, data: Dataset, test: Dataset) -> None:
    """Whether a model can be measured on `test` when it has been trained on `data`.

    Args:
        kind: `"denoiser"` or `"classifier"`.
        part: The part of a spec that built it.
        model: In evaluation mode, on the CPU.
        data: What it is to be trained on.
        test: What it is to be measured on.

    Raises:
        SpecError: It cannot.
    """
    sizes = [" x ".join(map(str, fetch(each, [0])[0].shape[1:])) for each in (data, test)]
    if sizes[0] != sizes[1]:
        raise SpecError(f"test: its images are {sizes[1]}, and those of data {sizes[0]}")
    if kind == "classifier" and len(test.classes) != len(data.classes):
        raise SpecError(f"test: it has {len(test.classes)} classes, and data {len(data.classes)}")
    try:
        check_fit(kind, part, model, test)
    except SpecError as error:
        raise SpecError(f"test: {error}") from error


def _known(kind: str, part: Part, model: Any, x: torch.Tensor, size: str) -> tuple[int, str]:
    """How many classes a model knows, and by what; 0 of an unconditional denoiser."""
    if kind == "denoiser":
        by = next((f"its {key} {part[key]}" for key in NAMES if part.get(key)), "its weights")
        return getattr(model, "classes", 0), by
    try:
        logits = model(x, Noise.of(0, [0]))
    except Exception as error:  # a stranger's network may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SpecError(f"the classifier does not take images of {size} ({said})") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise SpecError(f"the classifier returns {_shape(logits)}, not a row of numbers per image")
    return logits.shape[1], "what it returns"


def _shape(found: Any) -> str:
    return str(tuple(found.shape)) if isinstance(found, torch.Tensor) else type(found).__name__
