"""Perceptual PGD: steps within a bound on a perceptual distance (after Laidlaw et al., 2021)."""

from typing import ClassVar

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose
from unfool.attacks.losses import Loss, query_model
from unfool.distances import INPUT, Distance, Input
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, Positive, checked_dataclass
from unfool.threat import Threat, per_image

NEAR_BOUND = 0.99  # the share of the bound beyond which steps follow its surface
BISECTIONS = 12  # bisection steps to find a point on the bound


@checked_dataclass
class PerceptualPGD:
    """Gradient steps within a bound on a perceptual distance, whatever the change in pixel values.

    A step follows the gradient; at the bound, it follows the part of the gradient that is tangent
    to the bound. An image beyond the bound is moved straight back toward the original until it is
    inside. The last image, the one with the highest mean loss, and the original are compared on
    fresh draws. The spec's threat, which measures pixel values, does not limit this attack. SSIM
    hardly depends on the corners of an image, so these may change freely.

    Attributes:
        steps: Gradient steps.
        eot: Draws of the defense's noise per step and image.
        distance: `"ssim"` (1 - SSIM), `"lpips"` (needs its package), `"mse"` or `"l1"` (means).
        bound: The largest allowed distance, in the unit of `distance`.
        step_size: The step size, as a share of the distance to the bound along the first gradient.
        loss: `"ce"`, `"margin"` or `"dlr"`.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
        bounded: False: the threat does not limit the changes.
    """

    steps: Count = 40
    eot: Count = 1
    distance: Input = "ssim"
    bound: Positive = 0.05
    step_size: Positive = 0.1
    loss: Loss = "margin"
    selection_draws: Count | None = None
    bounded: ClassVar[bool] = False

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The distance is lpips, whose package or weights are not available.
        """
        distance, step_length = INPUT[self.distance], torch.zeros_like(x[:, 0, 0, 0])
        x_adv, best, best_loss = x, x, torch.full_like(step_length, -torch.inf)
        for i in range(self.steps):
            result = query_model(model, x_adv, y, self.loss, noise, i, self.eot)
            is_better = result.loss > best_loss
            best = torch.where(per_image(is_better), x_adv, best)
            best_loss = torch.where(is_better, result.loss, best_loss)
            direction = unit(result.gradient.nan_to_num(0, 0, 0))
            if not i:
                far_point = x + x[0].numel() ** 0.5 * direction
                length = (within(distance, x, far_point, self.bound) - x).flatten(1).norm(dim=1)
                step_length = self.step_size * length
            step = per_image(step_length) * self._tangent(distance, x, x_adv, direction)
            x_adv = within(distance, x, x_adv + step, self.bound)
        candidates = (x, x_adv, best)
        draws = self.selection_draws or self.eot
        return choose(model, y, candidates, self.loss, noise.child("compare"), draws)

    def _tangent(self, distance: Distance, x: Tensor, x_adv: Tensor, direction: Tensor) -> Tensor:
        """The `direction` without its outward part where the image is at the bound."""
        with torch.enable_grad():
            at = x_adv.detach().requires_grad_()
            current_distance = distance(x, at)
            (outward,) = torch.autograd.grad(current_distance.sum(), at)
        outward = unit(outward)
        outward_part = per_image((direction * outward).flatten(1).sum(1).clamp(min=0))
        is_at_bound = per_image(current_distance.detach() > NEAR_BOUND * self.bound)
        return torch.where(is_at_bound, direction - outward_part * outward, direction)


def within(distance: Distance, x: Tensor, x_adv: Tensor, bound: float) -> Tensor:
    """Bisect the line from `x` to `x_adv` for the last images that are within the bound."""
    inside = torch.zeros_like(x[:, 0, 0, 0])
    outside = torch.ones_like(inside)

    def point(share: Tensor) -> Tensor:
        return (x + per_image(share) * (x_adv - x)).clamp(0, 1)

    inside = torch.where(distance(x, point(outside)) <= bound, outside, inside)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        is_within = distance(x, point(middle)) <= bound
        inside = torch.where(is_within, middle, inside)
        outside = torch.where(is_within, outside, middle)
    return torch.where(per_image(inside > 0), point(inside), x)


def unit(direction: Tensor) -> Tensor:
    """Scale the direction of each image to Euclidean length 1; 0 stays 0."""
    largest = per_image(direction.flatten(1).abs().amax(1)).clamp(
        min=torch.finfo(direction.dtype).tiny
    )
    direction = direction / largest
    return direction / per_image(direction.flatten(1).norm(dim=1)).clamp(
        min=torch.finfo(direction.dtype).tiny
    )
