"""The learning rate and the batch size of each training step.

The plan of a training may be changed when it is resumed, if the steps already done would have been the
same. So a training at a constant rate can be ended at any time, and its batch can grow at another step.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from unfool.training.options import TrainingOptions

# What may be changed of a training with `lr_schedule: linear`.
OPEN = ("steps", "decay_from", "grow")


@dataclass(frozen=True)
class Plan:
    """The rates and batches of a training.

    Attributes:
        steps: How many there are.
        batch_size: Images of a step.
        warmup: Steps of a linear rise of the rate.
        lr_schedule: `"cosine"`: the rate then falls to 0; `"linear"`: it falls to 0 in a straight line
            from `decay_from` on; `"none"`: it stays.
        decay_from: The first step of the linear fall, as those before it have the full rate; None for
            the end of the warm-up.
        grow: `{"at": STEP, "batch_size": N}`: from that step on a batch has so many images.
    """

    steps: int
    batch_size: int = 64
    warmup: int = 100
    lr_schedule: str = "cosine"
    decay_from: int | None = None
    grow: Mapping[str, int] | None = None

    @classmethod
    def of(cls, options: TrainingOptions) -> "Plan":
        """The plan that the options of a training ask for."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def rate(self, step: int) -> float:
        """The share of the full rate that `step` (from 0) is taken with."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.lr_schedule == "none":
            return 1.0
        if self.lr_schedule == "linear":
            begins = self.warmup if self.decay_from is None else self.decay_from
            return min(1.0, (self.steps - step) / max(1, self.steps - begins))
        return 0.5 * (
            1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))
        )

    def size(self, step: int) -> int:
        """How many images `step` takes."""
        return (
            self.batch_size
            if self.grow is None or step < self.grow["at"]
            else self.grow["batch_size"]
        )

    def sizes(self) -> list[int]:
        """The batches that occur."""
        return sorted({self.size(0), self.size(self.steps - 1)})

    def before(self, step: int) -> int:
        """How many images the steps before `step` take together."""
        if self.grow is None or step <= self.grow["at"]:
            return step * self.batch_size
        return (
            self.grow["at"] * self.batch_size + (step - self.grow["at"]) * self.grow["batch_size"]
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        state = asdict(self)
        return state | {"grow": dict(self.grow)} if self.grow else state

    def check_same(self, saved: Mapping[str, Any], step: int) -> None:
        """Whether the first `step` steps would have gone as they did by the plan in a checkpoint.

        Raises:
            RuntimeError: They would not.
        """
        was = Plan(**saved)
        for done in range(step):
            if self.rate(done) != was.rate(done) or self.size(done) != was.size(done):
                raise RuntimeError(
                    f"{step} steps are done, and step {done} used another learning rate or batch "
                    f"than this spec asks for: change only what comes after step {step} "
                    f"({', '.join(OPEN)}), or name another folder with --out"
                )
