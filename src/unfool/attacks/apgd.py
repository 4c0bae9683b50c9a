"""Auto-PGD (Croce and Hein, 2020): adaptive step sizes, averaged over the defense's noise."""

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

MOMENTUM = 0.75  # the weight of the gradient step; the rest is momentum
RISES = 0.75  # the step size is halved unless more than this share of steps raised the loss


@checked_dataclass
class APGD:
    """Auto-PGD: gradient ascent with momentum, whose step size is halved when progress stops.

    Without noise, these are the steps of the paper (Croce and Hein, 2020). With noise, a single
    lucky draw never decides: the best image so far and each new image are compared on the same
    draws. The last image of each run, its best one, and the one that was misclassified most often
    are then compared on fresh draws with those of all other runs and the original image. Images
    that the model classifies without noise get a single draw, even if others get several
    (`noise_free`), and later runs skip those that are misclassified already.

    Attributes:
        steps: Gradient steps of a run.
        eot: Draws of the defense's noise per step and image.
        loss: `"ce"`, `"margin"` or `"dlr"` (needs 3 classes; targeted, 4).
        targets: Number of wrong classes to run toward, in order of decreasing mean logits; 0 makes
            one run away from the true class.
        restarts: Independent runs (for each target).
        steps_per_draw: Steps that share their draws. With 1, every step has fresh draws, which
            costs an additional forward pass of the best image per step, unless the model uses no
            noise.
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
        """Attack a batch as a generator: yield queries to the model, return adversarial images.

        With `sure`, images that are misclassified when candidates are compared are left alone.
        """
        contest = Selection(y, "margin", noise.child("compare"), self.selection_draws or self.eot)
        left = torch.arange(len(x), device=x.device)  # positions of images still attacked
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
        """Run once; return whether the search is over, and the final image or the candidates."""
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
        behind = torch.zeros_like(highest)  # how far the loss of x_adv is below the highest
        stride = torch.full_like(highest, 2 * threat.eps)
        rises = torch.zeros_like(highest)
        improved, halved = highest > highest, highest == highest  # all False, all True
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
            if i % self.steps_per_draw == 0:  # new draws, on which the best image is evaluated, too
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
    """Return the steps after which the step size is reviewed: 22 %, then in periods down to 6 %."""
    period, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = [period]
    while found[-1] < steps:
        period = max(period - less, least)
        found.append(found[-1] + period)
    return found[:-1] if found[-1] > steps else found
