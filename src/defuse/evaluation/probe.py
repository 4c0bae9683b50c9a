"""A look at the model itself, on a few images: what the doubts about it go by."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from defuse.attacks.losses import look
from defuse.attacks.views import Limited
from defuse.noise import Noise


def probe(
    model: Limited, x: Tensor, y: Tensor, noise: Noise, which: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """What the doubts are about, seen on the images at positions `which`."""
    if not which:
        return {}
    x, y, noise = x[which], y[which], noise.take(which).fold("probe")
    with torch.no_grad():
        logits, again = model(x, noise.fold(0)), model(x, noise.fold(1))
        alone = model(x[:1], noise.take([0]).fold(0))
    if not bool(logits.isfinite().all()):
        raise RuntimeError("the model returned logits that are not finite; see `defuse doctor`")
    probabilities = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)
    alike = bool(torch.allclose(alone, logits[:1], rtol=1e-2, atol=1e-3))
    peaks = {loss: look(model, x, y, loss, noise, 0, 1).gradient for loss in ("ce", "margin")}
    promised, found = _slope(model, x, y, noise, peaks["margin"])
    return {
        i: {
            "probabilities": bool(probabilities[j]),
            "random": bool((logits[j] != again[j]).any()),
            "alike": alike,
            "gradients": {loss: float(peak[j].abs().max()) for loss, peak in peaks.items()},
            "slope": [float(promised[j]), float(found[j])],
        }
        for j, i in enumerate(which)
    }


def _slope(
    model: Limited, x: Tensor, y: Tensor, noise: Noise, gradient: Tensor, step: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """How much the margin rises over a small step uphill: as the gradient says, and in fact."""
    up, down = (x + step * gradient.sign()).clamp(0, 1), (x - step * gradient.sign()).clamp(0, 1)
    promised = (gradient * (up - down)).flatten(1).sum(1)
    above, below = (
        look(model, side, y, "margin", noise, 0, 1, gradient=False).loss for side in (up, down)
    )
    return promised, above - below
