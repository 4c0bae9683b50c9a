"""MANI (Huang et al., 2025): more forward noise where the image's spectrum is small."""

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.ranges import Count, NotNegative, checked_dataclass

FLOOR = 1e-3  # share of the mean magnitude, so that an empty ring does not get all of the noise
TINY = 1e-6  # for black images, whose spectrum is 0


@checked_dataclass
class Spectrum:
    """A shaping of the forward noise that puts more of it where the image has small magnitudes.

    The frequencies are divided into rings of equal width. If M is a ring's mean magnitude, over
    channels, for pixels in [0, 1], the ring gets noise in proportion to (M + 0.001 mean M)^-gamma.
    The mean variance of a pixel stays 1, so t* and `pixel_noise` keep their meaning. The gradient
    goes through the magnitudes, because an attacker can shape the noise with them.

    This is the idea of MANI-Pure (arXiv 2509.25082: noise weighted by decreasing functions of band
    magnitudes), whose other half is `freqpure`. The number of rings, the exponent, and the
    normalization are our choices, because the paper's code is not public.

    Attributes:
        bands: The number of rings; 1 is plain noise.
        gamma: How strongly the noise avoids large magnitudes; 0 is plain noise.

    Raises:
        ValueError: An option is out of range.
    """

    bands: Count = 8
    gamma: NotNegative = 0.5

    def __call__(self, eps: Tensor, x: Tensor) -> Tensor:
        """Shape standard normal noise `eps` (B, C, H, W) by the images `x` in [-1, 1]."""
        return torch.fft.ifft2(self.weights(x)[:, None] * torch.fft.fft2(eps)).real

    def weights(self, x: Tensor) -> Tensor:
        """The factor of the noise at each frequency (B, H, W), in the order of `fft2`."""
        magnitude = torch.fft.fft2((x + 1) / 2).abs().mean(1).flatten(1)
        rings = self._rings(x)
        member = F.one_hot(rings.flatten(), self.bands).to(x)
        mean = magnitude @ (member / member.sum(0).clamp(min=1))
        floor = FLOOR * magnitude.mean(1, keepdim=True) + TINY
        weight = -self.gamma * (mean + floor).log()[:, rings]
        weight = (weight - weight.amax((1, 2), keepdim=True)).exp()
        return weight / weight.square().mean((1, 2), keepdim=True).sqrt()

    def _rings(self, like: Tensor) -> Tensor:
        """The ring of each frequency (H, W)."""
        down, across = (
            torch.fft.fftfreq(n, 1 / n, device=like.device, dtype=torch.float64)
            for n in like.shape[-2:]
        )
        radius = torch.hypot(down[:, None], across)
        share = radius / radius.max().clamp(min=1)
        return (share * self.bands).long().clamp(max=self.bands - 1)
