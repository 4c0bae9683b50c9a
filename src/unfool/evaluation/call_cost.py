"""What an image costs by each way to ask a part of a model, timed on a few calls.

A call of n images takes about a + b n seconds: a alone can be ten times as much as an image of a large
call takes. So calls are timed at growing sizes, those first that the evaluation spends the most on, and
what a call of the run takes is read off the line through the two largest.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from unfool.data import fetch
from unfool.evaluation.cost import CallCounter
from unfool.evaluation.dry_run import Call, DryRun
from unfool.evaluation.prepare import Prepared
from unfool.noise import Noise

CALLS = ("nfe_forward", "nfe_vjp", "classifier_forward", "classifier_vjp")
GROWTH = 4  # how many times as many images the next call has
SHORT = 0.02  # seconds: of calls that take less, the quickest of `REPEATS` counts
REPEATS = 3
DIFFERENT = 16  # images in a timed call, repeated if it has more: some are slow to read
PATIENCE = 10  # times the budget: a first call that takes longer is not repeated


@dataclass(frozen=True)
class Cost:
    """What something costs per image.

    Attributes:
        calls: By name (`cost.CallCounter`): images through a network.
        seconds: On the machine where it was timed.
    """

    calls: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        calls = {key: self.calls.get(key, 0) + other.calls.get(key, 0) for key in CALLS}
        return Cost(calls, self.seconds + other.seconds)

    def __mul__(self, times: float) -> "Cost":
        return Cost({key: times * n for key, n in self.calls.items()}, times * self.seconds)


@dataclass
class TimedCalls:
    """Calls of one kind that were timed, each of more images than the one before.

    Attributes:
        make: Makes a call of so many images; returns its seconds, and its calls of networks per image.
        most: Images in the largest call of the run.
        patience: Seconds; a first call that takes longer is not repeated, and no larger one is made.
        took: Images and seconds of each call.
        calls: What the last one counted (`cost.CallCounter`), per image.
    """

    make: Callable[[int], tuple[float, dict[str, float]]]
    most: int
    patience: float
    took: list[tuple[int, float]] = field(default_factory=list)
    calls: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        took, self.calls = self.make(1)  # makes things ready, so it does not count
        if took > self.patience:
            self.took, self.most = [(1, took)], 1
        else:
            self.took = [(1, self._quickest(1, took))]

    @property
    def size(self) -> int:
        """Images in the largest call that was timed."""
        return self.took[-1][0]

    @property
    def next_size(self) -> int:
        """Images in the next call to time."""
        return min(GROWTH * self.size, self.most)

    @property
    def each(self) -> float:
        """Seconds that an image is expected to take in the largest call of the run."""
        return self.seconds(self.most) / self.most

    def seconds(self, size: int) -> float:
        """What a call is expected to take that has at least as many images as those that were timed."""
        n, last = self.took[-1]
        slope = last / n
        if len(self.took) > 1:
            before, earlier = self.took[-2]
            slope = min(max((last - earlier) / (n - before), 0.0), slope)
        return last + slope * (size - n)

    def fits(self, budget: float) -> bool:
        """Whether a larger call of the run is left, and is expected to take no more than `budget`."""
        expected = self.seconds(self.next_size)
        if len(self.took) < 2:
            expected /= 2  # which took all of the time of one image as that of a + b n with a = 0
        return self.size < self.most and expected <= budget

    def grow(self) -> None:
        """Time a larger call. Where memory is too small for it, there will be none."""
        size = self.next_size
        try:
            self.took.append((size, self._quickest(size, self.seconds(size))))
        except torch.OutOfMemoryError:
            self.most = self.size  # the run will find out, and go on with fewer images in a call

    def _quickest(self, size: int, expected: float) -> float:
        """The quickest of some short calls, or of two where the first was held up by something else."""
        took = math.inf
        for repeat in range(REPEATS):
            seconds, self.calls = self.make(size)
            took = min(took, seconds)
            if took >= SHORT and (repeat or took <= 2 * expected or took > self.patience):
                break
        return took


def call_costs(
    made: Prepared, played: DryRun, block: int, rows: int, budget: float
) -> tuple[dict[Call, Cost], int]:
    """What one image costs by each way to ask, and how many images the largest timed call had.

    Args:
        made: The parts of the evaluation, executed as in the run.
        played: How its parts are asked.
        block: Images that are attacked together.
        rows: The most images of a call.
        budget: Seconds for calls of more than one image.
    """
    block = min(block, len(made.indices))
    asked = sum(played.asked.values(), Counter[Call]())
    found = {
        kind: TimedCalls(
            partial(_call, made, played.parts[kind.part], kind.how),
            min(rows, block * played.most[kind]),  # no call of the run is larger
            PATIENCE * budget,
        )
        for kind in asked
    }
    while left := [kind for kind in found if found[kind].fits(budget)]:
        began = time.perf_counter()
        found[max(left, key=lambda kind: found[kind].each * asked[kind])].grow()
        budget -= time.perf_counter() - began
    costs = {kind: Cost(calls.calls, calls.each) for kind, calls in found.items()}
    return costs, max((calls.size for calls in found.values()), default=1)


def _call(made: Prepared, part: Any, how: str, size: int) -> tuple[float, dict[str, float]]:
    """The seconds of a call of `size` images, and the calls of networks per image."""
    few = fetch(made.data, made.indices[: min(size, DIFFERENT)])[0]
    x = few[torch.arange(size) % len(few)].to(made.device).requires_grad_(how == "gradient")
    noise, counter = Noise.of(0, range(size)), CallCounter()
    began = time.perf_counter()
    with counter.watching(made.model), torch.set_grad_enabled(how == "gradient"):
        out = part.decide(x, noise) if how == "decide" else part(x, noise)
        if how == "gradient":
            (out,) = torch.autograd.grad(out.square().sum(), x)
        out.flatten()[0].item()  # waits for the device
    took = time.perf_counter() - began
    return took, {key: count / size for key, count in counter.take().items()}
