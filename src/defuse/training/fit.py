"""Whether a model fits the data it is to be trained on, told before the training begins."""

from typing import Any

import torch
from torch import nn

from defuse.data import fetch
from defuse.diffusion.denoise import Denoiser
from defuse.menu import SpecError
from defuse.noise import Noise
from defuse.protocols import Dataset
from defuse.spec import Table

NAMES = ("prompts", "labels", "classes")  # options by which a denoiser knows classes


@torch.no_grad()
def check_fit(kind: str, part: Table, model: nn.Module, data: Dataset) -> None:
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


def _known(kind: str, part: Table, model: Any, x: torch.Tensor, size: str) -> tuple[int, str]:
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
