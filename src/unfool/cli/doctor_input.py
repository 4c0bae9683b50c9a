"""Checks, for the doctor, whether a classifier gets the input that it was trained on."""

from typing import Any

import torch
from torch import Tensor

from unfool.argument_checks import images_of_any_range
from unfool.cli.doctor_finding import Finding
from unfool.models.cifar_layouts import CIFAR10, IDENTITY, IMAGENET, PYTORCH_CIFAR
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise
from unfool.statistics import percent, wilson

BETTER = 0.2  # gain in accuracy at which another input format is reported
FAR_BELOW = 0.03  # a stated accuracy this far above the measured interval is reported
_OTHERS = (IMAGENET, CIFAR10, PYTORCH_CIFAR, ((0.5,), (0.5,)), IDENTITY, ((0.0,), (1 / 255,)))
_BGR = "with their channels in the order BGR"


@torch.no_grad()
def takes(model: Any, x: Tensor, y: Tensor, noise: Noise, classes: int) -> Finding:
    """Check whether another input range, channel order, mean, or std makes a classifier better.

    Args:
        model: The classifier, without its defense.
        x: Images (B, C, H, W) in [0, 1].
        y: Their labels (B,).
        noise: Noise for random models.
        classes: Number of classes in the data.
    """
    with images_of_any_range():
        ours = _right(model, x, y, noise)
        if isinstance(model, NormalizedClassifier):
            others = _normalized(model, x, y)
            advice = "give the classifier these, or those of its training"
        else:
            others = {f"when they are in {name}": _right(model, images, y, noise)
                      for name, images in (("[-1, 1]", 2 * x - 1), ("[0, 255]", 255 * x))}  # fmt: skip
            advice = "the classifier expects another range: give it a `mean` and a `std`"
        if x.shape[1] == 3:
            others[_BGR] = _right(model, x.flip(1), y, noise)
    accuracy = f"right on {percent(ours, 0)} of {len(x)} images in [0, 1]"
    best = max(others, key=lambda name: others[name])
    if others[best] > ours + BETTER and others[best] > 1.5 / classes:
        advice = "swap the channels in your network" if best == _BGR else advice
        return Finding("FAIL", f"{accuracy}, but on {percent(others[best], 0)} {best}: {advice}")
    low = ours <= 1 / classes + 0.1
    reported = getattr(model, "reported", None)
    if reported is not None:
        accuracy += (
            f", and {reported.source} states {percent(reported.accuracy)} of {reported.data}"
        )
        highest = wilson(round(ours * len(x)), len(x)).high
        low = low or highest + FAR_BELOW < reported.accuracy
    if not low:
        return Finding("ok", accuracy)
    advice = (
        "check that its weights are loaded, its classes are in the data set's order, and its input is "
        "normalized"
    )
    return Finding("note", f"{accuracy}: {advice}")


def _normalized(model: NormalizedClassifier, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the network's accuracy with each common mean and std, by a phrase that names them."""
    found = {}
    for mean, std in _OTHERS:
        if len(mean) in (1, x.shape[1]):
            other = NormalizedClassifier(model.network, mean, std, model.size, model.labels)
            told = "with " + ", ".join(f"{name}: [{', '.join(f'{v:.4g}' for v in values)}]"
                             for name, values in (("mean", mean), ("std", std)))  # fmt: skip
            found[told] = _right(other.to(x.device).eval(), x, y, None)
    return found


def _right(model: Any, x: Tensor, y: Tensor, noise: Noise | None) -> float:
    """Return the accuracy of a classifier on the images."""
    logits = model(x) if noise is None else model(x, noise)
    return float((logits.argmax(1) == y).float().mean())
