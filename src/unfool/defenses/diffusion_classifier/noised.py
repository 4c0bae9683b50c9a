"""The noised diffusion classifier (Chen et al., 2024b), for images that carry Gaussian noise.

It can be the base classifier of randomized smoothing, which certifies it. The noise is a standard
deviation in units of [0, 1] pixels, and the image is not clipped.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier, Policy
from unfool.defenses.diffusion_classifier.errors import ClassErrors
from unfool.defenses.diffusion_classifier.timesteps import Weight
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.schedule import Scales, time_of_noise
from unfool.noise import Noise
from unfool.ranges import Count, Positive, Probability, check_arguments

Posterior = Literal["approximate", "exact"]
MAX_NOISE_RATIO = 3.0  # sigma / alpha of the last draw, as in the release


class NoisedDiffusionClassifier(DiffusionClassifier):
    """A diffusion classifier of a noisy image z = x + s_0 e, where s_0 = 2 `sigma` in [-1, 1].

    Draw k raises the noise of z to s: x_s = z + sqrt(s^2 - s_0^2) eps. The error of class c is
    |x_hat(x_s, c) - target|^2. The target of the exact posterior (EPNDC) bounds log p(z | c): it is
    x_s - s^2 / sqrt(s^2 - s_0^2) eps, the mean of x_0 that follows from the score of x_s given z.
    (The release compares means of the step below, which is the same in the limit of small steps.)
    The target of the approximate posterior (APNDC) is x_hat(z), the unconditional estimate at s_0.

    Args:
        denoiser: A class-conditional denoiser of pixels; for `"approximate"`, it must also work
            without labels.
        sigma: The noise that the image carries, in units of [0, 1] pixels.
        posterior: `"approximate"` or `"exact"`.
        draws: The number of noise levels s, evenly from s_0 to 3. The exact posterior leaves out
            the first 4 %, where its target diverges, as the release does.
        weight: The weight of an error (see `DiffusionClassifier`); `"elbo"` with the exact
            posterior is the bound.
        elimination: `"paired"`; None for none.
        risk: See `DiffusionClassifier`.
        policy: See `DiffusionClassifier`.
        seed: See `DiffusionClassifier`.
        scale: The factor of the logits.
        batch_size: The most (image, class, draw) rows in one call of the network.

    Raises:
        ValueError: An option is out of range, the denoiser has fewer than 2 classes or does not
            work on pixels, or 2 `sigma` is not below 3.
    """

    noised = True  # `unfool certify` sets its sigma

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: Annotated[float, Field(gt=0, lt=MAX_NOISE_RATIO / 2)],
        posterior: Posterior = "approximate",
        draws: Count = 126,
        weight: Weight = "edm",
        elimination: Literal["paired"] | None = None,
        risk: Probability = 0.005,
        policy: Policy = "fresh",
        seed: int = 0,
        scale: Positive | None = None,
        batch_size: Count = 256,
    ):
        check_arguments(NoisedDiffusionClassifier, locals())
        if type(denoiser).encode is not Denoiser.encode:
            raise ValueError(
                "the noise is added to pixels, and this denoiser works on latents: take one that "
                "works on pixels"
            )
        first = (
            2 * sigma
            if posterior == "approximate"
            else 2 * sigma + 0.04 * (MAX_NOISE_RATIO - 2 * sigma)
        )
        super().__init__(
            denoiser,
            draws=draws,
            times="sigma",
            span=(first, MAX_NOISE_RATIO),
            weight=weight,
            elimination=elimination,
            risk=risk,
            policy=policy,
            seed=seed,
            scale=scale,
            batch_size=batch_size,
        )
        self.sigma, self.posterior = sigma, posterior
        start = torch.tensor(time_of_noise(denoiser.schedule, sigma), dtype=torch.float64)
        self.start = denoiser.schedule(start)

    def errors(self, eps: Noise) -> ClassErrors:
        """The errors of the classes on the draws of `eps`."""
        options = self.denoiser, self.scales, eps, self.loss, self.row_limit
        exact = self.posterior == "exact"
        return _NoisedErrors(*options, s_0=2 * self.sigma, start=self.start, exact=exact)


@dataclass(frozen=True)
class _NoisedErrors(ClassErrors):
    """Errors on images that carry noise.

    Attributes:
        s_0: The standard deviation of that noise, in [-1, 1].
        start: The scales at the time of that noise: on a chain, of the first step with at least it.
        exact: Whether the target is that of the exact posterior.
    """

    s_0: float = field(kw_only=True)
    start: Scales = field(kw_only=True)
    exact: bool = field(kw_only=True)

    def noised_pairs(
        self, z: Tensor, image: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x_t and the target of x_hat."""
        s = sigma / alpha
        more = (s**2 - self.s_0**2).clamp(min=0).sqrt()
        x_s = z[image] + more * eps
        if self.exact:
            return alpha * x_s, x_s - s**2 / more * eps
        images, index = image.unique(return_inverse=True)
        x_0 = self.denoiser(self.start.alpha.to(z) * z[images], self.start.t.to(z.device))
        return alpha * x_s, x_0[index].to(z)
