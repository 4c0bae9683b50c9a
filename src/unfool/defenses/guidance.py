"""Guides: the checks that all guides by a classifier share, and a guide by a distance to an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unfool.diffusion.protocols import Step
from unfool.diffusion.reverse import Ancestral, Heun, ascent
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.protocols import Classifier

# The state looked at, the anchor, and noise for whatever looks, to a distance of each image (B,).
Distance = Callable[[Tensor, Tensor, Noise], Tensor]


def require_classifier(classifier: Classifier | None) -> Classifier:
    """The classifier that a guide asks.

    Raises:
        ValueError: There is none.
    """
    if classifier is None:
        raise ValueError(
            "the guide needs the classifier that it protects, and there is none: give it a "
            "classifier"
        )
    return classifier


def require_grad_path(values: Tensor) -> Tensor:
    """What a guide climbs, if a gradient leads from it to the images.

    Raises:
        ValueError: None does.
    """
    if not values.requires_grad:
        raise ValueError(
            "the guide needs the gradient of the classifier's logits with respect to its images, "
            "and there is none: look for no_grad, detach, or rounding in the classifier"
        )
    return values


@dataclass(frozen=True)
class Descent:
    """The guide - weight * grad_{x_t} D(x_t, anchor), of distribution transfer and of GDMP.

    The gradient is exact through the guide too, and reaches the anchor if that stands in `beside` of
    `reverse`.

    Attributes:
        distance: D; states of the denoiser's space.
        anchor: The image that was given (B, C, H, W), in that space.
        weight: Of the guide, at the scales of x_t.
        step: The step that is guided. A DDPM mean moves by the step's variance times the guide
            (Dhariwal and Nichol, 2021, algorithm 1), as the papers have it; under every other step
            the guide is a term of the score.
        noised: Compare with the anchor noised to t, afresh at each step, and not with itself.
        deep: Look at x_hat in the place of x_t; then the gradient goes through the denoiser.
    """

    distance: Distance
    anchor: Tensor
    weight: Callable[[Scales], Tensor | float]
    step: Step | Heun
    noised: bool = False
    deep: bool = False

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """The term, shaped like `x_t`.

        Raises:
            ValueError: The distance has no gradient.
        """
        anchor = self.anchor
        if self.noised:
            anchor = now.alpha * anchor + now.sigma * noise.child("anchor").normal(anchor)

        def potential(at: Tensor) -> Tensor:
            return require_grad_path(self.distance(x_hat if self.deep else at, anchor, noise))

        return -self.weight(now) * _share(self.step, now, then) * ascent(potential, x_t)


def _share(step: Step | Heun, now: Scales, then: Scales) -> Tensor | float:
    """How much of a term g of the score makes the mean of a DDPM step move by its variance times g.

    As a term of the score, g moves it by beta / sqrt(1 - beta), with 1 - beta = (alpha / alpha')^2.
    """
    if not isinstance(step, Ancestral):
        return 1.0
    kept = now.alpha / then.alpha
    return kept if step.variance == "large" else kept * torch.square(then.sigma / now.sigma)
