"""Weights of the draws of the defense's noise in a step (DiffHammer, Wang et al., 2024)."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unfool.attacks.losses import Loss, Weigh
from unfool.threat import Threat

Weights = Literal["mean", "em"]
ITERATIONS = 5  # iterations of expectation and maximization
SHARPNESS = 5.0  # how fast a weight falls from 1 to 0 around the boundary


def weigh_draws(weights: Weights, threat: Threat) -> Weigh | None:
    """Return the weighing for `Query.weigh`: equal (None), or expectation and maximization."""
    return None if weights == "mean" else partial(em_weights, threat)


def require_boundary(weights: Weights, loss: Loss) -> None:
    """Refuse to weigh draws by a loss that does not show on which side of the boundary they are.

    Raises:
        ValueError: The weights are `"em"`, and the loss is the cross-entropy.
    """
    if weights == "em" and loss == "ce":
        raise ValueError(
            "weights: em needs to know how near each draw is to the decision boundary, which the "
            "loss ce does not tell: set loss to margin or dlr"
        )


def em_weights(threat: Threat, losses: Tensor, gradients: Tensor) -> Tensor:
    """Estimate how likely a step that fools the others fools each draw, (B, draws), in [0, 1].

    A common direction r starts as the gradient of the draw whose steepest step raises the losses of
    all draws most (by the sum of their ELUs). Then two steps alternate. Expectation: a draw whose
    loss would become e after a step of the whole budget along r has the weight sigmoid(5 e / s),
    where s is the mean |e|. Maximization: r becomes the weighted mean of the gradients. So draws
    whose gradients point elsewhere, and which no common step fools, get little weight.

    The release computes e without the budget, in units of the logits, and uses the weights of the
    first iteration. Here, the scale of the logits has no effect, and the last iteration counts.

    Args:
        threat: The threat, which determines the steps.
        losses: Losses (B, draws), positive where a draw is misclassified.
        gradients: Gradients of the losses (B, draws, C, H, W).
    """
    losses, gradients = losses.nan_to_num(), gradients.nan_to_num(0, 0, 0)
    batch_size, draws = losses.shape
    steps = threat.steepest(gradients.flatten(0, 1)).view(batch_size, draws, -1)
    flat = gradients.flatten(2)
    gains = torch.einsum("bid,bjd->bij", steps, flat)  # of draw j's loss by draw i's step
    potential = torch.nn.functional.elu(losses[:, None] + threat.eps * gains).sum(2)
    best_draw = potential.argmax(1)
    direction = gradients[torch.arange(batch_size, device=losses.device), best_draw]
    weights = torch.ones_like(losses)
    for _ in range(ITERATIONS):
        gain = torch.einsum("bd,bjd->bj", threat.steepest(direction).flatten(1), flat)
        predicted = losses + threat.eps * gain
        scale = predicted.abs().mean(1, keepdim=True).clamp(min=torch.finfo(losses.dtype).tiny)
        weights = torch.sigmoid(SHARPNESS * predicted / scale)
        direction = (
            torch.einsum("bj,bjchw->bchw", weights, gradients) / weights.sum(1)[:, None, None, None]
        )
    return weights
