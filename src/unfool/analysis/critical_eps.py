"""The critical eps of each image: the smallest budget at which an attack breaks it.

It is found by bisection (as in robustness distributions; Bosman et al., 2025), with an attack in place of
a verifier, so it is an upper bound. The robust accuracy at a budget is the share of images whose critical
eps lies above it, so the critical eps of all images gives the robust accuracy at every budget.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfool.attacks.losses import Loss
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.defenses.purified_classifier import majority_vote
from unfool.noise import Noise
from unfool.ranges import Count, Positive, check_arguments
from unfool.results.report_json import share_entry
from unfool.runtime.progress import progress
from unfool.statistics import wilson
from unfool.threat import Norm, Threat


@dataclass(frozen=True)
class CriticalEps:
    """The brackets that contain the critical eps of B images.

    Attributes:
        norm: The norm of the budgets.
        eps: The budget of the spec.
        low: The largest budget tried that did not break the image, (B,); 0 if there is none.
        high: The smallest budget tried that broke it, (B,): 0 if the clean image is already wrong,
            infinity if none did.
        largest: The largest budget tried.
    """

    norm: Norm
    eps: float
    low: np.ndarray
    high: np.ndarray
    largest: float

    @property
    def estimates(self) -> np.ndarray:
        """The midpoint of each bracket (B,); infinity if no budget broke the image."""
        return np.where(np.isinf(self.high), np.inf, (self.low + self.high) / 2)

    def summary(self) -> dict[str, Any]:
        """Return the quartiles (None above the largest budget), and shares with 95 % intervals.

        The share at the spec's eps, `at_eps`, is None if all budgets tried are below it.
        """
        estimates, count = self.estimates, len(self.high)
        ordered = np.sort(estimates)
        quartiles = {
            str(share): None if np.isinf(value) else float(value)
            for share in (25, 50, 75)
            for value in [ordered[min(count - 1, int(count * share / 100))]]
        }
        return {
            "images": count,
            "norm": self.norm,
            "eps": self.eps,
            "largest": self.largest,
            "quartiles": quartiles,
            "wrong": share_entry(wilson(int((self.high == 0).sum()), count)),
            "unbroken": share_entry(wilson(int(np.isinf(self.high).sum()), count)),
            "at_eps": None
            if self.largest < self.eps
            else share_entry(wilson(int((estimates > self.eps).sum()), count)),
            "brackets": [
                {"low": float(low), "high": None if np.isinf(high) else float(high)}
                for low, high in zip(self.low, self.high, strict=True)
            ],
        }


def critical_eps(
    model: Batched,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    steps: int = 20,
    eot: int = 4,
    loss: Loss = "margin",
    draws: Count = 8,
    reach: Positive = 4.0,
    rounds: Count = 5,
    quiet: bool = False,
) -> CriticalEps:
    """Bisect the budget of PGD with the exact gradient for each image.

    A budget breaks an image if the majority of `draws` held-out draws is wrong on what PGD found. The
    clean image is tested first, then the largest budget, then each bracket is halved `rounds` times.
    Images with the same next budget are attacked together, each with its own noise.

    Args:
        model: The model to attack.
        x: Images (B, C, H, W) in [0, 1].
        y: Labels (B,).
        threat: The norm, and the unit of `reach`.
        noise: Source of random draws; the attack does not see the held-out ones.
        steps: Steps of PGD from a random start.
        eot: Draws per step.
        loss: The loss to maximize.
        draws: Held-out draws per verdict.
        reach: The largest budget in units of the threat's; in linf and l0, budgets never exceed 1.
        rounds: Halvings.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, or the threat has no budget.
    """
    check_arguments(critical_eps, locals())
    if threat.eps == 0:
        raise ValueError(
            "the budgets tried are multiples of the threat's, and threat.eps is 0: set threat.eps "
            "above 0"
        )
    largest = reach * threat.eps
    if threat.norm in ("linf", "l0"):
        largest = min(1.0, largest)
    attack = PGD(steps, eot, loss=loss)
    streams = [noise.child("held", draw) for draw in range(draws)]
    low, high = np.zeros(len(x)), np.full(len(x), np.inf)

    def breaks(indices: np.ndarray, eps: float) -> np.ndarray:
        """Return a mask: which of the images at `indices` the attack breaks at `eps`."""
        rows = torch.from_numpy(indices).to(x.device)
        images, labels = x[rows], y[rows]
        if eps > 0:
            attack_noise = noise.take(indices.tolist()).child("attack")
            images = attack(model, images, labels, Threat(threat.norm, eps), attack_noise)
        held_out = [stream.take(indices.tolist()) for stream in streams]
        return (majority_vote(model, images, held_out) != labels).cpu().numpy()

    with progress("bisecting", rounds + 2, 0, quiet) as show:
        all_indices = np.arange(len(x))
        high[breaks(all_indices, 0)] = 0
        show(1, "clean")
        correct = all_indices[high > 0]
        if correct.size:
            broken = breaks(correct, largest)
            high[correct[broken]] = largest
            low[correct[~broken]] = largest
        show(2, "largest")
        for round_index in range(rounds):
            middle = (low + high) / 2
            is_open = np.isfinite(high) & (high > 0)
            for eps in np.unique(middle[is_open]):
                indices = all_indices[is_open & (middle == eps)]
                broken = breaks(indices, float(eps))
                high[indices[broken]] = eps
                low[indices[~broken]] = eps
            show(round_index + 3, "halved")
    return CriticalEps(threat.norm, threat.eps, low, high, largest)
