"""The Langevin-like purifier of DiffPure's release (`ldsde`): no forward noise, but an anchor."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_images
from unfool.defenses.fewer_steps import on_independent_noise, on_same_noise
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.matched_noise import coarse_times
from unfool.diffusion.reverse import reverse, walk
from unfool.diffusion.schedule import Scales, first_time
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.ranges import Count, NotNegative, Positive, Time, check_arguments
from unfool.runtime.text import html_repr, short_repr


class Langevin(nn.Module):
    """dx = -lambda/2 [-s(x, score_t) + (x - x_init) / sigma2] dt + eta sqrt(lambda) dw, from x_init.

    Every step uses the score of slightly noised images; the anchor pulls back toward the input
    image. It takes Euler-Maruyama steps and draws from the stream `reverse`. The gradient is exact
    and goes through the anchor, too. With the default settings and without the score, it adds
    Gaussian noise of standard deviation about 0.13 to the image, in units of [-1, 1].

    Without an anchor (`sigma2: null`), with `eta: 1` and many steps, it is long-run Langevin
    dynamics (Hill et al., 2021): each step adds tau^2 / 2 times the score and noise of standard
    deviation tau, where tau^2 is lambda t / steps. The score may be that of an energy-based model
    (the denoiser `energy`).

    Args:
        denoiser: The diffusion model.
        t: How long to run, in (0, 1].
        steps: Number of steps, each one call of the network; 10 in the release.
        sigma2: The variance of the anchor, in units of [-1, 1]; a smaller one pulls harder toward
            the image. None turns the anchor off.
        weight: lambda, the size of a step.
        eta: The scale of the noise.
        score_t: The time at which the score is evaluated, in (0, 1]. A time before the first step
            of a chain is raised to that step.

    Raises:
        ValueError: An option is out of range, or a step would overshoot the anchor.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        t: Time = 0.1,
        steps: Count = 10,
        sigma2: Positive | None = 1e-3,
        weight: Positive = 1e-2,
        eta: NotNegative = 5.0,
        score_t: Time = 0.01,
    ):
        super().__init__()
        check_arguments(Langevin, locals())
        if sigma2 is not None and t / steps * weight / (2 * sigma2) > 2:
            raise ValueError(
                "the steps are so long that the anchor overshoots (t / steps * weight / (2 sigma2) "
                f"must be at most 2): take more steps than {steps}"
            )
        self.denoiser, self.t, self.steps = denoiser, t, steps
        self.sigma2, self.weight, self.eta, self.score_t = sigma2, weight, eta, score_t

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        z = self.denoiser.encode(x)
        noise, step = noise.child("reverse"), self._step(z)
        return self.denoiser.decode(
            reverse(self.denoiser, z, self._times(), noise, step=step, other_inputs=(z,))
        )

    def walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of `forward`, (time left, image) from the image to the purified one."""
        z = self.denoiser.encode(x)
        noise, step = noise.child("reverse"), self._step(z)
        states = walk(self.denoiser, z, self._times(), noise, step=step)
        for i, (_, state) in enumerate(states):
            yield self.t * (1 - i / self.steps), self.denoiser.decode(state)

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """The same purifier in fewer steps, on the same noise path if `matched`.

        Raises:
            ValueError: `steps` does not divide the purifier's own steps, or the anchor overshoots.
        """
        fewer = len(coarse_times(self.steps, steps)) - 1
        if self.steps % fewer:
            raise ValueError(
                f"the steps of a view must divide the {self.steps} steps of langevin, and {fewer} "
                "does not: choose a divisor"
            )
        shorter = Langevin(
            self.denoiser,
            t=self.t,
            steps=fewer,
            sigma2=self.sigma2,
            weight=self.weight,
            eta=self.eta,
            score_t=self.score_t,
        )
        if not matched:
            return on_independent_noise(shorter)
        fine_per_coarse = self.steps // fewer
        return on_same_noise(shorter, ((fine_per_coarse**-0.5,) * fine_per_coarse,) * fewer)

    def _times(self) -> Tensor:
        """The times of the steps, which are all `score_t`."""
        time = max(self.score_t, first_time(self.denoiser.schedule))
        return torch.full((self.steps + 1,), time, dtype=torch.float64)

    def _step(self, anchor: Tensor) -> "_AnchoredStep":
        return _AnchoredStep(anchor, self.t / self.steps, self.sigma2, self.weight, self.eta)


@dataclass(frozen=True, eq=False)
class _AnchoredStep:
    """An Euler-Maruyama step of length `h`, pulled back to `anchor`."""

    anchor: Tensor
    h: float
    sigma2: float | None
    weight: float
    eta: float

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        score = (now.alpha * x_hat - x_t) / now.sigma**2
        pull = 0.0 if self.sigma2 is None else (x_t - self.anchor) / self.sigma2
        drift = -0.5 * self.weight * (-score + pull)
        return x_t + self.h * drift + self.eta * math.sqrt(self.weight * self.h) * noise.normal(x_t)
