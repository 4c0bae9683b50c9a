"""Sanity checks of the model itself on a few images, from which doubts about it follow."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from unfool.attacks.losses import query_model
from unfool.attacks.views import Batched, without_elimination
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.results.outcome import SanityCheck

DRAWS = 8  # gradients that are compared, of a random model
# How far the logits of an image may differ between batches. TF32 and bfloat16 round each product to
# 2^-11 and 2^-9 of its size; batch normalization in training mode changes logits by much more.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-2, 1e-3


def are_probabilities(logits: Tensor) -> Tensor:
    """Whether each row of logits (B, K) holds probabilities: not negative, sum 1; (B,) of bool."""
    return (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)


def same_logits(one: Tensor, other: Tensor) -> bool:
    """Whether logits (B, K) agree up to rounding."""
    return torch.allclose(one, other, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)


def sanity_check(
    model: Batched, x: Tensor, y: Tensor, noise: Noise, which: Sequence[int]
) -> dict[int, SanityCheck]:
    """Query the model on the images at positions `which`, and return what the doubts are based on.

    Gradients are those of the model without elimination (`views.no_elimination`), if it has any.
    """
    if not which:
        return {}
    x, y, noise = x[which], y[which], noise.take(which).child("probe")
    with torch.no_grad():
        logits, again = model(x, noise.child(0)), model(x, noise.child(1))
        alone = model(x[:1], noise.take([0]).child(0))
    if not bool(logits.isfinite().all()):
        raise RuntimeError(
            "the model returned logits that are not finite: look for the cause with `unfool doctor`"
        )
    probabilities, alike = are_probabilities(logits), same_logits(alone, logits[:1])
    random = (logits != again).any(1)
    turns = range(DRAWS if bool(random.any()) else 1)
    surface = without_elimination(model)
    single = torch.stack(
        [query_model(surface, x, y, "margin", noise, i, 1).gradient for i in turns]
    )
    peaks = {"ce": query_model(surface, x, y, "ce", noise, 0, 1).gradient, "margin": single[0]}
    clamped = (single == 0).all(0).flatten(1).double().mean(1)
    agreement = _agreement(single)
    predicted, observed = _slope(surface, x, y, noise, peaks["margin"])
    return {
        i: {
            "probabilities": bool(probabilities[j]),
            "random": bool(random[j]),
            "alike": alike,
            "gradients": {loss: float(peak[j].abs().max()) for loss, peak in peaks.items()},
            "slope": [float(predicted[j]), float(observed[j])],
            "clamped": round(float(clamped[j]), 4),
            "agreement": agreement[j],
        }
        for j, i in enumerate(which)
    }


def _agreement(gradients: Tensor) -> list[float | None]:
    """How much the gradients (D, B, C, H, W) of D draws have in common, for each image.

    It is the mean inner product of two of them, divided by their mean square: an unbiased estimate
    of the share of a gradient's mean square that comes from the mean over all draws. It is 1 if all
    gradients are equal, and None if there is no gradient.
    """
    flat = gradients.flatten(2).double()
    count, square = len(flat), flat.square().sum((0, 2))  # (B,), summed over draws and pixels
    pairs = (flat.sum(0).square().sum(1) - square) / max(count - 1, 1)
    shares = pairs / square if count > 1 else square / square
    return [round(s, 6) if isfinite(s) else None for s in shares.tolist()]


def _slope(
    model: Classifier, x: Tensor, y: Tensor, noise: Noise, gradient: Tensor, step: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """How much the margin rises over a small step uphill: as the gradient predicts, and in fact."""
    up, down = (x + step * gradient.sign()).clamp(0, 1), (x - step * gradient.sign()).clamp(0, 1)
    predicted = (gradient * (up - down)).flatten(1).sum(1)
    above, below = (
        query_model(model, side, y, "margin", noise, 0, 1, gradient=False).loss
        for side in (up, down)
    )
    return predicted, above - below
