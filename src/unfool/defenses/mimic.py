"""MimicDiffusion (Song et al., 2024): reverse diffusion from noise, guided by the l1 distance."""

import torch
from torch import Tensor

from unfool.diffusion.protocols import Guide
from unfool.diffusion.reverse import ascent
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.ranges import Count, NotNegative, checked_dataclass


@checked_dataclass
class Mimic:
    """The guide - scale alpha grad_{x_t} |x_hat - x|_1, by which the mean of a DDPM step moves.

    The distance is the sum over channels and the mean over pixel positions, in [-1, 1]. With steps
    other than DDPM's, the guide is the term of the score that would move a DDPM step by that. From
    pure noise (t* = 1, 100 steps), it is MimicDiffusion (arXiv 2312.04802): the sign of the
    distance's gradient is the same for an image and for a nearby adversarial image, wherever x_hat
    is farther away than the perturbation.

    The release differs in three ways, which are not the default here. Its distance is also a mean
    over the batch, so that an image's guide weakens in a larger batch; here, it is divided by
    `reference_batch_size`. Its second guide compares both images after the same nearest-neighbor
    upsampling, which repeats the first guide: its scale of 3000 is 6000 here. And it treats the
    network's output as a constant (`through: false`), whereas the paper's gradient with respect to
    x_t goes through it. Moreover, its attack is on DiffPure without a guide.

    The sign has a derivative of 0, so an attacker gets gradients only through x_hat, and with
    `through: false` none at all: evaluate by attacks without gradients as well, and by images made
    against a `smoothing` above 0.

    Attributes:
        scale: The strength of the guide; 6000 is the release's.
        reference_batch_size: The number by which the distance is divided; 16 is the release's batch
            size.
        through: Whether to differentiate x_hat through the network, which takes twice the time.
        smoothing: Replaces |d| by sqrt(d^2 + smoothing^2), for pixels in [-1, 1]; 0 is the paper's.

    Raises:
        ValueError: An option is out of range.
    """

    scale: NotNegative = 6000.0
    reference_batch_size: Count = 16
    through: bool = True
    smoothing: NotNegative = 0.0

    @property
    def deep(self) -> bool:
        """Whether the guide differentiates x_hat."""
        return self.through

    def for_images(self, x: Tensor) -> Guide:
        """The guide for the images `x` (B, C, H, W) in the denoiser's space.

        Calling it with the sampler `"heun"` raises a ValueError.
        """
        share = self.scale / (self.reference_batch_size * x.shape[2] * x.shape[3])

        def guide(x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise) -> Tensor:
            if now is then:
                raise ValueError(
                    "the guide `mimic` does not work with the sampler `heun`, which also evaluates "
                    "it at the end of a step: use `ddpm`"
                )
            if self.through:
                slope = ascent(lambda _: self._distance(x_hat - x).flatten(1).sum(1), x_t)
            else:
                slope = self._slope(x_hat - x) / now.alpha
            alpha_ratio = now.alpha / then.alpha
            beta = now.sigma**2 - (alpha_ratio * then.sigma) ** 2  # 1 - ratio^2, as in `Ancestral`
            # a term g of the score moves the mean of a DDPM step by beta / ratio g
            factor = torch.where(beta > 0, alpha_ratio / beta, 0)
            return -share * now.alpha * factor * slope

        return guide

    def _distance(self, gap: Tensor) -> Tensor:
        return (gap.square() + self.smoothing**2).sqrt() if self.smoothing else gap.abs()

    def _slope(self, gap: Tensor) -> Tensor:
        return gap / self._distance(gap) if self.smoothing else gap.sign()
