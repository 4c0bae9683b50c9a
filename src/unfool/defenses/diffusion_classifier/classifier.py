"""The diffusion classifier (Li et al., 2023): predict the class with the least denoising error.

The errors of a conditional denoiser bound log p(x | c), which gives a classifier by Bayes' rule.
All classes of an image are scored on the same draws of times and noise; classes may be eliminated
early.
"""

import copy
import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor, nn

from unfool.batching import BatchLimit
from unfool.defenses.diffusion_classifier.elimination import (
    Elimination,
    Stages,
    evenly_spaced,
    make_elimination,
)
from unfool.defenses.diffusion_classifier.errors import ClassErrors, Loss
from unfool.defenses.diffusion_classifier.timesteps import Grid, Weight, times_of, weights_of
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.ranges import Count, NotNegative, Positive, Probability, check_arguments
from unfool.runtime.text import html_repr, short_repr

Policy = Literal["fresh", "fixed", "image"]


class DiffusionClassifier(nn.Module):
    """A classifier whose logits are minus the mean errors of a denoiser's noise prediction, scaled.

    Draw k of an image uses the stream ("eps", k). The logit of an eliminated class comes from the
    draws it was given, but is at most the lowest logit of the classes that stayed longer, minus 1.

    Attacks should maximize the loss of `without_elimination()`, which has a gradient everywhere,
    and be scored on the model itself; `stage(1)` is for attacks that try to get the true class
    eliminated early.

    Args:
        denoiser: A denoiser with classes.
        draws: M, the number of draws; None takes the number of a staged elimination, or else 100.
        times: The grid of times: `"even"`, the midpoints of M equal parts of the schedule (Li et
            al., 2023), or `"sigma"`, M even values of sigma / alpha (Chen et al., 2024).
        span: The ends of the grid: times in [0, 1] for `"even"`, or values of sigma / alpha for
            `"sigma"`; None takes 0 to 1, or 1e-4 to 3.
        weight: The weight of a draw's error, up to a factor: `"uniform"`; `"elbo"`, the bound on
            the likelihood for any grid; `"edm"`, the weight of EDM's training (Karras et al., 2022;
            Chen et al., 2024), or `"rdc"`, the same with the mistake in its release's density;
            `"snr"`, (alpha / sigma)^2; `"image"`, its inverse, which gives errors of x_hat; M
            numbers; or a function from the scales (M,) to M numbers.
        loss: The error of a draw: `"l2"`, `"l1"`, or `"huber"`.
        elimination: `"paired"`, `"staged"`, or a schedule of the Diffusion Classifier's release by
            the name of its data set (see `elimination`); None for none.
        samples: The draws of each stage, for `"staged"`.
        classes_per_stage: The number of classes that each stage keeps, for `"staged"`.
        risk: The probability that `"paired"` drops the best class of an image.
        policy: `"fresh"` draws from the noise of every query. `"fixed"` takes the draws of `seed`,
            the same for all images, so every query has the same answer. `"image"` takes draws that
            depend on `seed` and on the image, rounded to 8 bits.
        seed: The seed of `"fixed"` and `"image"`. An attacker knows it.
        scale: The factor of the logits; None is the number of values in an image, in the denoiser's
            space, times the range of log(sigma / alpha), with which the logits of `"elbo"` are in
            nats (see `calibrate`).
        batch_size: The most (image, class, draw) rows in one call of the network. Each wording of a
            class is a row; for a multi-head denoiser, (image, draw) is a row. It affects only speed
            and memory, and is halved when memory runs out.

    Raises:
        ValueError: The denoiser has fewer than 2 classes, or an option is out of range.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        draws: Count | None = None,
        times: Grid = "even",
        span: tuple[NotNegative, NotNegative] | None = None,
        weight: Weight | Sequence[Positive] | Callable[[Scales], Tensor] = "uniform",
        loss: Loss = "l2",
        elimination: str | None = None,
        samples: Sequence[Count] | None = None,
        classes_per_stage: Sequence[Count] | None = None,
        risk: Probability = 0.005,
        policy: Policy = "fresh",
        seed: int = 0,
        scale: Positive | None = None,
        batch_size: Count = 256,
    ):
        super().__init__()
        check_arguments(DiffusionClassifier, locals())
        if denoiser.classes < 2:
            raise ValueError(
                "a diffusion classifier needs a denoiser conditional on 2 or more classes, and "
                f"this one has {denoiser.classes}: train one with the option `classes`"
            )
        self.rule = make_elimination(elimination, samples, classes_per_stage, risk)
        staged_draws = max(self.rule.samples) if isinstance(self.rule, Stages) else None
        draws = draws or staged_draws or 100
        if staged_draws is not None and draws != staged_draws:
            raise ValueError(
                f"the elimination takes {staged_draws} draws: leave out draws = {draws}"
            )
        self.denoiser, self.policy, self.seed = denoiser, policy, seed
        self.loss: Loss = loss
        # Not named `batch_size`, which would count images (see `protocols.Classifier`).
        self.row_limit = BatchLimit(batch_size)
        self.scale = scale
        self.scales = denoiser.schedule(times_of(denoiser.schedule, times, draws, span))
        self.weight = weights_of(weight, self.scales)
        self._used = list(range(draws))  # the draws without elimination; `stage` uses fewer
        self.classes_kept = 1  # see `stage`

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]; without `noise`, of a fresh draw.

        Raises:
            ValueError: The images do not have the denoiser's shape.
        """
        if noise is None:
            noise = Noise.fresh(len(x))
        shape = None if self.denoiser.resizes else self.denoiser.shape
        if shape is not None and tuple(x.shape[1:]) != tuple(shape):
            raise ValueError(
                f"the denoiser takes images of shape {tuple(shape)}, and these have the shape "
                f"{tuple(x.shape[1:])}: resize them, or take another denoiser"
            )
        z, weight = self.denoiser.encode(x), self.weight.to(x.device)
        eps = self._noise(x, noise).child("eps")
        errors = self.errors(eps)
        table, computed, dropped_in_round = self._measure(errors, z, weight)
        logits = -self._scale(z) * errors.mean(table, computed, z, weight)
        return _rank_dropped_below(logits, dropped_in_round) if self.rule else logits

    def errors(self, eps: Noise) -> ClassErrors:
        """The errors of the classes on the draws of `eps`."""
        return ClassErrors(self.denoiser, self.scales, eps, self.loss, self.row_limit)

    def without_elimination(self, draws: int | None = None) -> "DiffusionClassifier":
        """The same classifier, on the same draws, without elimination.

        Args:
            draws: The number of draws to use, evenly spread over all; None uses all.

        Raises:
            ValueError: The classifier has fewer draws.
        """
        if draws is None:
            return self._with(None, self._used)
        if not 1 <= draws <= len(self._used):
            raise ValueError(
                f"draws must be from 1 to the classifier's own {len(self._used)}, not {draws}"
            )
        return self._with(None, [self._used[k] for k in evenly_spaced(len(self._used), draws)])

    def stage(self, number: int) -> "DiffusionClassifier":
        """The classifier on the draws of the first `number` stages, which eliminates no class.

        Its logits are the scores by which the stage ranks classes. Its attribute `classes_kept`
        tells attacks how many classes must score above the true one to drop it: the stage's
        `classes_per_stage` (1 for `"paired"`).

        Raises:
            ValueError: There is no elimination, or it has fewer stages.
        """
        rounds = self.rule.rounds(len(self._used)) if self.rule else []
        if not 1 <= number <= len(rounds):
            raise ValueError(
                f"the elimination has {len(rounds)} stages, so there is no stage {number}"
            )
        used = sorted(k for new_draws in rounds[:number] for k in new_draws)
        return self._with(
            None,
            used,
            self.rule.classes_per_stage[number - 1] if isinstance(self.rule, Stages) else 1,
        )

    def _with(
        self, rule: Elimination | None, used: list[int], classes_kept: int = 1
    ) -> "DiffusionClassifier":
        view = copy.copy(self)  # shallow: the networks are the same
        view.rule, view._used, view.classes_kept = rule, used, classes_kept
        return view

    def _scale(self, z: Tensor) -> float:
        logs = (self.scales.sigma / self.scales.alpha).log()
        return self.scale or z[0].numel() * (float(logs[-1] - logs[0]) or 1.0)

    def _measure(
        self, errors: ClassErrors, z: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The errors, a mask of those computed, (B, K, M), and each class's last round (B, K)."""
        draws, classes = len(weight), self.denoiser.classes
        table = z.new_zeros((len(z), classes, draws))
        computed = torch.zeros_like(table, dtype=torch.bool)
        alive = torch.ones_like(computed[..., 0])
        rounds = self.rule.rounds(draws) if self.rule else [self._used]
        dropped_in_round, draws_so_far = (
            torch.full_like(alive, len(rounds), dtype=torch.long),
            list[int](),
        )
        for round_index, new_draws in enumerate(rounds):
            undecided = alive & (alive.sum(1, keepdim=True) > 1)
            if not bool(undecided.any()):
                break
            wanted = torch.zeros_like(computed)
            wanted[..., new_draws] = undecided[..., None]
            errors.fill(table, z, wanted)
            computed, draws_so_far = computed | wanted, sorted(draws_so_far + new_draws)
            if self.rule:
                errors_so_far = table[..., draws_so_far].double()
                remaining = self.rule.remaining(
                    errors_so_far, weight[draws_so_far], undecided, round_index, draws
                )
                dropped = undecided & ~remaining
                dropped_in_round[dropped], alive = round_index, alive & ~dropped
        return table, computed, dropped_in_round

    def _noise(self, x: Tensor, noise: Noise) -> Noise:
        if self.policy == "fixed":
            return Noise.of(self.seed, [0] * len(x))
        if self.policy == "image":
            pixels = (x.detach().double() * 255).round().int().cpu().numpy()
            digests = (blake2b(image.tobytes(), digest_size=8).digest() for image in pixels)
            return Noise.of(self.seed, (int.from_bytes(value, "little") for value in digests))
        return noise


def calibrate(model: DiffusionClassifier, x: Tensor, y: Tensor, noise: Noise) -> float:
    """Find the scale of the logits that minimizes the cross-entropy on held-out images.

    The search, without elimination, goes from 1e-4 to 1e4 times the scale of the model; if all
    images are classified correctly and a larger scale is always better, it returns the largest.

    Args:
        model: The classifier; it is not changed.
        x: Images (B, C, H, W) in [0, 1] that neither training nor evaluation uses.
        y: Their labels (B,).
        noise: The noise of these images.
    """
    with torch.no_grad():
        logits = model.without_elimination()(x, noise).double()
        scale = model._scale(model.denoiser.encode(x[:1]))
    logits = logits - logits.gather(1, y[:, None])

    def slope(scale: float) -> float:  # of the cross-entropy, which is convex in the scale
        return float(((scale * logits).softmax(1) * logits).sum(1).mean())

    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(high) * scale


def _rank_dropped_below(logits: Tensor, dropped_in_round: Tensor) -> Tensor:
    """Lower the logits (B, K) of dropped classes below those of all classes that stayed longer."""
    for round_index in range(int(dropped_in_round.max()) - 1, -1, -1):
        later = logits.masked_fill(dropped_in_round <= round_index, torch.inf).amin(1, keepdim=True)
        logits = torch.where(
            dropped_in_round == round_index, torch.minimum(logits, later - 1), logits
        )
    return logits
