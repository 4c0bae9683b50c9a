"""The l2 attack of Carlini and Wagner (2017), over the defense's noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose, require_norm
from unfool.attacks.fab import stretched
from unfool.attacks.losses import query_model, runner_up_classes
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, CountFromZero, NotNegative, Positive, checked_dataclass
from unfool.threat import Threat, per_image

BOX_SCALE = 1 - 1e-6  # scales the box, so that the tanh has a slope at its edges, too
MAX_WEIGHT = 1e10  # the largest weight of the margin, as in the published search


@checked_dataclass
class CarliniWagner:
    """Adam on the squared l2 distance plus a weight times the missing margin, in tanh space.

    The weight of each image is found by bisection. With noise, the margin is the mean over fresh
    draws in each step, and an image counts as misclassified if most of these draws are wrong.

    The published attack (Carlini and Wagner, 2017) returns the nearest misclassified image. A
    random model is wrong only about half of the time at the boundary. So within a threat, three
    candidates are compared on fresh draws: that image, the image at distance eps in its direction,
    and the last image of each search at distance eps.

    Attributes:
        steps: Steps of Adam in each search.
        searches: Number of weights to try for each image.
        eot: Draws of the defense's noise per step and image.
        learning_rate: Learning rate of Adam, for the variable whose tanh is the image.
        targets: Number of wrong classes to search toward, in order of decreasing mean logits; 0
            makes one search away from the true class.
        confidence: The required margin, in logits.
        weight: The initial weight of the margin.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
    """

    steps: Count = 100
    searches: Count = 9
    eot: Count = 1
    learning_rate: Positive = 0.01
    targets: CountFromZero = 0
    confidence: NotNegative = 0.0
    weight: Positive = 0.01
    selection_draws: Count | None = None

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is not l2.
        """
        require_norm("Carlini-Wagner", threat, "l2")
        runs = list(self._runs(model, x, y, noise))
        nearest = runs[-1][0]
        is_allowed = threat.size(nearest - x) <= threat.eps
        candidates = [
            x,
            torch.where(per_image(is_allowed), nearest, x),
            stretched(x, nearest, threat),
        ]
        candidates += [stretched(x, last, threat) for _, last in runs]
        draws = self.selection_draws or self.eot
        return choose(model, y, candidates, "margin", noise.child("compare"), draws)

    def nearest(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Return the nearest misclassified images, at any distance; `x` where none was found.

        Raises:
            ValueError: The threat's norm is not l2.
        """
        require_norm("Carlini-Wagner", threat, "l2")
        *_, (nearest, _) = self._runs(model, x, y, noise)
        return nearest

    def _runs(
        self, model: Classifier, x: Tensor, y: Tensor, noise: Noise
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield after each search the nearest misclassified images so far and its last images."""
        nearest, least_distance = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        targets: Sequence[Tensor | None] = [None]
        if self.targets:
            rivals = noise.child("rivals")
            targets = runner_up_classes(model, x, y, rivals, self.eot, self.targets).unbind(1)
        for number, target in enumerate(targets):
            weight = torch.full_like(least_distance, self.weight)
            low, high = torch.zeros_like(weight), torch.full_like(weight, MAX_WEIGHT)
            for search in range(self.searches):
                search_noise = noise.child("search", number, search)
                x_adv, last, distance = self._search(model, x, y, target, weight, search_noise)
                is_closer, is_broken = distance < least_distance, distance.isfinite()
                nearest = torch.where(per_image(is_closer), x_adv, nearest)
                least_distance = torch.where(is_closer, distance, least_distance)
                high = torch.where(is_broken, torch.minimum(high, weight), high)
                low = torch.where(is_broken, low, torch.maximum(low, weight))
                has_upper_bound = high < MAX_WEIGHT
                weight = torch.where(
                    has_upper_bound, (low + high) / 2, (weight * 10).clamp(max=MAX_WEIGHT)
                )
                yield nearest, last

    def _search(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        target: Tensor | None,
        weight: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest misclassified images, the last ones, and the former's distances."""
        latent = torch.atanh((2 * x.clamp(0, 1) - 1) * BOX_SCALE).requires_grad_()
        adam = torch.optim.Adam([latent], lr=self.learning_rate)
        nearest, least_distance = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        x_adv = x
        for i in range(self.steps):
            with torch.enable_grad():
                x_adv = (torch.tanh(latent) / BOX_SCALE + 1).clamp(0, 2) / 2
            point = x_adv.detach()
            result = query_model(model, point, y, "margin", noise, i, self.eot, target=target)
            distance = (point - x).flatten(1).norm(dim=1)
            is_closer = (
                (result.error_rate > 0.5)
                & (result.loss >= self.confidence)
                & (distance < least_distance)
            )
            nearest = torch.where(per_image(is_closer), point, nearest)
            least_distance = torch.where(is_closer, distance, least_distance)
            margin_weight = per_image(weight * (result.loss < self.confidence))
            slope = 2 * (point - x) - margin_weight * result.gradient.nan_to_num(0, 0, 0)
            (latent.grad,) = torch.autograd.grad(x_adv, latent, slope)
            adam.step()
        return nearest, x_adv.detach(), least_distance
