"""Projected gradient descent (Madry et al., 2018) with EOT (Athalye et al., 2018)."""

import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from unfool.argument_checks import check_attack, checked_attack
from unfool.attacks.batch_queue import AttackSteps, serve_images
from unfool.attacks.candidates import EarlyStop, Selection
from unfool.attacks.draw_weights import Weights, require_boundary, weigh_draws
from unfool.attacks.losses import Loss, Query, QueryResult, query_model
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, CountFromZero, InEps, MostOf, checked_dataclass
from unfool.threat import Threat, per_image

Start = Literal["random", "zero"]
StepSchedule = Literal["constant", "cosine"]


@checked_dataclass
class PGD:
    """Steps along the gradient of the mean loss over `eot` fresh draws.

    Each restart keeps three candidates: the last iterate, the one with the highest mean loss, and
    the original image, so that an attack never helps the model. All candidates of all restarts are
    then compared on the same fresh draws, and the one that is misclassified most often is returned
    (on ties, the one with the higher loss). These draws belong to the attacker; the evaluation uses
    others.

    Attributes:
        steps: Gradient steps.
        eot: Draws of the defense's noise per step and image.
        step_size: The step size, in units of eps. None is 2.5 / steps (Madry et al., 2018), and
            twice that for `"cosine"`, which halves the total length.
        start: `"random"` within the threat, or `"zero"`: the image itself.
        restarts: Independent runs.
        step_schedule: `"constant"`, or `"cosine"`, which decays the step size to 0.
        loss: `"ce"` (cross-entropy), `"margin"` or `"dlr"` (`losses`).
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
        weights: The weights of the draws in the gradient: `"mean"` weighs all equally; `"em"`
            weighs a draw more if a step that fools the others also fools it (needs `"margin"` or
            `"dlr"`, and several draws).
        early_stop: If above 0, the search for an image stops at, and returns, the first iterate
            that is misclassified on the draws of its step and then on this many fresh draws. Other
            images then take its place in the batch.
        early_stop_share: The share of these draws that must be misclassified, in (0.5, 1].
    """

    steps: Count = 20
    eot: Count = 1
    step_size: InEps | None = None
    start: Start = "random"
    restarts: Count = 1
    step_schedule: StepSchedule = "constant"
    loss: Loss = "ce"
    selection_draws: Count | None = None
    weights: Weights = "mean"
    early_stop: CountFromZero = 0
    early_stop_share: MostOf = 1.0

    def __post_init__(self) -> None:
        require_boundary(self.weights, self.loss)

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`."""

        def search(which: list[int]) -> AttackSteps[Tensor]:
            return self.search(x[which], y[which], threat, noise.take(which))

        return serve_images(model, search, len(x), separately=self.early_stop > 0)

    def search(self, x: Tensor, y: Tensor, threat: Threat, noise: Noise) -> AttackSteps[Tensor]:
        """Attack as a generator, for callers that show progress or answer the queries elsewhere.

        It yields queries, is sent their results (`losses.query_batch`), and returns what `__call__`
        returns. With `early_stop`, it takes one image at a time.
        """
        early_stop = EarlyStop(self.early_stop, self.early_stop_share)
        selection = Selection(
            y, self.loss, noise.child("compare"), self.selection_draws or self.eot
        )
        for restart in range(self.restarts):
            steps, result = self._path(x, y, threat, noise.child("restart", restart)), None
            best, best_loss = x, torch.full((len(x),), -math.inf, device=x.device)
            while True:
                x_adv, query = steps.send(result)
                if query is None:
                    break
                result = yield query
                if (yield from early_stop.check(query, result)):
                    return x_adv
                is_better = result.loss > best_loss
                best = torch.where(per_image(is_better), x_adv, best)
                best_loss = torch.where(is_better, result.loss, best_loss)
            yield from selection.compare(x_adv, best, *([] if restart else [x]))
        return selection.best

    def path(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Iterator[tuple[Tensor, QueryResult | None]]:
        """Yield the iterates of one run, each with its query's result; the last has None."""
        check_attack(model, x, y, threat, noise)
        steps, result = self._path(x, y, threat, noise), None
        with suppress(StopIteration):
            while True:
                x_adv, query = steps.send(result)
                result = None if query is None else query_model(model, *query)
                yield x_adv, result

    def _path(
        self, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Generator[tuple[Tensor, Query | None], QueryResult | None, None]:
        """Yield the iterates, each with its query, whose result is sent back; the last has None."""
        x_adv = threat.start(x, noise.child("start")) if self.start == "random" else x
        weigh = weigh_draws(self.weights, threat)
        for i in range(self.steps):
            result = yield x_adv, Query(x_adv, y, self.loss, noise, i, self.eot, weigh=weigh)
            assert result is not None
            x_adv = self.step(x, x_adv, result.gradient, threat, i)
        yield x_adv, None

    def step(self, x: Tensor, x_adv: Tensor, gradient: Tensor, threat: Threat, i: int) -> Tensor:
        """Take step `i` from `x_adv` along the gradient there, within the threat around `x`."""
        stride = threat.eps * self._stride(i)
        return threat.project(x, x_adv + stride * threat.steepest(gradient, x_adv))

    def _stride(self, i: int) -> float:
        cosine = self.step_schedule == "cosine"
        size = self.step_size or (5 if cosine else 2.5) / self.steps
        if cosine:
            size *= 0.5 * (1 + math.cos(math.pi * i / self.steps))
        return size


def fgsm(eot: Count = 1, loss: Loss = "ce", selection_draws: Count | None = None) -> PGD:
    """One step of the full budget (Goodfellow et al., 2015): PGD with `steps` 1 from the image.

    Args:
        eot: Draws of the defense's noise per image, whose gradients are averaged.
        loss: `"ce"` (cross-entropy), `"margin"` or `"dlr"` (`losses`).
        selection_draws: Fresh draws on which the step is compared with the original image; None
            takes as many as `eot`.
    """
    return PGD(
        steps=1, step_size=1, start="zero", eot=eot, loss=loss, selection_draws=selection_draws
    )
