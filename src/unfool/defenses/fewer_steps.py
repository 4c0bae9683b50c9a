"""A purifier with fewer steps, which an attack differentiates to save time."""

from copy import copy
from typing import Any

from unfool.diffusion.matched_noise import CoarseNoise, Groups, coarse_times, groups_of
from unfool.diffusion.reverse import DDIM, Ancestral, Heun, euler_maruyama, flow, scales_along
from unfool.protocols import Purifier


def with_fewer_steps(purifier: Any, steps: int | None, matched: bool) -> Purifier:
    """Make a purifier that takes fewer reverse steps, between some of its own times.

    Args:
        purifier: A purifier that takes a `step` between two of its `times`, on its stream
            `reverse`.
        steps: The number of steps to take; None is a tenth, but at least 5 (or all, if fewer).
        matched: Whether to use the same noise path (see `diffusion.matched_noise`) or independent
            noise.

    Raises:
        ValueError: The purifier has fewer steps, or its sampler is `heun`, whose noise depends on
            their number; or `matched` is true and the step is your own.
    """
    if isinstance(purifier.step, Heun):
        raise ValueError("the sampler `heun` has no view with fewer steps: use the view `exact`")
    if matched and not _adds_scaled_noise(purifier.step):
        raise ValueError(
            "fewer steps with the same noise need the sampler `sde`, `ddpm`, `ddim`, or `ode`, not "
            "a step of your own: use the view `surrogate` or `exact`"
        )
    which = coarse_times(len(purifier.times) - 1, steps)
    shorter = copy(purifier)  # it shares the networks
    shorter.times, shorter.steps = purifier.times[which], len(which) - 1
    if not matched:
        return on_independent_noise(shorter)
    scales = scales_along(purifier.denoiser, purifier.times)
    return on_same_noise(shorter, groups_of(purifier.step, scales, which))


def on_same_noise(purifier: Purifier, groups: Groups) -> Purifier:
    """A purifier of few steps on the noise path of one with more steps."""
    return lambda x, noise: purifier(x, CoarseNoise(noise.keys, noise.known_noise, groups))


def on_independent_noise(purifier: Purifier) -> Purifier:
    """A purifier on independent noise, unrelated to that of the model it stands in for."""
    return lambda x, noise: purifier(x, noise.child("surrogate"))


def _adds_scaled_noise(step: Any) -> bool:
    """Whether a step is known to add its noise times a factor that depends on the scales only."""
    return isinstance(step, Ancestral | DDIM) or step in (euler_maruyama, flow)
