"""What an attacker climbs, averaged over what he takes for the defence's noise."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from defuse.noise import Noise
from defuse.protocols import Classifier

Loss = Literal["ce", "margin"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B, K) and labels (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """How far the best wrong class is above the true one (B,); positive is misclassified."""
    true = F.one_hot(y, logits.shape[1]).bool()
    wrong = logits.masked_fill(true, -torch.inf).amax(1)
    return wrong - logits.gather(1, y[:, None])[:, 0]


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin}


class Look(NamedTuple):
    """What an attacker saw of each image, averaged over his draws.

    Attributes:
        loss: The mean loss (B,).
        wrong: The share of draws that were misclassified (B,).
        gradient: Of the mean loss at the images (B, C, H, W); zeros if it was not asked for.
    """

    loss: Tensor
    wrong: Tensor
    gradient: Tensor


def look(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    noise: Noise,
    turn: int,
    draws: int,
    gradient: bool = True,
) -> Look:
    """Query the model at `x` with `draws` draws of its noise per image (EOT, Athalye et al., 2018).

    Images and draws go together into one call, up to `model.rows` at a time.

    Args:
        model: The model, as the attacker sees it.
        x: Images (B, C, H, W).
        y: Labels (B,).
        loss: What to average.
        noise: The attacker's noise.
        turn: The number of this query; the same turn meets the same draws.
        draws: Per image.
        gradient: Whether to ask for the gradient.
    """
    copies = noise.draws(turn, draws)
    images, labels = x.detach().repeat_interleave(draws, 0), y.repeat_interleave(draws)
    losses, wrongs, gradients = [], [], []
    for part in _parts(len(images), getattr(model, "rows", None)):
        batch = images[part].requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = model(batch, copies.take(range(len(images))[part]))
            value = LOSSES[loss](logits, labels[part])
            total = value.sum()
        if gradient and not value.requires_grad:
            raise RuntimeError(
                "no gradient leads from the model's logits to the images (is something in it under "
                "no_grad, detached or rounded?): use an attack that needs none, or the view `bpda`"
            )
        if gradient:
            gradients.append(torch.autograd.grad(total, batch)[0])
        losses.append(value.detach())
        wrongs.append(logits.detach().argmax(1) != labels[part])

    def mean(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values).to(x.dtype)
        return joined.view(len(x), draws, *joined.shape[1:]).mean(1)

    return Look(mean(losses), mean(wrongs), mean(gradients) if gradient else torch.zeros_like(x))


def _parts(size: int, rows: int | None) -> Iterator[slice]:
    step = max(1, rows or size)
    return (slice(i, min(i + step, size)) for i in range(0, size, step))
