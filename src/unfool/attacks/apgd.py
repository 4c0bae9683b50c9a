"""Auto-PGD (Croce and Hein, 2020): adaptive step sizes, averaged over the defense's noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.batch_queue import AttackSteps, serve_images
from unfool.attacks.candidates import EarlyStop, Selection, rank_score, require_norm
from unfool.attacks.draw_weights import Weights, require_boundary, weigh_draws
from unfool.attacks.losses import Loss, Query, runner_up_classes
from unfool.attacks.noise_free import split_by_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, CountFromZero, MostOf, checked_dataclass
from unfool.threat import Threat, per_image

MOMENTUM = 0.75  # the weight of the gradient step; the rest is momentum
MIN_RISING_SHARE = 0.75  # the step size is halved unless more of the steps raised the loss


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

    @checked_attack
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
        return split_by_noise(model, x, y, threat, noise, self._attack, single._attack)

    def _attack(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        noise: Noise,
        noise_free: bool,
    ) -> Tensor:
        targets: Sequence[Tensor | None] = [None]
        if self.targets:
            classes = runner_up_classes(model, x, y, noise.child("rivals"), self.eot, self.targets)
            targets = classes.unbind(1)

        def search(which: list[int]) -> AttackSteps[Tensor]:
            chosen = [None if target is None else target[which] for target in targets]
            return self.search(x[which], y[which], noise_free, chosen, threat, noise.take(which))

        return serve_images(model, search, len(x), separately=self.early_stop > 0)

    def search(
        self,
        x: Tensor,
        y: Tensor,
        noise_free: bool,
        targets: Sequence[Tensor | None],
        threat: Threat,
        noise: Noise,
    ) -> AttackSteps[Tensor]:
        """Attack a batch as a generator: yield queries to the model, return adversarial images.

        With `noise_free`, images that are misclassified when candidates are compared are left alone.
        """
        selection = Selection(y, "margin", noise.child("compare"), self.selection_draws or self.eot)
        remaining = torch.arange(len(x), device=x.device)  # positions of images still attacked
        for i, target in enumerate(targets):
            for restart in range(self.restarts):
                run_noise = noise.child("run", i, restart).take(remaining)
                run_target = None if target is None else target[remaining]
                is_over, candidates = yield from self._run(
                    x[remaining], y[remaining], run_target, threat, run_noise
                )
                if is_over:
                    return candidates[0]
                yield from selection.compare(*candidates, which=remaining)
                if noise_free:
                    remaining = (~selection.wrong).nonzero()[:, 0]
                if not len(remaining):
                    return selection.best
        yield from selection.compare(x[remaining], which=remaining)
        return selection.best

    def _run(
        self, x: Tensor, y: Tensor, target: Tensor | None, threat: Threat, noise: Noise
    ) -> AttackSteps[tuple[bool, list[Tensor]]]:
        """Run once; return whether the search is over, and the final image or the candidates."""
        early_stop = EarlyStop(self.early_stop, self.early_stop_share)
        weigh = weigh_draws(self.weights, threat)

        def query_at(point: Tensor, i: int, gradient: bool = True) -> Query:
            query_index = i // self.steps_per_draw
            return Query(point, y, self.loss, noise, query_index, self.eot, gradient, target, weigh)

        x_adv = previous_x_adv = threat.start(x, noise.child("start"))
        result = yield query_at(x_adv, 0)
        if (yield from early_stop.check(query_at(x_adv, 0), result)):
            return True, [x_adv]
        gradient = result.gradient
        best, best_loss, best_gradient = x_adv, result.loss, gradient
        most_wrong, highest_rank = x_adv, rank_score(result)
        deficit = torch.zeros_like(best_loss)  # how far the loss of x_adv is below the highest
        step_size = torch.full_like(best_loss, 2 * threat.eps)
        rise_count = torch.zeros_like(best_loss)
        improved, halved = best_loss > best_loss, best_loss == best_loss  # all False, all True
        last_checkpoint, review_steps = 0, checkpoints(self.steps)
        for i in range(1, self.steps + 1):
            direction = per_image(step_size) * threat.steepest(gradient, x_adv)
            step = threat.project(x, x_adv + direction) - x_adv
            if i > 1:
                step = MOMENTUM * step + (1 - MOMENTUM) * (x_adv - previous_x_adv)
            previous_x_adv, x_adv = x_adv, threat.project(x, x_adv + step)
            result = yield query_at(x_adv, i)
            if (yield from early_stop.check(query_at(x_adv, i), result)):
                return True, [x_adv]
            gradient = result.gradient
            if i % self.steps_per_draw == 0:  # new draws, on which the best image is evaluated, too
                best_loss = (yield query_at(best, i, gradient=False)).loss
            advantage = result.loss - best_loss
            rise_count += advantage > -deficit
            deficit = (-advantage).clamp(min=0)
            is_better = advantage > 0
            improved = improved | is_better
            best = torch.where(per_image(is_better), x_adv, best)
            best_gradient = torch.where(per_image(is_better), gradient, best_gradient)
            best_loss = torch.where(is_better, result.loss, best_loss)
            is_more_wrong = rank_score(result) > highest_rank
            most_wrong = torch.where(per_image(is_more_wrong), x_adv, most_wrong)
            highest_rank = torch.where(is_more_wrong, rank_score(result), highest_rank)
            if i in review_steps:
                rose_rarely = rise_count <= MIN_RISING_SHARE * (i - last_checkpoint)
                halved = rose_rarely | ~(halved | improved)
                step_size = torch.where(halved, step_size / 2, step_size)
                x_adv = torch.where(per_image(halved), best, x_adv)
                gradient = torch.where(per_image(halved), best_gradient, gradient)
                rise_count, improved = torch.zeros_like(rise_count), torch.zeros_like(improved)
                last_checkpoint = i
        return False, [x_adv, best, most_wrong]


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step size is reviewed: 22 %, then in periods down to 6 %."""
    period, shortest, decrement = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    steps_reviewed = [period]
    while steps_reviewed[-1] < steps:
        period = max(period - decrement, shortest)
        steps_reviewed.append(steps_reviewed[-1] + period)
    return steps_reviewed[:-1] if steps_reviewed[-1] > steps else steps_reviewed
