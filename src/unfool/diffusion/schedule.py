"""Noise schedules, which map a time t in [0, 1] to the scales of x_t = alpha x_0 + sigma noise.

t = 0 is a clean image (alpha 1, sigma 0). A discrete chain of T steps has the times n / T, where n
counts the steps of noise (1 .. T): DiffPure's t* = 0.1 is n = 100 of 1000, whose index in the usual
tables is 99. All tables are float64.
"""

import math
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unfool.ranges import Count, Positive, checked_dataclass


class Scales(NamedTuple):
    """The scales of a schedule at a time; every field is shaped like `t`.

    Attributes:
        t: The time itself, in [0, 1].
        alpha: The scale of the signal (the square root of alpha-bar).
        sigma: The scale of the noise; alpha^2 + sigma^2 = 1.
        beta: The rate of noising per unit of t, in dx = -beta/2 x dt + sqrt(beta) dw.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    beta: Tensor


class Schedule(Protocol):
    """A noise schedule, which maps times to scales."""

    def __call__(self, t: Tensor, /) -> Scales: ...


@checked_dataclass
class VP:
    """The continuous variance-preserving SDE (Song et al., 2021; Nie et al., 2022, section 3).

    Attributes:
        beta_min: beta at time 0.
        beta_max: beta at time 1; it is linear in between.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0

    def __call__(self, t: Tensor, /) -> Scales:
        """The scales at `t`."""
        log_abar = -0.5 * (self.beta_max - self.beta_min) * t**2 - self.beta_min * t
        return Scales(
            t=t,
            alpha=torch.exp(0.5 * log_abar),
            sigma=torch.sqrt(-torch.expm1(log_abar)),
            beta=self.beta_min + t * (self.beta_max - self.beta_min),
        )


@checked_dataclass
class Discrete:
    """A chain of `steps` betas (Ho et al., 2020, linear; Nichol and Dhariwal, 2021, cosine).

    Latent models (Rombach et al., 2022) have betas whose square roots are linear. A time between
    two steps is rounded to the nearest one. `beta` is the step's beta times `steps`.

    Attributes:
        steps: T, the length of the chain.
        kind: `"linear"` from `beta_min`/T to `beta_max`/T, which for T = 1000 is Ho's 1e-4 to 0.02;
            `"scaled_linear"`, whose square roots are linear between the same ends; or `"cosine"`.
        beta_min: T times the first step's beta; not used by `"cosine"`.
        beta_max: T times the last step's beta; not used by `"cosine"`.

    Raises:
        ValueError: An option is out of range.
    """

    steps: Count = 1000
    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0

    @cached_property
    def betas(self) -> Tensor:
        """The betas of steps 1 .. T, (T,) float64."""
        if self.kind != "cosine":
            low, high = self.beta_min / self.steps, min(self.beta_max / self.steps, 0.999)
            power = 2 if self.kind == "scaled_linear" else 1
            ends = low ** (1 / power), high ** (1 / power)
            return torch.linspace(*ends, self.steps, dtype=torch.float64) ** power

        def remaining(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        whole = range(self.steps)
        betas = [1 - remaining((i + 1) / self.steps) / remaining(i / self.steps) for i in whole]
        return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)

    @cached_property
    def abar(self) -> Tensor:
        """alpha-bar after 0 .. T steps of noise, (T + 1,) float64; the first is 1."""
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - self.betas).cumprod(0)])

    def __call__(self, t: Tensor, /) -> Scales:
        """The scales at the step nearest to `t`."""
        n = (t.detach().double().cpu() * self.steps).round().long().clamp(0, self.steps)
        abar, beta = self.abar[n], self.betas[(n - 1).clamp(min=0)] * self.steps
        return Scales(t, abar.sqrt().to(t), (1 - abar).sqrt().to(t), beta.to(t))


def scales_of_images(schedule: Schedule, times: Tensor) -> Scales:
    """The scales (B, 1, 1, 1) at a time for each image (B,), in the type of the times.

    A time before the first step of a discrete chain is raised to that step, which has the least
    noise.
    """
    exact = with_noise(schedule, times.double().cpu().view(-1, 1, 1, 1))
    return Scales(*(value.to(times) for value in schedule(exact)))


def with_noise(schedule: Schedule, t: Tensor) -> Tensor:
    """The times `t`, raised to the first step of a discrete chain, before which there is no noise."""
    return t.clamp(min=1 / schedule.steps) if isinstance(schedule, Discrete) else t


class TimesOfImages:
    """The scales at falling times, the same for all images or scaled by each one's first time.

    Args:
        schedule: The noise schedule.
        times: Falling times (N + 1,).
    """

    def __init__(self, schedule: Schedule, times: Tensor):
        self.schedule, self.shares = schedule, (times / times[0]).tolist()
        self.end = float(times[-1])
        self.scales = [schedule(time) for time in times.double().cpu()]

    def at(self, i: int, start_times: Tensor | None) -> Scales:
        """The scales at time number `i`, given each image's first time (B,), or None for `times`.

        All images end at the same time, and none is before it: short paths wait there for the rest.
        """
        if start_times is None or i == len(self.shares) - 1:
            return self.scales[i]
        times = (self.shares[i] * start_times).clamp(min=self.end)
        return scales_of_images(self.schedule, times)


def chain_length(schedule: Schedule) -> int:
    """The number of steps of a schedule's chain; a continuous schedule counts as 1000 steps."""
    return schedule.steps if isinstance(schedule, Discrete) else 1000


def pixel_noise(schedule: Schedule, t: float) -> float:
    """The noise that x_t carries, in units of [0, 1] pixels: sigma / alpha / 2."""
    scales = schedule(torch.tensor(t, dtype=torch.float64))
    return float(scales.sigma / scales.alpha / 2)


def time_of_noise(schedule: Schedule, sigma: float) -> float:
    """The time at which x_t carries the pixel noise `sigma`: the inverse of `pixel_noise`.

    On a discrete chain it is the first step with at least that noise, which is the index of Carlini
    et al. (2023) plus one.

    Args:
        schedule: The noise schedule.
        sigma: A standard deviation in units of [0, 1] pixels, above 0.

    Raises:
        ValueError: `sigma` is not above 0, or exceeds the largest noise of the schedule.
    """
    largest = pixel_noise(schedule, 1.0)
    if not 0 < sigma <= largest:
        raise ValueError(
            f"sigma must be above 0 and at most {largest:.4g}, the largest noise of the schedule, in "
            f"units of [0, 1] pixels; not {sigma}"
        )
    if isinstance(schedule, Discrete):
        noise = torch.sqrt((1 - schedule.abar) / schedule.abar) / 2
        return int(torch.searchsorted(noise, sigma)) / schedule.steps
    low, high = 0.0, 1.0
    for _ in range(53):  # the binary digits of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if pixel_noise(schedule, middle) < sigma else (low, middle)
    return high
