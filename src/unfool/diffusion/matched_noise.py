"""A reverse process in fewer steps, with the same noise path as the process with all steps.

A step that goes over several fine ones takes the sum of their increments, each as large as its fine
step makes it, scaled to a standard normal. So the coarse way is what it would be on noise of its own,
and for each path of noise near the fine one: with Euler-Maruyama steps the increments are those of
one Brownian motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from unfool.diffusion.protocols import Step
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise, StreamName

Groups = tuple[tuple[float, ...], ...]  # of each coarse step, the weights of its fine steps' noise


def coarse_times(fine: int, steps: int | None) -> list[int]:
    """Which of the times 0 .. `fine` a way in `steps` steps keeps, evenly, both ends among them.

    Args:
        fine: How many steps there are.
        steps: How many to take; None is a tenth of them, but at least 5 (or all, of fewer).

    Raises:
        ValueError: There are not so many.
    """
    if steps is None:
        steps = min(max(5, -(-fine // 10)), fine)
    if not 1 <= steps <= fine:
        raise ValueError(
            f"the steps of a view must be from 1 to {fine}, the defense's own, not {steps}"
        )
    return [round(fine * k / steps) for k in range(steps + 1)]


def groups_of(step: Step, scales: Sequence[Scales], which: Sequence[int]) -> Groups:
    """How the noise of the fine steps makes that of the steps from one of `which` to the next.

    Args:
        step: A pure function that is linear in its noise.
        scales: At every fine time.
        which: What `coarse_times` returned.
    """
    still = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    sizes = [float(step(still, still, now, then, _Ones((0,)))) for now, then in pairwise(scales)]
    return tuple(_unit(sizes[a:b]) for a, b in pairwise(which))


@dataclass(frozen=True)
class Along(Noise):
    """Noise whose streams `reverse`, at any depth, are those of a way back in fewer steps.

    Attributes:
        groups: Of each coarse step, the weights of the normal numbers of its fine steps.
    """

    groups: Groups = ()

    def _step(self, name: StreamName) -> Noise:
        below = super()._step(name)
        kind = _Reverse if name == "reverse" else Along
        return kind(below.keys, below.given, self.groups)


@dataclass(frozen=True)
class _Reverse(Noise):
    """Coarse step j draws what its fine steps draw, together; all else, as the first of them."""

    groups: Groups = ()

    def _step(self, name: StreamName) -> Noise:
        if not isinstance(name, int):
            return super()._step(name)
        first = sum(len(group) for group in self.groups[:name])
        weights = self.groups[name]
        parts = tuple(super(_Reverse, self)._step(first + i) for i in range(len(weights)))
        if len(parts) == 1:
            return parts[0]
        return _Sum(parts[0].keys, parts[0].given, parts, weights)


@dataclass(frozen=True)
class _Sum(Noise):
    parts: tuple[Noise, ...] = ()
    weights: tuple[float, ...] = ()

    def normal(self, like: Tensor) -> Tensor:
        drawn = (
            weight * part.normal(like)
            for weight, part in zip(self.weights, self.parts, strict=True)
            if weight
        )
        return sum(drawn, torch.zeros_like(like))


class _Ones(Noise):
    def normal(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)


def _unit(sizes: Sequence[float]) -> tuple[float, ...]:
    length = sum(size**2 for size in sizes) ** 0.5
    return tuple(size / length if length else 0.0 for size in sizes)
