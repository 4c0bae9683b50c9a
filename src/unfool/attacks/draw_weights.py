"""The weight of each draw of the defense's noise in a step (DiffHammer, Wang et al., 2024)."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unfool.attacks.losses import Loss, Weigh
from unfool.threat import Threat

Weights = Literal["mean", "em"]
STEPS = 5  # of expectation and maximization
SHARPNESS = 5.0  # how fast a weight falls from 1 to 0 around the boundary


def weigh_draws(weights: Weights, threat: Threat) -> Weigh | None:
    """How `Query.weigh` weighs draws: all alike (None), or by expectation and maximization."""
    return None if weights == "mean" else partial(em_weights, threat)


def require_boundary(weights: Weights, loss: Loss) -> None:
    """Refuse to weigh draws by a loss that does not say on which side of the boundary they are.

    Raises:
        ValueError: The weights are `"em"`, and the loss is the cross-entropy.
    """
    if weights == "em" and loss == "ce":
        raise ValueError(
            "weights: em needs to know how near each draw is to the decision boundary, which the "
            "loss ce does not tell: set loss to margin or dlr"
        )


def em_weights(threat: Threat, losses: Tensor, gradients: Tensor) -> Tensor:
    """How likely each draw is to be fooled by what fools the others, (B, draws), from 0 to 1.

    A common direction r begins at the draw whose steepest step lifts most of all draws (by the sum of
    ELUs). Then, in turn: a draw that a step of the whole budget along r would bring to the loss e has
    the weight sigmoid(5 e / s), where s is the mean |e| (expectation); and r is the weighted mean of
    the gradients (maximization). So draws that nothing common fools, whose gradients pull elsewhere,
    count for little.

    The release takes an e without the budget, in the unit of the logits, and the weights of the first
    turn only; here the scale of the logits plays no part, and the turns go on.

    Args:
        threat: What a step may change.
        losses: (B, draws), positive where a draw is misclassified.
        gradients: (B, draws, C, H, W).
    """
    losses, gradients = losses.nan_to_num(), gradients.nan_to_num(0, 0, 0)
    size, draws = losses.shape
    steps = threat.steepest(gradients.flatten(0, 1)).view(size, draws, -1)
    flat = gradients.flatten(2)
    gains = torch.einsum("bid,bjd->bij", steps, flat)  # of draw j by the step of draw i
    lifted = torch.nn.functional.elu(losses[:, None] + threat.eps * gains).sum(2)
    first = lifted.argmax(1)
    common = gradients[torch.arange(size, device=losses.device), first]
    weights = torch.ones_like(losses)
    for _ in range(STEPS):
        gain = torch.einsum("bd,bjd->bj", threat.steepest(common).flatten(1), flat)
        reached = losses + threat.eps * gain
        scale = reached.abs().mean(1, keepdim=True).clamp(min=torch.finfo(losses.dtype).tiny)
        weights = torch.sigmoid(SHARPNESS * reached / scale)
        common = (
            torch.einsum("bj,bjchw->bchw", weights, gradients) / weights.sum(1)[:, None, None, None]
        )
    return weights
