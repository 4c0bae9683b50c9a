"""Denoised smoothing: Gaussian noise of known size on the pixels, then a denoiser that removes it.

Randomized smoothing certifies a classifier of images with Gaussian noise; with a denoiser in front,
an ordinary classifier becomes one. Here the noise is a standard deviation in units of [0, 1]
pixels, and an image with that noise, scaled by alpha, is x_t at the time where sigma_t / alpha_t /
2 is that noise. The method `denoise` is for certification: it adds no forward noise.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.sampling import Variance
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import Ancestral, reverse, strided, walk
from unfool.diffusion.schedule import chain_length, pixel_noise, time_of_noise
from unfool.noise import Noise
from unfool.ranges import Count, Positive, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr


class _Smoothing(nn.Module):
    """A purifier that adds noise and removes it again with its method `denoise`."""

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(self, denoiser: Denoiser, sigma: float | None, t: float | None):
        super().__init__()
        self.denoiser, self.pixel_noise = denoiser, _pixel_noise_of(denoiser, sigma, t)

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        return self.denoise(self._noised(x, noise), self.pixel_noise, noise)

    def _noised(self, x: Tensor, noise: Noise) -> Tensor:
        return x + self.pixel_noise * noise.child("forward").normal(x)

    def denoise(self, x: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Remove the noise that images carry."""
        raise NotImplementedError


class OneStep(_Smoothing):
    """Diffusion denoised smoothing (Carlini et al., 2023): one call of the network, x_hat at t*.

    As a purifier, it first adds the noise, drawn from the stream `forward`. The released code clips
    x_hat to [-1, 1], which is an option of the denoiser (`clip_x0`).

    Args:
        denoiser: A diffusion model of pixels.
        sigma: The standard deviation of the noise it adds, in units of [0, 1] pixels; the paper
            uses 0.25, 0.5, and 1.
        t: The same noise as a time in (0, 1]; give either `t` or `sigma`.

    Raises:
        ValueError: Both or neither of `sigma` and `t` are given, or the schedule never reaches the
            noise.
    """

    def __init__(self, denoiser: Denoiser, *, sigma: Positive | None = None, t: Time | None = None):
        super().__init__(denoiser, sigma, t)

    def denoise(self, x: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Remove the noise that images carry, without random draws.

        Args:
            x: Images (B, C, H, W) of [0, 1] plus Gaussian noise, not clipped.
            sigma: The standard deviation of that noise, in units of [0, 1] pixels.
            noise: Not used here.

        Raises:
            ValueError: `sigma` is not above 0, or more noise than the schedule has.
        """
        x_t, t = _as_state(self.denoiser, x, sigma)
        return self.denoiser.decode(self.denoiser(x_t, t))


class DensePure(_Smoothing):
    """DensePure's purifier (Xiao et al., 2022): a random reverse chain of K steps.

    The paper takes the majority class of R reverse chains from the same noised image: certify with
    R paths, or see `aggregate.Aggregated` for attacks. It draws from the streams `forward` and
    `reverse`.

    Args:
        denoiser: A diffusion model of pixels.
        sigma: The standard deviation of the noise it adds as a purifier, in units of [0, 1] pixels.
        t: The same noise as a time in (0, 1]; give either `t` or `sigma`.
        steps: K, the number of reverse steps, each one call of the network.
        variance: The variance of a step: `"small"` (posterior) or `"large"` (forward). The
            release's network learned its own, between the two.

    Raises:
        ValueError: Both or neither of `sigma` and `t` are given, the schedule never reaches the
            noise, or it has fewer than `steps` steps below it.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: Positive | None = None,
        t: Time | None = None,
        steps: Count = 10,
        variance: Variance = "small",
    ):
        super().__init__(denoiser, sigma, t)
        check_arguments(DensePure, locals())
        self.steps, self.step = steps, Ancestral(variance)
        self._times(time_of_noise(denoiser.schedule, self.pixel_noise))

    def denoise(self, x: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Remove the noise that images carry, by one draw of the reverse chain.

        Args:
            x: Images (B, C, H, W) of [0, 1] plus Gaussian noise, not clipped.
            sigma: The standard deviation of that noise, in units of [0, 1] pixels.
            noise: The chain draws from its stream `reverse`.

        Raises:
            ValueError: `sigma` is not above 0, is more noise than the schedule has, or is so small
                that the schedule has fewer than K steps below it.
        """
        x_t, times, back = self._start(x, sigma, noise)
        return self.denoiser.decode(reverse(self.denoiser, x_t, times, back, step=self.step))

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the reverse path of `forward` as (time, image), from noised to purified image."""
        x_t, times, back = self._start(self._noised(x, noise), self.pixel_noise, noise)
        for t, state in walk(self.denoiser, x_t, times, back, step=self.step):
            yield t, self.denoiser.decode(state)

    def _start(self, x: Tensor, sigma: float, noise: Noise) -> tuple[Tensor, Tensor, Noise]:
        """x_t, and the times and the noise of the reverse chain."""
        x_t, t = _as_state(self.denoiser, x, sigma)
        return x_t, self._times(float(t)), noise.child("reverse")

    def _times(self, t: float) -> Tensor:
        chain = chain_length(self.denoiser.schedule)
        if not 1 <= self.steps <= round(t * chain):
            raise ValueError(
                f"steps must be from 1 to {round(t * chain)}, the number of the schedule's {chain} "
                f"steps below t = {t:.4g}; not {self.steps}"
            )
        times = strided(t, self.steps, chain)
        times[0] = t  # a continuous schedule reaches the noise exactly
        return times


def _pixel_noise_of(denoiser: Denoiser, sigma: float | None, t: float | None) -> float:
    if (sigma is None) == (t is None):
        raise ValueError(
            "give exactly one of sigma (the noise, in units of [0, 1] pixels) and t (its diffusion "
            "time)"
        )
    check_arguments(OneStep, {"t": t})
    if sigma is None:
        assert t is not None
        return pixel_noise(denoiser.schedule, t)
    time_of_noise(denoiser.schedule, sigma)  # raises if the schedule never reaches it
    return sigma


def _as_state(denoiser: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """x_t and its time in float64, for images (B, C, H, W) that carry the pixel noise `sigma`."""
    t = torch.tensor(time_of_noise(denoiser.schedule, sigma), dtype=torch.float64)
    return denoiser.schedule(t).alpha * denoiser.encode(x), t
