"""The options of training, for callers of `train` and for the section `training` of a spec."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from unfool.ranges import (
    Count,
    CountFromZero,
    NotNegative,
    Positive,
    ShareAboveZero,
    ShareBelowOne,
    checked_dataclass,
    violation,
)

ADAMW, MUON = (0.9, 0.999), 20.0  # default betas, and default factor of Muon's learning rate
GROW = {"at": CountFromZero, "batch_size": Count}


@checked_dataclass
class TrainingOptions:
    """How a model is trained.

    Attributes:
        steps: The total number of training steps, including those already done in the folder.
        batch_size: Images per step.
        learning_rate: The learning rate, reached after `warmup` steps.
        warmup: Steps in which the learning rate rises linearly.
        weight_decay: Weight decay of the optimizer.
        bias_lr_factor: Factor of the learning rate for biases; their weight decay per step stays
            the same (Jordan, 2024, section 3.4: 64).
        muon_lr_factor: Factor of the learning rate for the convolution kernels that Muon trains.
        betas: The decays of AdamW's two running averages, of the gradient and of its square.
        ema_decay: The decay of the running average of the weights, limited after k steps to
            k / (9 + k).
        ema_power: If given, the decay is at most 1 - k^-power instead (diffusers' warm-up; ADDT's
            release uses 3/4).
        ema_gamma: If given, it replaces `ema_decay`: the decay after k steps is (1 - 1 / k)^(gamma
            + 1), a mean in which step i has the weight i^gamma (Karras et al., 2024, equation 124).
        grad_clip: The largest norm of a step's gradient; larger gradients are scaled down.
        flip: Whether images are mirrored with probability 1/2.
        crop: The largest random shift of an image, in pixels.
        seed: Seed of all randomness.
        optimizer: `"adamw"`; `"sgd"` with Nesterov momentum 0.9; or `"muon"` for convolution
            kernels, with AdamW for all other weights.
        precision: `"float32"`, or `"bfloat16"` for matrix products and convolutions (autocast).
        lr_schedule: The learning rate after the warm-up: `"cosine"` and `"linear"` decrease it to
            0; `"none"` keeps it.
        decay_from: The step at which `"linear"` begins to decrease; None: the end of the warm-up.
        grow: `{"at": STEP, "batch_size": N}`: from that step on, a batch has N images.
        save_steps: Further steps after which the averaged weights are saved.
        accumulate: The number of parts, one after another, into which a process splits its share of
            a batch.

    Raises:
        ValueError: A value is out of its range, or two options do not go together.
    """

    steps: Count
    batch_size: Count = 64
    learning_rate: Positive = 2e-4
    warmup: CountFromZero = 100
    weight_decay: NotNegative = 0.0
    bias_lr_factor: Positive = 1.0
    muon_lr_factor: Positive = MUON
    betas: Sequence[ShareBelowOne] = ADAMW
    ema_decay: ShareBelowOne = 0.999
    ema_power: ShareAboveZero | None = None
    ema_gamma: NotNegative | None = None
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    flip: bool = False
    crop: CountFromZero = 0
    seed: int = 0
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    precision: Literal["float32", "bfloat16"] = "float32"
    lr_schedule: Literal["cosine", "linear", "none"] = "cosine"
    decay_from: CountFromZero | None = None
    grow: Mapping[str, int] | None = None
    save_steps: Sequence[Count] = ()
    accumulate: Count = 1

    def __post_init__(self) -> None:
        if self.ema_gamma is not None and self.ema_power is not None:
            raise ValueError("ema_gamma and ema_power exclude each other: leave one out")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, not {self.betas}")
        if self.optimizer == "sgd" and tuple(self.betas) != ADAMW:
            raise ValueError("betas belong to AdamW: leave them out, or leave the optimizer out")
        if self.optimizer != "muon" and self.muon_lr_factor != MUON:
            raise ValueError("muon_lr_factor belongs to Muon: set optimizer: muon, or leave it out")
        self._check_steps()

    def _check_steps(self) -> None:
        """Check `decay_from`, `grow` and `save_steps`."""
        steps, decay_from = self.steps, self.decay_from
        if decay_from is not None and self.lr_schedule != "linear":
            raise ValueError(
                "decay_from belongs to lr_schedule: linear: set that, or leave decay_from out"
            )
        if decay_from is not None and not self.warmup <= decay_from < steps:
            raise ValueError(
                f"decay_from must be from warmup, {self.warmup}, to below steps, {steps}, not "
                f"{decay_from}"
            )
        if self.grow is not None and set(self.grow) != set(GROW):
            raise ValueError(
                f"grow must have the keys {' and '.join(GROW)}, not {', '.join(self.grow)}"
            )
        for key, value in (self.grow or {}).items():
            if wrong := violation(GROW[key], value):
                raise ValueError(f"grow.{key} {wrong}")
        if wrong := [step for step in self.save_steps if not 0 < step <= steps]:
            raise ValueError(f"save_steps must list steps from 1 to {steps}, not {wrong[0]}")
