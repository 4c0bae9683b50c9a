"""DeepFool (Moosavi-Dezfooli et al., 2016), over the defense's noise."""

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose, require_norm
from unfool.attacks.fab import stretched
from unfool.attacks.losses import Query, QueryResult, query_batch, runner_up_classes
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, NotNegative, checked_dataclass
from unfool.threat import Threat, per_image

MIN_OVERSHOOT = 1e-6  # the least overshoot, so that rounding cannot keep an image on a plane


@checked_dataclass
class DeepFool:
    """Steps over the nearest boundary, approximated by a plane, until the image is misclassified.

    The planes come from the mean logits over the draws, and an image counts as misclassified if
    most draws of the next step are wrong. The published attack (Moosavi-Dezfooli et al., 2016)
    returns the nearest such image. A random model is wrong only about half of the time at the
    boundary. So within a threat, that image and the image at distance eps in its direction are
    compared on fresh draws.

    Attributes:
        steps: Maximum number of steps per image.
        eot: Draws of the defense's noise per step and image.
        targets: Number of wrong classes to try, in order of decreasing mean logits.
        overshoot: How far beyond the plane a step goes, as a share of its length.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
    """

    steps: Count = 50
    eot: Count = 1
    targets: Count = 9
    overshoot: NotNegative = 0.02
    selection_draws: Count | None = None

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        nearest = self.nearest(model, x, y, threat, noise)
        candidates = (x, threat.project(x, nearest), stretched(x, nearest, threat))
        draws = self.selection_draws or self.eot
        return choose(model, y, candidates, "margin", noise.child("compare"), draws)

    def nearest(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Return where the steps end, at any distance: near the boundary, mostly on the wrong side.

        Only the norm of the threat matters. Images that start out misclassified are left unchanged.

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("DeepFool", threat, "linf", "l2")
        targets = runner_up_classes(model, x, y, noise.child("rivals"), self.eot, self.targets)
        x_adv, active = x.clone(), torch.arange(len(x), device=x.device)
        for i in range(self.steps):
            points, labels, active_noise = x_adv[active], y[active], noise.take(active)
            queries = [
                Query(points, labels, "margin", active_noise, i, self.eot, True, target)
                for target in targets[active].unbind(1)
            ]
            results = query_batch(model, queries)
            is_correct = results[0].error_rate <= 0.5
            active, results = active[is_correct], [_take(result, is_correct) for result in results]
            if not len(active):
                break
            x_adv[active] = self._step_over_plane(x_adv[active], results, threat)
        return x_adv

    def _step_over_plane(self, x: Tensor, results: list[QueryResult], threat: Threat) -> Tensor:
        """Move images just beyond the nearest plane, of one plane per class."""
        direction, least_distance = torch.zeros_like(x), torch.full_like(x[:, 0, 0, 0], torch.inf)
        for margin, _, gradient in results:
            steepest = threat.steepest(gradient)
            slope = (steepest * gradient.nan_to_num(0, 0, 0)).flatten(1).sum(1)
            distance = (-margin).clamp(min=0) / slope  # NaN or infinite where the slope is 0
            is_nearer = distance < least_distance
            direction = torch.where(per_image(is_nearer), steepest, direction)
            least_distance = torch.where(is_nearer, distance, least_distance)
        length = torch.where(
            least_distance.isfinite(), least_distance * (1 + self.overshoot) + MIN_OVERSHOOT, 0
        )
        return (x + per_image(length) * direction).clamp(0, 1)


def _take(result: QueryResult, which: Tensor) -> QueryResult:
    return QueryResult(*(values[which] for values in result))
