"""The learning rate and the batch size of each training step.

A training run may be resumed with another plan if that leaves the steps already done unchanged. So a run
at a constant learning rate can be ended at any time, and its batch can grow at another step.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from unfool.training.options import TrainingOptions

# options that may change when a training run with `lr_schedule: linear` is resumed
CHANGEABLE = ("steps", "decay_from", "grow")


@dataclass(frozen=True)
class Plan:
    """The learning rates and batch sizes of a training run.

    Attributes:
        steps: The number of steps.
        batch_size: Images per step.
        warmup: Steps in which the rate rises linearly.
        lr_schedule: The rate after the warm-up: `"cosine"` decreases it to 0; `"linear"` decreases it
            to 0 in a straight line from `decay_from` on; `"none"` keeps it.
        decay_from: The first step of the linear decrease, before which the rate is full; None for the
            end of the warm-up.
        grow: `{"at": STEP, "batch_size": N}`: from that step on, a batch has N images.
    """

    steps: int
    batch_size: int = 64
    warmup: int = 100
    lr_schedule: str = "cosine"
    decay_from: int | None = None
    grow: Mapping[str, int] | None = None

    @classmethod
    def of(cls, options: TrainingOptions) -> "Plan":
        """Take the plan from the options of a training run."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def rate(self, step: int) -> float:
        """The learning rate of `step` (from 0), as a share of the full rate."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.lr_schedule == "none":
            return 1.0
        if self.lr_schedule == "linear":
            decay_start = self.warmup if self.decay_from is None else self.decay_from
            return min(1.0, (self.steps - step) / max(1, self.steps - decay_start))
        return 0.5 * (
            1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))
        )

    def size(self, step: int) -> int:
        """The number of images in the batch of `step`."""
        return (
            self.batch_size
            if self.grow is None or step < self.grow["at"]
            else self.grow["batch_size"]
        )

    def batch_sizes(self) -> list[int]:
        """The batch sizes that occur, in increasing order."""
        return sorted({self.size(0), self.size(self.steps - 1)})

    def images_before(self, step: int) -> int:
        """The total number of images in the steps before `step`."""
        if self.grow is None or step <= self.grow["at"]:
            return step * self.batch_size
        return (
            self.grow["at"] * self.batch_size + (step - self.grow["at"]) * self.grow["batch_size"]
        )

    def state(self) -> dict[str, Any]:
        """The plan as a checkpoint stores it."""
        state = asdict(self)
        return state | {"grow": dict(self.grow)} if self.grow else state

    def check_same(self, saved: Mapping[str, Any], step: int) -> None:
        """Check that the first `step` steps are the same under this plan and a checkpoint's plan.

        Raises:
            RuntimeError: They differ, or this plan ends before `step`.
        """
        saved_plan = Plan(**saved)
        for done in range(step):
            if self.rate(done) != saved_plan.rate(done) or self.size(done) != saved_plan.size(done):
                raise RuntimeError(
                    f"{step} steps are done, and step {done} used another learning rate or batch "
                    f"than this spec asks for: change only what comes after step {step} "
                    f"({', '.join(CHANGEABLE)}), or name another folder with --out"
                )
        if step > self.steps:
            raise RuntimeError(
                f"{step} steps are done, and this spec asks for only {self.steps}: set "
                f"training.steps to {step} or more, or name another folder with --out"
            )
