"""Samplers turn a name, or your own step, into the times and the step of a reverse process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.protocols import Step
from unfool.diffusion.reverse import (
    DDIM,
    END,
    Ancestral,
    Heun,
    churned,
    euler_maruyama,
    even,
    flow,
    karras,
    strided,
)
from unfool.diffusion.schedule import Discrete, chain_length
from unfool.ranges import Count, Share, Time, check_arguments

SamplerName = Literal["sde", "ddpm", "ddim", "ode", "heun"]
Variance = Literal["small", "large"]


class Sampler(NamedTuple):
    """The times and the step rule of a reverse process.

    Attributes:
        times: Falling times (N + 1,) from t*.
        step: The rule that goes from one time to the next.
    """

    times: Tensor
    step: Step | Heun


def make_sampler(
    denoiser: Denoiser,
    t: Time,
    steps: Count,
    sampler: SamplerName | Step,
    variance: Variance = "small",
    eta: Share = 0.0,
) -> Sampler:
    """The times and the step rule of a reverse process from `t` to a clean image.

    Args:
        denoiser: The diffusion model.
        t: t*, the time at which the reverse process starts, in (0, 1]; 0.1 is 100 of 1000 steps.
        steps: Reverse steps, each one call of the network (with `"heun"` two, except the last).
            DDPM and DDIM allow at most as many as the schedule has below t*.
        sampler: `"sde"` (Euler-Maruyama), `"ddpm"`, `"ddim"`, `"ode"` (the probability flow) or
            `"heun"` (the flow by EDM's second-order steps); or your own step, which uses the times
            of `"ddpm"`: whole steps of the schedule, down to the clean image at 0.
        variance: The variance of a `"ddpm"` step: `"small"` (posterior) or `"large"` (forward).
        eta: The share of fresh noise in `"ddim"` and `"heun"`, 0 to 1.

    Raises:
        ValueError: An option is out of range, or the schedule has fewer steps.
    """
    check_arguments(make_sampler, locals())
    chain = chain_length(denoiser.schedule)
    uses_whole_steps = callable(sampler) or sampler in ("ddpm", "ddim")
    if (uses_whole_steps or isinstance(denoiser.schedule, Discrete)) and steps > round(t * chain):
        raise ValueError(
            f"steps must be at most {round(t * chain)}, the number of the schedule's {chain} steps "
            f"below t = {t}; not {steps}"
        )
    if not uses_whole_steps and t / steps <= END:
        raise ValueError(f"steps must be below t / {END:g} = {t / END:.0f}, not {steps}")
    if callable(sampler):
        return Sampler(strided(t, steps, chain), sampler)
    if sampler == "heun":
        times = karras(denoiser.schedule, t, steps)
        if not bool((times.diff() < 0).all()):
            raise ValueError(
                f"the schedule's {chain} steps are too few for {steps} steps of `heun` below t = "
                f"{t}: take fewer steps, or a larger t"
            )
        return Sampler(times, Heun(denoiser.schedule, churned(denoiser.schedule, times, eta)))
    choices: dict[SamplerName, Step] = {
        "sde": euler_maruyama,
        "ddpm": Ancestral(variance),
        "ddim": DDIM(eta),
        "ode": flow,
    }
    times = strided(t, steps, chain) if uses_whole_steps else even(t, steps)
    return Sampler(times, choices[sampler])


Walk = Callable[[Tensor], Iterator[tuple[float, Tensor]]]


def walk_in_sequence(
    x: Tensor, walks: Sequence[tuple[float, Walk]]
) -> Iterator[tuple[float, Tensor]]:
    """Yield the states of passes, each starting where the last one ended, as (time left, state).

    Args:
        x: The state that the first pass starts from.
        walks: For each pass, the time it takes and its path: a function from its first state to
            pairs of the time left in the pass and the state.
    """
    time_left = sum(length for length, _ in walks)
    for length, walk in walks:
        time_left -= length
        for t, state in walk(x):
            x = state
            yield time_left + t, x
