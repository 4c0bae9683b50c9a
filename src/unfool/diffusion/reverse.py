"""The reverse process: from x_t back to x_0, one step at a time, differentiable end to end.

A `Step` is a pure function from the state and the denoiser's estimate of x_0 to the next state; a
`Correction` changes that estimate, and a `Guide` adds a term to the score. Most purifiers of the
package are this loop with a choice of step, times, and possibly a correction or a guide.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.gradient import chain, twice_differentiable
from unfool.diffusion.per_step_loss import forward_path
from unfool.diffusion.protocols import Correction, Guide, ImageGuide, Step
from unfool.diffusion.schedule import (
    Discrete,
    Scales,
    Schedule,
    TimesOfImages,
    first_time,
    pixel_noise,
    time_of_noise,
)
from unfool.noise import Noise
from unfool.ranges import Positive, Share

END = 1e-5  # the time at which DiffPure ends the reverse SDE and the ODE
SMALLEST_NOISE, RHO = 0.002, 7  # EDM's times: the smallest noise above 0, in [-1, 1] units, and rho
CHURN_FACTOR = 6  # DPEDM: how much noise is added, and for which sigma / alpha
CHURNED_RANGE = 0.01, 0.46

Estimate = Callable[[Tensor, Scales], Tensor]


def euler_maruyama(x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise) -> Tensor:
    """An Euler-Maruyama step of the reverse SDE, as in DiffPure (Nie et al., 2022, equation 6)."""
    h = now.t - then.t
    drift = now.beta * (0.5 * x_t + _score(x_t, x_hat, now))
    return x_t + h * drift + torch.sqrt(now.beta * h) * noise.normal(x_t)


def flow(x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise) -> Tensor:
    """An Euler step of the probability-flow ODE (Song et al., 2021), without random draws."""
    return x_t + (now.t - then.t) * 0.5 * now.beta * (x_t + _score(x_t, x_hat, now))


@dataclass(frozen=True)
class Ancestral:
    """A DDPM step (Ho et al., 2020, section 3.2), between any two times.

    Attributes:
        variance: `"small"` is the variance of the posterior, `"large"` that of the forward step.
    """

    variance: Literal["small", "large"] = "small"

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """The posterior mean, plus noise unless `then` is the clean image."""
        ratio = now.alpha / then.alpha
        beta = now.sigma**2 - (ratio * then.sigma) ** 2  # 1 - ratio^2 would cancel in float32
        mean = (beta * then.alpha * x_hat + then.sigma**2 * ratio * x_t) / now.sigma**2
        if not bool((then.sigma > 0).any()):
            return mean
        deviation = torch.sqrt(beta)
        if self.variance == "small":
            deviation = deviation * then.sigma / now.sigma
        return mean + deviation * noise.normal(x_t)


@dataclass(frozen=True)
class DDIM:
    """A DDIM step (Song et al., 2021, equation 12): deterministic for `eta` 0, ancestral for 1.

    Attributes:
        eta: The share of fresh noise.
    """

    eta: Share = 0.0

    def __call__(
        self, x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """x_hat, noised again with the noise that the model sees in x_t and with fresh noise."""
        eps = (x_t - now.alpha * x_hat) / now.sigma
        if not self.eta:
            return then.alpha * x_hat + then.sigma * eps
        if not bool((then.sigma > 0).any()):
            return then.alpha * x_hat  # the roots below are 0, and have no derivative there
        beta = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2  # as in `Ancestral`
        fresh = self.eta * then.sigma / now.sigma * torch.sqrt(beta.clamp(min=0))
        kept = torch.sqrt((then.sigma**2 - fresh**2).clamp(min=0))
        return then.alpha * x_hat + kept * eps + fresh * noise.normal(x_t)


@dataclass(frozen=True)
class Heun:
    """A step of the stochastic Heun sampler (Karras et al., 2022, algorithm 2), for any model.

    It adds noise to x_t up to the time `raised[t]`, if there is one, and takes a second-order step
    of the probability flow from there, in EDM's variables x / alpha and sigma / alpha. It calls the
    denoiser twice (once in the last step, to the clean image), so it is not a `Step`, which gets
    one estimate.

    Attributes:
        schedule: The schedule of the denoiser.
        raised: Maps times to later times, up to which noise is added; if empty, nothing is drawn.
        inflation: The standard deviation of the added noise (S_noise).
    """

    schedule: Schedule
    raised: Mapping[Share, Share] = field(default_factory=dict)
    inflation: Positive = 1.007

    def solve(
        self, estimate: Estimate, x_t: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """The state at the scales `then`, given x_t at `now` and `estimate` for E[x_0 | x_t]."""
        z, at = x_t / now.alpha, now
        if (later := self.raised.get(float(now.t))) is not None:
            at = self.schedule(torch.tensor(later, dtype=torch.float64))
            added = torch.square(at.sigma / at.alpha) - torch.square(now.sigma / now.alpha)
            z = z + self.inflation * torch.sqrt(added) * noise.normal(x_t)
        size, next_size = at.sigma / at.alpha, then.sigma / then.alpha
        slope = (z - estimate(at.alpha * z, at)) / size
        next_z = z + (next_size - size) * slope
        if bool(next_size > 0):
            next_slope = (next_z - estimate(then.alpha * next_z, then)) / next_size
            next_z = z + (next_size - size) / 2 * (slope + next_slope)
        return then.alpha * next_z


def reverse(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    step: Step | Heun,
    guide: Guide | ImageGuide | None = None,
    correction: Correction | None = None,
    image: Tensor | None = None,
    label: Tensor | None = None,
    other_inputs: tuple[Tensor, ...] = (),
    start_times: Tensor | None = None,
) -> Tensor:
    """Run the reverse process from `x` through `times`, from the first to the last.

    In each step, the denoiser estimates x_hat, the correction and then the guide change it, and the
    step computes the next state from it.

    The gradient is exact, and its memory does not grow with the number of steps
    (`diffusion.gradient`). It reaches `x`, `image`, the denoiser's weights where they are trained,
    and the tensors in `other_inputs`, which a guide may use. It does not reach other tensors that a
    guide or a correction holds.

    Args:
        denoiser: The model.
        x: States (B, C, H, W) in the denoiser's space, at `times[0]`.
        times: Falling times (N + 1,), for N steps.
        noise: Step i draws from `noise.child(i)`, its guide from the stream `guide` below that.
        step: The rule that computes the next state, such as `Ancestral()`.
        guide: A term to add to the score, or None.
        correction: A change of each estimate of x_0, or None.
        image: The image that is purified (B, C, H, W), in the denoiser's space, if the correction
            or the guide needs it; else None.
        label: Class labels (B,) for a conditional denoiser.
        other_inputs: Other tensors a guide uses that may need a gradient.
        start_times: The first time of each image (B,), which also gets a gradient. Its other times
            are in proportion, except the last, which is the same for all. None is `times[0]` for
            all. It cannot be used with `Heun`.

    Raises:
        ValueError: The correction or the guide needs `image`, and it is None.
    """
    scales = TimesOfImages(denoiser.schedule, times)
    options = _StepOptions(denoiser, step, guide, correction, image, label)
    detached_times = None if start_times is None else start_times.detach()
    path = forward_path(image, x, lambda i: scales.at(i, detached_times), len(times))
    if path is not None and image is not None:
        x = path.begin(x, image)

    def advance(i: int, state: Tensor) -> Tensor:
        x_t, t = (state, None) if start_times is None else (state[:, :-1], state[:, -1, 0, 0])
        step_noise = noise.child(i)
        if draws_ahead(step, x_t) and times[i + 1] > 0:
            step_noise = step_noise.drawn_ahead(x_t)
        then = options.advance(x_t, scales.at(i, t), scales.at(i + 1, t), step_noise)
        then = then if path is None else path.add_deviation(then, i)
        return then if start_times is None else torch.cat([then, state[:, -1:]], 1)

    weights = tuple(p for p in denoiser.parameters() if p.requires_grad)
    needed = (*options.differentiated_inputs(), *other_inputs, *weights)
    if start_times is None:
        return chain(advance, x, len(times) - 1, needed, denoiser, options.kind())
    # The times travel with the states as a channel, so that gradients reach them.
    state = torch.cat([x, start_times.to(x)[:, None, None, None].expand_as(x[:, :1])], 1)
    return chain(advance, state, len(times) - 1, needed, denoiser, options.kind())[:, :-1]


def draws_ahead(step: Step | Heun, x_t: Tensor) -> bool:
    """Whether to draw the noise of a step while its denoiser's kernels are launched.

    On a CPU, drawing and computing at the same time is no faster.
    """
    return x_t.is_cuda and step is not flow and getattr(step, "eta", 1) != 0


def walk(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    step: Step | Heun,
    guide: Guide | ImageGuide | None = None,
    correction: Correction | None = None,
    image: Tensor | None = None,
    label: Tensor | None = None,
    start_times: Tensor | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Yield the states of `reverse` as (time, x_t) pairs, from the first to the last.

    Even if each image has times of its own, the pairs contain `times`.
    """
    scales = TimesOfImages(denoiser.schedule, times)
    options = _StepOptions(denoiser, step, guide, correction, image, label)
    yield float(times[0]), x
    t = None if start_times is None else start_times.to(x)
    for i in range(len(times) - 1):
        x = options.advance(x, scales.at(i, t), scales.at(i + 1, t), noise.child(i))
        yield float(times[i + 1]), x


def scales_along(denoiser: Denoiser, times: Tensor) -> list[Scales]:
    """The scales at each time, as float64 scalars on the CPU.

    Scalars (shape ()) do not change the type of images, and combine with images on any device.
    """
    return [denoiser.schedule(time) for time in times.double().cpu()]


def even(start: float, steps: int, end: float = END) -> Tensor:
    """The times of DiffPure: `steps` even steps from `start` to 0, the last cut short at `end`."""
    times = start * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)
    times[-1] = end
    return times


def karras(schedule: Schedule, start: float, steps: int) -> Tensor:
    """The times of EDM (Karras et al., 2022, equation 5): from `start` to SMALLEST_NOISE, then 0.

    In between, (sigma / alpha)^(1 / 7) falls evenly. On a discrete chain, each time is the first
    step with at least that noise, and none is below the chain's first step.
    """
    smallest = max(SMALLEST_NOISE, 2 * pixel_noise(schedule, first_time(schedule)))
    largest, end = (2 * pixel_noise(schedule, start)) ** (1 / RHO), smallest ** (1 / RHO)
    parts = [i / max(steps - 1, 1) for i in range(1, steps)]
    sizes = [(largest + part * (end - largest)) ** RHO for part in parts]
    # a little less than `size`, so that rounding errors do not skip a step
    times = [time_of_noise(schedule, size / 2 * (1 - 1e-12)) for size in sizes]
    return torch.tensor([start, *times, 0.0], dtype=torch.float64)


def churned(schedule: Schedule, times: Tensor, share: float) -> dict[float, float]:
    """Map each time at which noise is added to the later time that has the increased noise.

    As in DPEDM (Liu et al., 2025, for CIFAR-10), sigma / alpha from 0.01 to 0.46 is multiplied by
    1 + 6 `share` / N, but at most by sqrt(2). On a discrete chain, the later time is the nearest
    step; no noise is added if that is the same step.
    """
    increase = min(share * CHURN_FACTOR / (len(times) - 1), 2**0.5 - 1)
    sizes = {float(t): 2 * pixel_noise(schedule, float(t)) for t in times[:-1]}
    low, high = CHURNED_RANGE
    later = {
        t: _time_near(schedule, size * (1 + increase) / 2)
        for t, size in sizes.items()
        if low <= size <= high
    }
    return {t: later_time for t, later_time in later.items() if later_time > t + 1e-9}


def _time_near(schedule: Schedule, sigma: float) -> float:
    """The time whose pixel noise is nearest to `sigma`."""
    t = time_of_noise(schedule, sigma)
    if not isinstance(schedule, Discrete):
        return t
    before = t - 1 / schedule.steps
    gaps = {at: abs(pixel_noise(schedule, at) - sigma) for at in (before, t)}
    return min(gaps, key=lambda at: gaps[at])


def strided(start: float, steps: int, chain: int) -> Tensor:
    """Evenly spaced times of a discrete chain of `chain` steps, from `start` to the clean image.

    There are `steps` steps between them, each of which costs one call of the network.
    """
    length = round(start * chain)
    step_numbers = (length * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)).round()
    return step_numbers / chain


@dataclass(frozen=True)
class _StepOptions:
    """The arguments of `reverse` that are the same in all steps."""

    denoiser: Denoiser
    step: Step | Heun
    guide: Guide | ImageGuide | None
    correction: Correction | None
    image: Tensor | None
    label: Tensor | None

    def __post_init__(self) -> None:
        if self._uses_image() and self.image is None:
            raise ValueError(
                "the correction or the guide needs the image that is purified: pass it as `image`"
            )

    def differentiated_inputs(self) -> tuple[Tensor, ...]:
        """The image, if the guide or the correction uses it."""
        return (self.image,) if self.image is not None and self._uses_image() else ()

    def kind(self) -> tuple[type, ...]:
        """What the memory of a step's graph depends on, besides the denoiser."""
        return type(self.step), type(self.guide), type(self.correction)

    def advance(self, x_t: Tensor, now: Scales, then: Scales, noise: Noise) -> Tensor:
        """The state at `then`, given x_t at `now`."""

        def estimate(x_t: Tensor, at: Scales) -> Tensor:
            if self.guide is None:
                return self._estimate(x_t, at)
            return self._guided(self.guide, x_t, at, then, noise.child("guide"))

        if isinstance(self.step, Heun):
            return self.step.solve(estimate, x_t, now, then, noise)
        return self.step(x_t, estimate(x_t, now), now, then, noise)

    def _uses_image(self) -> bool:
        return self.correction is not None or isinstance(self.guide, ImageGuide)

    def _estimate(self, x_t: Tensor, now: Scales) -> Tensor:
        """The denoiser's estimate of x_0, corrected."""
        x_hat = self.denoiser(x_t, now.t, self.label)
        if self.correction is None:
            return x_hat
        image: Any = self.image  # not None, as `__post_init__` checked
        return _require_shape("correction", self.correction(x_hat, image, now), x_hat)

    def _guided(
        self, guide: Guide | ImageGuide, x_t: Tensor, now: Scales, then: Scales, noise: Noise
    ) -> Tensor:
        """The estimate of x_0, corrected and moved by the guide."""
        enabled, deep = torch.is_grad_enabled(), getattr(guide, "deep", False)
        with torch.set_grad_enabled(enabled or deep):
            at = x_t.detach().requires_grad_() if deep and not x_t.requires_grad else x_t
            with twice_differentiable() if deep else nullcontext():
                x_hat = self._estimate(at, now)
        image: Any = self.image
        image_guide: Guide = guide.for_images(image) if isinstance(guide, ImageGuide) else guide
        term = _require_shape("guide", image_guide(at, x_hat, now, then, noise), x_hat)
        if not enabled:
            x_hat, term = x_hat.detach(), term.detach()
        # a term g of the score moves x_hat by (sigma^2 / alpha) g
        return x_hat + now.sigma**2 / now.alpha * term


def _require_shape(name: str, answer: Tensor, like: Tensor) -> Tensor:
    if answer.shape != like.shape:
        raise ValueError(
            f"the {name} must return a tensor of the images' shape {tuple(like.shape)}, and "
            f"returned {tuple(answer.shape)}"
        )
    return answer


def ascent(potential: Callable[[Tensor], Tensor], x_t: Tensor) -> Tensor:
    """The gradient, with respect to `x_t`, of a potential (B,) of each image; shaped like `x_t`.

    It can be differentiated again if gradients are enabled (for the second derivatives of a guide),
    and keeps no graph if they are not.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), twice_differentiable():
        at = x_t if x_t.requires_grad else x_t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(potential(at).sum(), at, create_graph=differentiable)
    return gradient if differentiable else gradient.detach()


def _score(x_t: Tensor, x_hat: Tensor, now: Scales) -> Tensor:
    return (now.alpha * x_hat - x_t) / now.sigma**2
