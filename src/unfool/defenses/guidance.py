"""Guides: checks that all classifier guides share, and a guide by the distance to an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unfool.diffusion.protocols import Step
from unfool.diffusion.reverse import Ancestral, Heun, ascent
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.protocols import Classifier

# Maps a state, the anchor, and noise for a random classifier to a distance per image (B,).
Distance = Callable[[Tensor, Tensor, Noise], Tensor]


def require_classifier(classifier: Classifier | None) -> Classifier:
    """Return the classifier of a guide, after checking that there is one.

    Raises:
        ValueError: `classifier` is None.
    """
    if classifier is None:
        raise ValueError(
            "the guide needs the classifier that it protects, and there is none: give it a "
            "classifier"
        )
    return classifier


def require_grad_path(values: Tensor) -> Tensor:
    """Return the values that a guide differentiates, after checking that they have a gradient.

    Raises:
        ValueError: They have no gradient with respect to the images.
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

    The gradient is also exact through the guide, and reaches the anchor if `other_inputs` of
    `reverse` contains it.

    Attributes:
        distance: D, of states in the denoiser's space.
        anchor: The input image (B, C, H, W), in that space.
        weight: The weight of the guide, a function of the scales at x_t.
        step: The step that is guided. A DDPM mean moves by the step's variance times the guide
            (Dhariwal and Nichol, 2021, algorithm 1), as in the papers; with every other step, the
            guide is a term of the score.
        noised: Whether to compare with the anchor noised to t, with fresh noise in each step.
        deep: Whether D compares x_hat instead of x_t, with the gradient through the denoiser.
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
    """The factor with which a score term g moves the mean of a DDPM step by its variance times g.

    Without it, g moves the mean by beta / sqrt(1 - beta) g, where 1 - beta = (alpha / alpha')^2.
    """
    if not isinstance(step, Ancestral):
        return 1.0
    alpha_ratio = now.alpha / then.alpha
    if step.variance == "large":
        return alpha_ratio
    return alpha_ratio * torch.square(then.sigma / now.sigma)
