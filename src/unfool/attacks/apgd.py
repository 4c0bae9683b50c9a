"""Auto-PGD (Croce and Hein, 2020), which sets its own step sizes, over the defense's noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked
from unfool.attacks.batch_queue import AttackSteps, serve_apart
from unfool.attacks.candidates import EarlyStop, Selection, rank_value, require_norm
from unfool.attacks.draw_weights import Weights, require_boundary, weigh_draws
from unfool.attacks.losses import Loss, Query, runner_up_classes
from unfool.attacks.noise_free import split_by_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, CountFromZero, MostOf, checked_dataclass
from unfool.threat import Threat, images

MOMENTUM = 0.75  # the share of a step that is the gradient's
RISES = 0.75  # the share of steps that must rise, lest the step size be halved


@checked_dataclass
class APGD:
    """Auto-PGD: gradient ascent with momentum, whose step size is halved when progress stops.

    Without noise, these are the steps of the paper (Croce and Hein, 2020). With noise,
    a single lucky draw never decides: the best image so far and each new one are compared on the
    same draws. At the end, the last image, the best one, and the one that was wrong most often are
    compared on fresh draws, together with those of all other runs and the original image. An
    image that the model answers without noise gets one draw, also where others get several
    (`noise_free`), and each run attacks only those of them that all earlier runs left right.

    Attributes:
        steps: Gradient steps of a run.
        eot: Draws of the defense's noise per step and image.
        loss: `"ce"`, `"margin"` or `"dlr"` (needs 3 classes; targeted, 4).
        targets: Runs toward this many wrong classes, those of the highest mean logits first; 0 is
            one run away from the true class.
        restarts: Independent runs (of each target).
        steps_per_draw: Steps that share their draws. With 1, every step has fresh draws, which
            costs an additional forward pass of the best image per step, unless the model draws no
            noise.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
        weights: The weights of the draws in the gradient: `"mean"` weighs all alike; `"em"` weighs
            a draw more if a step that fools the others also fools it (needs `"margin"` or `"dlr"`,
            and several draws).
        early_stop: If above 0, the search of an image ends at, and returns, an iterate that is
            misclassified on the draws of its step and then on this many fresh draws. Other images
            then take its place in the batch.
        early_stop_share: The share of these draws that must be misclassified, in (0.5, 1].
    """

    steps: Count = 100
    eot: Count = 1
    loss: Loss = "ce"
    targets: CountFromZero = 0
    restarts: Count = 1
    steps_per_draw: Count = 1
    selection_draws: Count | None = None
    weights: Weights = "mean"
    early_stop: CountFromZero = 0
    early_stop_share: MostOf = 1.0

    def __post_init__(self) -> None:
        require_boundary(self.weights, self.loss)

    @checked
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is l0, or the model has too few classes for the loss.
        """
        require_norm("APGD", threat, "linf", "l2", "l1")
        single = replace(
            self,
            eot=1,
            steps_per_draw=self.steps + 1,
            selection_draws=1,
            early_stop=min(self.early_stop, 1),
        )

        def attack(x: Tensor, y: Tensor, noise: Noise, sure: bool) -> Tensor:
            return (single if sure else self)._attack(model, x, y, threat, noise, sure)

        return split_by_noise(model, x, y, noise, attack)

    def _attack(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise, sure: bool
    ) -> Tensor:
        toward: Sequence[Tensor | None] = [None]
        if self.targets:
            found = runner_up_classes(model, x, y, noise.child("rivals"), self.eot, self.targets)
            toward = found.unbind(1)

        def search(which: list[int]) -> AttackSteps[Tensor]:
            aims = [None if aim is None else aim[which] for aim in toward]
            return self.search(x[which], y[which], sure, aims, threat, noise.take(which))

        return serve_apart(model, search, len(x), apart=self.early_stop > 0)

    def search(
        self,
        x: Tensor,
        y: Tensor,
        sure: bool,
        aims: Sequence[Tensor | None],
        threat: Threat,
        noise: Noise,
    ) -> AttackSteps[Tensor]:
        """One search of all these images: yields questions to the model, returns what it found.

        With `sure`, what is wrong on the draws that compare candidates is wrong for good.
        """
        contest = Selection(y, "margin", noise.child("compare"), self.selection_draws or self.eot)
        left = torch.arange(len(x), device=x.device)  # but for those that are beaten
        for i, aim in enumerate(aims):
            for restart in range(self.restarts):
                below = noise.child("run", i, restart).take(left)
                toward = None if aim is None else aim[left]
                fell, found = yield from self._run(x[left], y[left], toward, threat, below)
                if fell:
                    return found[0]
                yield from contest.meet(*found, which=left)
                if sure:
                    left = (~contest.wrong).nonzero()[:, 0]
                if not len(left):
                    return contest.best
        yield from contest.meet(x[left], which=left)
        return contest.best

    def _run(
        self, x: Tensor, y: Tensor, aim: Tensor | None, threat: Threat, noise: Noise
    ) -> AttackSteps[tuple[bool, list[Tensor]]]:
        """Whether the search is over, and what it found: the image, or the candidates."""
        stop = EarlyStop(self.early_stop, self.early_stop_share)
        weigh = weigh_draws(self.weights, threat)

        def ask(at: Tensor, i: int, gradient: bool = True) -> Query:
            turn = i // self.steps_per_draw
            return Query(at, y, self.loss, noise, turn, self.eot, gradient, aim, weigh)

        x_adv = previous = threat.start(x, noise.child("start"))
        result = yield ask(x_adv, 0)
        if (yield from stop.here(ask(x_adv, 0), result)):
            return True, [x_adv]
        gradient = result.gradient
        best, highest, slope = x_adv, result.loss, gradient
        wrongest, most = x_adv, rank_value(result)
        behind = torch.zeros_like(highest)  # how far x_adv is below the best
        stride = torch.full_like(highest, 2 * threat.eps)
        rises = torch.zeros_like(highest)
        improved, halved = highest > highest, highest == highest  # none, all
        since, checks = 0, checkpoints(self.steps)
        for i in range(1, self.steps + 1):
            direction = images(stride) * threat.steepest(gradient, x_adv)
            step = threat.project(x, x_adv + direction) - x_adv
            if i > 1:
                step = MOMENTUM * step + (1 - MOMENTUM) * (x_adv - previous)
            previous, x_adv = x_adv, threat.project(x, x_adv + step)
            result = yield ask(x_adv, i)
            if (yield from stop.here(ask(x_adv, i), result)):
                return True, [x_adv]
            gradient = result.gradient
            if i % self.steps_per_draw == 0:  # the draws are new
                highest = (yield ask(best, i, gradient=False)).loss
            lead = result.loss - highest
            rises += lead > -behind
            behind = (-lead).clamp(min=0)
            better = lead > 0
            improved = improved | better
            best = torch.where(images(better), x_adv, best)
            slope = torch.where(images(better), gradient, slope)
            highest = torch.where(better, result.loss, highest)
            more = rank_value(result) > most
            wrongest = torch.where(images(more), x_adv, wrongest)
            most = torch.where(more, rank_value(result), most)
            if i in checks:
                halved = (rises <= RISES * (i - since)) | ~(halved | improved)
                stride = torch.where(halved, stride / 2, stride)
                x_adv = torch.where(images(halved), best, x_adv)
                gradient = torch.where(images(halved), slope, gradient)
                rises, improved = torch.zeros_like(rises), torch.zeros_like(improved)
                since = i
        return False, [x_adv, best, wrongest]


def checkpoints(steps: int) -> list[int]:
    """After which steps the step size is thought over: 22 %, then in periods that shrink to 6 %."""
    period, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = [period]
    while found[-1] < steps:
        period = max(period - less, least)
        found.append(found[-1] + period)
    return found[:-1] if found[-1] > steps else found
