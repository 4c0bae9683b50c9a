"""A reverse process in fewer steps, with the same noise path as the process with all steps.

A coarse step that spans several fine steps takes the sum of their noise, weighted as in the fine
steps and scaled to a standard normal. So the coarse process has the same distribution as with noise
of its own, and on each noise path it stays close to the fine process: with Euler-Maruyama steps,
the increments are those of one Brownian motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from unfool.diffusion.protocols import Step
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise, StreamName

Groups = tuple[tuple[float, ...], ...]  # for each coarse step, the weights of its fine steps' noise


def coarse_times(fine: int, steps: int | None) -> list[int]:
    """The indices out of 0 .. `fine` that `steps` steps keep: evenly spaced, with both ends.

    Args:
        fine: The number of fine steps.
        steps: The number of steps to keep; None is a tenth, but at least 5 (or all, if fewer).

    Raises:
        ValueError: `steps` is below 1 or above `fine`.
    """
    if steps is None:
        steps = min(max(5, -(-fine // 10)), fine)
    if not 1 <= steps <= fine:
        raise ValueError(
            f"the steps of a view must be from 1 to {fine}, the defense's own, not {steps}"
        )
    return [round(fine * k / steps) for k in range(steps + 1)]


def groups_of(step: Step, scales: Sequence[Scales], which: Sequence[int]) -> Groups:
    """Compute the weights with which the noise of fine steps adds up to that of coarse steps.

    Args:
        step: A pure function that is linear in its noise.
        scales: The scales at every fine time.
        which: The times between which coarse steps go, from `coarse_times`.
    """
    zeros = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    sizes = [float(step(zeros, zeros, now, then, _Ones((0,)))) for now, then in pairwise(scales)]
    return tuple(_unit(sizes[a:b]) for a, b in pairwise(which))


@dataclass(frozen=True)
class CoarseNoise(Noise):
    """Noise whose streams named `reverse`, at any depth, are those of a process in fewer steps.

    Attributes:
        groups: For each coarse step, the weights of its fine steps' normal draws.
    """

    groups: Groups = ()

    def _step(self, name: StreamName) -> Noise:
        stream = super()._step(name)
        kind = _Reverse if name == "reverse" else CoarseNoise
        return kind(stream.keys, stream.known_noise, self.groups)


@dataclass(frozen=True)
class _Reverse(Noise):
    """Noise whose step j sums the normal draws of its fine steps; all else is the first one's."""

    groups: Groups = ()

    def _step(self, name: StreamName) -> Noise:
        if not isinstance(name, int):
            return super()._step(name)
        first = sum(len(group) for group in self.groups[:name])
        weights = self.groups[name]
        parts = tuple(super(_Reverse, self)._step(first + i) for i in range(len(weights)))
        if len(parts) == 1:
            return parts[0]
        return _Sum(parts[0].keys, parts[0].known_noise, parts, weights)


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

    def drawn_ahead(self, like: Tensor) -> Noise:
        return replace(self, parts=tuple(part.drawn_ahead(like) for part in self.parts))


class _Ones(Noise):
    def normal(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)


def _unit(sizes: Sequence[float]) -> tuple[float, ...]:
    length = sum(size**2 for size in sizes) ** 0.5
    return tuple(size / length if length else 0.0 for size in sizes)
