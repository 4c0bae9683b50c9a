"""A purifier with fewer steps, which an attacker differentiates to save time."""

from copy import copy
from typing import Any

from unfool.diffusion.matched_noise import Along, Groups, coarse_times, groups_of
from unfool.diffusion.reverse import DDIM, Ancestral, Heun, euler_maruyama, flow, scales_along
from unfool.protocols import Purifier


def with_fewer_steps(purifier: Any, steps: int | None, matched: bool) -> Purifier:
    """A purifier with fewer of its own steps back, at times among its own.

    Args:
        purifier: It goes from one of its `times` to the next by its `step`, on its stream `reverse`.
        steps: How many are left; None is a tenth, but at least 5 (or all, of fewer).
        matched: On the same path of noise (see `diffusion.matched_noise`), or on noise of its own.

    Raises:
        ValueError: It has not so many, or goes by `heun`, whose noise depends on how many it has; or
            it is to be matched, and goes by a step of one's own.
    """
    if isinstance(purifier.step, Heun):
        raise ValueError("the sampler `heun` has no view with fewer steps: use the view `exact`")
    if matched and not _adds_up(purifier.step):
        raise ValueError(
            "fewer steps with the same noise need the sampler `sde`, `ddpm`, `ddim`, or `ode`, not "
            "a step of your own: use the view `surrogate` or `exact`"
        )
    which = coarse_times(len(purifier.times) - 1, steps)
    shorter = copy(purifier)  # it shares the networks
    shorter.times, shorter.steps = purifier.times[which], len(which) - 1
    if not matched:
        return apart(shorter)
    scales = scales_along(purifier.denoiser, purifier.times)
    return along(shorter, groups_of(purifier.step, scales, which))


def along(purifier: Purifier, groups: Groups) -> Purifier:
    """A purifier of few steps on the path of noise of one with more."""
    return lambda x, noise: purifier(x, Along(noise.keys, noise.given, groups))


def apart(purifier: Purifier) -> Purifier:
    """A purifier on noise of its own, unrelated to that of the model it stands in for."""
    return lambda x, noise: purifier(x, noise.child("surrogate"))


def _adds_up(step: Any) -> bool:
    """Whether a step's noise is known to be added, times a number that the scales alone set."""
    return isinstance(step, Ancestral | DDIM) or step in (euler_maruyama, flow)
