"""Early elimination of classes in a diffusion classifier, so that most draws go to few classes.

An elimination rule takes the draws in rounds. After each round, it selects the classes that remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from unfool.ranges import Probability, checked_dataclass

# From the commands of the release of Li et al. (2023): total draws and kept classes per stage.
SCHEDULES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cifar10": ((50, 500), (5, 1)),
    "stl10": ((100, 500), (5, 1)),
    "pets": ((25, 250), (5, 1)),
    "food": ((20, 50, 100, 500), (20, 10, 5, 1)),
    "aircraft": ((20, 50, 100, 500), (20, 10, 5, 1)),
    "flowers": ((20, 50, 100, 500), (20, 10, 5, 1)),
    "cifar100": ((20, 50, 100, 500), (20, 10, 5, 1)),
    "imagenet": ((50, 100, 500, 1000), (500, 50, 10, 1)),
    "objectnet": ((50, 100, 500, 1000), (25, 10, 5, 1)),
}


class Elimination(Protocol):
    """An elimination rule."""

    def rounds(self, draws: int) -> list[list[int]]:
        """The draws, out of 0 .. `draws` - 1, that each round adds."""
        ...

    def remaining(
        self, errors: Tensor, weight: Tensor, alive: Tensor, round_index: int, draws: int
    ) -> Tensor:
        """A mask of the classes (B, K) that remain after round `round_index`.

        Args:
            errors: The errors of the n draws so far (B, K, n), in the order of their times. Values
                of eliminated classes are ignored.
            weight: The weights of these draws (n,).
            alive: A mask of the classes (B, K) that remained before this round.
            round_index: The number of the round, from 0.
            draws: The total number of draws.
        """
        ...


@dataclass(frozen=True)
class Stages:
    """The stages of the Diffusion Classifier (Li et al., 2023, section 3.3).

    Stage s takes an even grid of `samples[s]` of all draws, leaves out those taken before, and
    keeps the `classes_per_stage[s]` classes with the least mean error over all draws taken so far,
    on ties those with lower numbers. The last stage drops nothing: the class that it would keep is
    the answer.

    Attributes:
        samples: The number of draws in each stage's grid, increasing.
        classes_per_stage: The number of classes that each stage keeps, decreasing to 1.
    """

    samples: tuple[int, ...] = (50, 500)
    classes_per_stage: tuple[int, ...] = (5, 1)

    def __post_init__(self) -> None:
        rising = all(0 < a < b for a, b in zip(self.samples, self.samples[1:], strict=False))
        falling = all(
            a > b for a, b in zip(self.classes_per_stage, self.classes_per_stage[1:], strict=False)
        )
        if not self.samples or len(self.samples) != len(self.classes_per_stage):
            raise ValueError(
                "samples and classes_per_stage must be lists of the same length, with one number "
                "for each stage"
            )
        if not (rising and self.samples[0] > 0):
            raise ValueError(f"samples must rise from 1 or more, not {list(self.samples)}")
        if not (falling and self.classes_per_stage[-1] == 1):
            raise ValueError(
                "classes_per_stage must fall from stage to stage to 1, not "
                f"{list(self.classes_per_stage)}"
            )

    def rounds(self, draws: int) -> list[list[int]]:
        """The draws that each stage adds to the earlier ones."""
        draws_so_far: set[int] = set()
        rounds = []
        for size in self.samples:
            grid = evenly_spaced(draws, size)
            rounds.append([k for k in grid if k not in draws_so_far])
            draws_so_far |= set(grid)
        return rounds

    def remaining(
        self, errors: Tensor, weight: Tensor, alive: Tensor, round_index: int, draws: int
    ) -> Tensor:
        """A mask of the classes that remain after a stage."""
        if round_index == len(self.classes_per_stage) - 1:
            return alive
        ranked = (
            _means(errors, weight).masked_fill(~alive, torch.inf).sort(dim=1, stable=True).indices
        )
        best = torch.zeros_like(alive).scatter(
            1, ranked[:, : self.classes_per_stage[round_index]], True
        )
        return best & alive


@checked_dataclass
class Paired:
    """A rule that drops a class once a paired test shows that it is worse than the best class.

    Each round adds half as many draws again. After it, each class's errors are compared with those
    of the best class, draw by draw. A class is dropped if the mean difference is above 0 by more
    than Student's t allows, at the level `risk` divided evenly among the rounds and the K - 1
    rivals. Rounds are spread evenly over the times, so a difference that changes with the time does
    not make its mean uncertain: the standard deviation is that of draws at neighboring times, from
    their successive differences (Wolter, 2007, chapter 8). Draws are a sample without replacement
    from the full set, so it shrinks to 0 as they run out. Thus the class that is best on the full
    set is dropped with a probability of at most `risk` for an image, as far as the mean difference
    is normally distributed.

    Attributes:
        risk: The probability of a wrong elimination for an image, above 0 and below 1.
        first: The number of draws in the first round, 2 or more.
    """

    risk: Probability = 0.005
    first: Annotated[int, Field(ge=2)] = 16

    def rounds(self, draws: int) -> list[list[int]]:
        """Rounds of 16, 8, 12, 18, ... draws, which cover the times evenly after each round."""
        order = low_discrepancy_order(draws)
        ends = self._ends(draws)
        return [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def remaining(
        self, errors: Tensor, weight: Tensor, alive: Tensor, round_index: int, draws: int
    ) -> Tensor:
        """A mask of the classes that remain after a round."""
        from scipy.special import stdtrit

        used, rounds = len(weight), len(self._ends(draws))
        if used == draws:
            return alive  # all draws are used, so the means are final
        best = _means(errors, weight).masked_fill(~alive, torch.inf).argmin(1)
        gap = errors - errors[torch.arange(len(errors)), best][:, None]
        mean = _means(gap, weight)
        residual = (gap - mean[..., None]) * (used * weight / weight.sum())
        variance = residual.diff(dim=2).square().mean(2) / 2
        deviation = torch.sqrt(variance / used * (1 - used / draws))
        level = self.risk / (rounds * max(1, alive.shape[1] - 1))
        degrees_of_freedom = 2 / 3 * (used - 1)  # below used - 1, as successive differences overlap
        return alive & ~(mean > -float(stdtrit(degrees_of_freedom, level)) * deviation)

    def _ends(self, draws: int) -> list[int]:
        ends = [min(self.first, draws)]
        while ends[-1] < draws:
            ends.append(min(ends[-1] + (ends[-1] + 1) // 2, draws))
        return ends


def evenly_spaced(total: int, size: int) -> list[int]:
    """The middle numbers of `size` even parts of 0 .. `total` - 1."""
    return [(2 * k + 1) * total // (2 * size) for k in range(size)]


def low_discrepancy_order(total: int) -> list[int]:
    """The numbers 0 .. `total` - 1 in an order of which every prefix is spread evenly.

    They are the cells into which successive multiples of the golden ratio, modulo 1, fall.
    """
    golden = (5**0.5 - 1) / 2
    # neighbors among n multiples are at most 2.7 / n apart, so 3 per cell reach every cell
    return list(dict.fromkeys(int((i + 0.5) * golden % 1 * total) for i in range(3 * total)))


def make_elimination(
    name: str | None,
    samples: Sequence[int] | None = None,
    classes_per_stage: Sequence[int] | None = None,
    risk: float = 0.005,
) -> Elimination | None:
    """Make the elimination rule of a diffusion classifier's options; None means no elimination.

    Args:
        name: `"paired"`, `"staged"`, one of `SCHEDULES`, or None.
        samples: The draws of each stage, for `"staged"`.
        classes_per_stage: The number of classes that each stage keeps, for `"staged"`.
        risk: The probability of a wrong elimination, for `"paired"`.

    Raises:
        ValueError: There is no such rule, or the options do not belong to it.
    """
    if (samples is None) != (classes_per_stage is None) or (name == "staged") != (
        samples is not None
    ):
        raise ValueError(
            "samples and classes_per_stage belong to the elimination `staged`, which needs both"
        )
    if samples is not None and classes_per_stage is not None:
        return Stages(tuple(samples), tuple(classes_per_stage))
    if name is None:
        return None
    if name == "paired":
        return Paired(risk)
    if name not in SCHEDULES:
        names = ", ".join(["paired", "staged", *SCHEDULES])
        raise ValueError(f"elimination must be one of {names}, or null for none; not {name!r}")
    return Stages(*SCHEDULES[name])


def _means(errors: Tensor, weight: Tensor) -> Tensor:
    return errors @ (weight / weight.sum())
