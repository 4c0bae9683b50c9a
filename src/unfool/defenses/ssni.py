"""Sample-specific noise (Sun et al., 2025): an image's score norm sets the time it is noised to."""

from typing import Literal

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.gradient import chain
from unfool.diffusion.schedule import first_time
from unfool.noise import Noise
from unfool.ranges import Count, Positive, Share, Time, check_arguments

MIN_TIME = 1e-4  # the smallest time that an image is noised to


class ScoreNorm(nn.Module):
    """A noise level that is larger for images with a larger norm of the expected score (SSNI).

    The expected score is the mean of the scores at `levels` even times up to `up_to`, each of the
    image noised to that time (the expected perturbation score of Zhang et al., 2023). A time before
    the first step of a chain is raised to that step. The norm is the root mean square over pixels
    and channels in [-1, 1], so it does not depend on the size of images. With s = (norm - center) /
    width, the time is (t* + bias) / (1 + exp(-s)) for the shape `"sigmoid"`, and t* times (s + 1/2
    clipped to [0, 1]) plus the bias for `"linear"` (arXiv 2506.06027, its two reweighting
    functions). It is never below 0.0001 or above 1.

    `center` and `width` describe clean images: measure them with `score_norms`. They hold for one
    denoiser, one `levels`, and one `up_to`.

    The attacker can influence t*, so the gradient goes through it and through the scores, at the
    cost of one call of the network for each level and the memory of one. For a denoiser with
    discrete steps, t* jumps from step to step. So with `"ddpm"` and `"ddim"`, this gradient is 0,
    as in any code that counts steps; with `"sde"` and `"ode"`, it goes only through the lengths of
    the reverse steps. Level i draws from the stream i below its noise.

    Args:
        denoiser: The diffusion model.
        center: The norm at which half of the noise is added: for `"sigmoid"`, the mean norm of
            clean images; for `"linear"`, the middle between their smallest and largest norm.
        width: The scale of the norm: for `"sigmoid"`, a temperature; for `"linear"`, the largest
            minus the smallest norm.
        shape: `"sigmoid"` or `"linear"`.
        bias: The time that is added to t* for `"sigmoid"`, or to the result for `"linear"`.
        levels: The number of times at which the score is evaluated.
        up_to: The latest of these times; 0.02 is 20 of 1000.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        center: Positive,
        width: Positive,
        shape: Literal["sigmoid", "linear"] = "sigmoid",
        bias: Share = 0.0,
        levels: Count = 20,
        up_to: Time = 0.02,
    ):
        super().__init__()
        check_arguments(ScoreNorm, locals())
        self.denoiser, self.center, self.width = denoiser, center, width
        self.shape, self.bias, self.levels, self.up_to = shape, bias, levels, up_to

    def forward(self, x: Tensor, t: float, noise: Noise) -> Tensor:
        """The time (B,) that each image (B, C, H, W) of the denoiser's space is noised to."""
        norms = _norms(self.denoiser, x, noise, self.levels, self.up_to)
        excess = (norms - self.center) / self.width
        if self.shape == "sigmoid":
            times = (t + self.bias) * excess.sigmoid()
        else:
            times = t * (excess + 0.5).clamp(0, 1) + self.bias
        return times.clamp(MIN_TIME, 1)


@torch.no_grad()
def score_norms(
    denoiser: Denoiser, x: Tensor, noise: Noise, levels: Count = 20, up_to: Time = 0.02
) -> Tensor:
    """The norm of the expected score of each image (B,), to choose `ScoreNorm`'s center and width.

    Args:
        denoiser: The diffusion model.
        x: Images (B, C, H, W) in [0, 1].
        noise: The noise of these images.
        levels: The number of times at which the score is evaluated.
        up_to: The latest of these times.

    Raises:
        ValueError: The images do not lie in [0, 1], or an option is out of range.
    """
    check_images(x)
    check_arguments(score_norms, locals())
    return _norms(denoiser, denoiser.encode(x), noise, levels, up_to)


def _norms(denoiser: Denoiser, z: Tensor, noise: Noise, levels: int, up_to: float) -> Tensor:
    def advance(i: int, state: Tensor) -> Tensor:
        z, total = state.chunk(2, 1)
        t = max(up_to * (i + 1) / levels, first_time(denoiser.schedule))
        t = torch.tensor(t, dtype=torch.float64)
        now = denoiser.schedule(t)
        x_t = denoiser.perturb(z, t, noise.child(i))
        score = (now.alpha * denoiser(x_t, t) - x_t) / now.sigma**2
        return torch.cat([z, total + score / levels], 1)

    weights = tuple(p for p in denoiser.parameters() if p.requires_grad)
    start = torch.cat([z, torch.zeros_like(z)], 1)
    _, score = chain(advance, start, levels, weights, denoiser, (ScoreNorm,)).chunk(2, 1)
    return score.square().flatten(1).mean(1).sqrt()
