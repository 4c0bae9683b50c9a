"""Measures the cost per image of each kind of call to a part of a model, from a few timed calls.

A call of n images takes about a + b n seconds, where the fixed cost a can be ten times the cost b
of another image. So calls are timed at growing sizes, and the kind that is expected to take the
most time in the evaluation comes first. The time of a call of the run is extrapolated from
the two largest timed calls.
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
GROWTH = 4  # how many times as many images each timed call has as the one before
SHORT = 0.02  # seconds: for shorter calls, the fastest of `REPEATS` counts
REPEATS = 3
DIFFERENT = 16  # distinct images in a timed call, as some data sets are slow to read
PATIENCE = 10  # times the budget: a longer first call is not repeated


@dataclass(frozen=True)
class Cost:
    """Network calls and time, usually per image.

    Attributes:
        calls: By name (`cost.CallCounter`), the images that pass through a network.
        seconds: Time on the machine where it was measured.
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
    """The timed calls of one kind, each with more images than the one before.

    Attributes:
        make: Makes a call with a given number of images; returns its seconds, and its network calls
            per image.
        max_size: Images in the largest call of the run; lowered if larger calls cannot be timed.
        patience: Seconds; a first call that takes longer is not repeated, and no larger one is
            made.
        took: Images and seconds of each call.
        calls: Network calls per image (`cost.CallCounter`) of the last call.
    """

    make: Callable[[int], tuple[float, dict[str, float]]]
    max_size: int
    patience: float
    took: list[tuple[int, float]] = field(default_factory=list)
    calls: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        took, self.calls = self.make(1)  # a warm-up: its time counts only if it is too long
        if took > self.patience:
            self.took, self.max_size = [(1, took)], 1
        else:
            self.took = [(1, self._quickest(1, took))]

    @property
    def size(self) -> int:
        """Images in the largest timed call."""
        return self.took[-1][0]

    @property
    def next_size(self) -> int:
        """Images in the next call to time."""
        return min(GROWTH * self.size, self.max_size)

    @property
    def seconds_per_image(self) -> float:
        """Expected seconds per image in the largest call of the run."""
        return self.seconds(self.max_size) / self.max_size

    def seconds(self, size: int) -> float:
        """Return the expected seconds of a call of `size` images, at least as many as timed."""
        n, last = self.took[-1]
        slope = last / n
        if len(self.took) > 1:
            before, earlier = self.took[-2]
            slope = min(max((last - earlier) / (n - before), 0.0), slope)
        return last + slope * (size - n)

    def fits(self, budget: float) -> bool:
        """Whether a larger call can still be timed, and is expected to take at most `budget`."""
        expected = self.seconds(self.next_size)
        if len(self.took) < 2:
            expected /= 2  # with one size, `seconds` assumes a = 0, which is too pessimistic
        return self.size < self.max_size and expected <= budget

    def grow(self) -> None:
        """Time a larger call. If it runs out of memory, no more calls are timed."""
        size = self.next_size
        try:
            self.took.append((size, self._quickest(size, self.seconds(size))))
        except torch.OutOfMemoryError:
            self.max_size = self.size  # the run also continues with fewer images per call

    def _quickest(self, size: int, expected: float) -> float:
        """Return the fastest of several short calls, or of two if the first was too slow."""
        took = math.inf
        for repeat in range(REPEATS):
            seconds, self.calls = self.make(size)
            took = min(took, seconds)
            if took >= SHORT and (repeat or took <= 2 * expected or took > self.patience):
                break
        return took


def call_costs(
    prepared: Prepared, dry: DryRun, block: int, batch_size: int, budget: float
) -> tuple[dict[Call, Cost], int]:
    """Measure the cost per image of each kind of call.

    Args:
        prepared: The prepared evaluation, executed as in the run.
        dry: How the evaluation calls the parts of the model.
        block: Images that are attacked together.
        batch_size: The largest number of images in a call.
        budget: Seconds for calls of more than one image.

    Returns:
        The cost per image by kind of call, and the number of images in the largest timed call.
    """
    block = min(block, len(prepared.indices))
    images = sum(dry.calls.values(), Counter[Call]())
    timed = {
        kind: TimedCalls(
            partial(_call, prepared, dry.parts[kind.part], kind.how),
            min(batch_size, block * dry.largest_call[kind]),  # no call of the run is larger
            PATIENCE * budget,
        )
        for kind in images
    }
    while unfinished := [kind for kind in timed if timed[kind].fits(budget)]:
        began = time.perf_counter()
        timed[max(unfinished, key=lambda kind: timed[kind].seconds_per_image * images[kind])].grow()
        budget -= time.perf_counter() - began
    costs = {kind: Cost(calls.calls, calls.seconds_per_image) for kind, calls in timed.items()}
    return costs, max((calls.size for calls in timed.values()), default=1)


def _call(prepared: Prepared, part: Any, how: str, size: int) -> tuple[float, dict[str, float]]:
    """Time a call of `size` images; return its seconds and its network calls per image."""
    distinct = fetch(prepared.data, prepared.indices[: min(size, DIFFERENT)])[0]
    x = distinct[torch.arange(size) % len(distinct)].to(prepared.device)
    x.requires_grad_(how == "gradient")
    noise, counter = Noise.of(0, range(size)), CallCounter()
    began = time.perf_counter()
    with counter.watching(prepared.model), torch.set_grad_enabled(how == "gradient"):
        out = part.decide(x, noise) if how == "decide" else part(x, noise)
        if how == "gradient":
            (out,) = torch.autograd.grad(out.square().sum(), x)
        out.flatten()[0].item()  # waits for the device
    took = time.perf_counter() - began
    return took, {key: count / size for key, count in counter.take().items()}
