"""An energy-based model in the role of a denoiser, for Langevin dynamics along its score."""

from typing import Any

import torch
from torch import Tensor

from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import ascent
from unfool.diffusion.schedule import VP
from unfool.protocols import Classifier
from unfool.ranges import Positive, check_arguments


class Energy(Denoiser):
    """A denoiser whose score is the gradient of a classifier's log p(x), the same at all times.

    By Tweedie's formula, x_hat = (x_t + sigma^2 score) / alpha, from which purifiers get that score
    again as (alpha x_hat - x_t) / sigma^2. It does not depend on the noise, so use it with
    `langevin`, whose steps stay at one small time. Without an anchor (`sigma2: null`) and with many
    steps, that is purification by the long-run dynamics of an energy-based model
    (Hill et al., 2021: 1500 steps of noise 0.01 in [-1, 1]; 150 chains, whose logits are averaged).

    Args:
        classifier: A classifier such as `jem`, with a method `density(x)` that returns log p(x)
            (B,) of images in [0, 1] up to a constant.
        temperature: The divisor of log p. A JEM was trained with steps of length 1 and noise of
            0.01, which is a temperature of 5e-5.

    Raises:
        ValueError: An option is out of range, or the classifier has no density.
    """

    def __init__(self, classifier: Classifier, *, temperature: Positive = 1.0):
        super().__init__()
        check_arguments(Energy, locals())
        if not callable(getattr(classifier, "density", None)):
            raise ValueError(
                f"{type(classifier).__name__} is not an energy-based model, for it has no method "
                "`density(x)`: name one that has, such as `jem`"
            )
        self.classifier: Any = classifier
        self.temperature, self.schedule = temperature, VP()

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The x_hat of the score at `x_t` (B, C, H, W) in [-1, 1], whatever the label."""
        now = self.schedule(t.double() if t.ndim == 0 else t.to(x_t))
        with torch.set_grad_enabled(torch.is_grad_enabled() and x_t.requires_grad):
            score = ascent(self._log_density, x_t) / self.temperature
        return (x_t + now.sigma**2 * score) / now.alpha

    def _log_density(self, x_t: Tensor) -> Tensor:
        return self.classifier.density(self.decode(x_t))
