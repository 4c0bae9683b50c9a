"""The l2 attack of Carlini and Wagner (2017), over the defense's noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unfool.argument_checks import checked
from unfool.attacks.candidates import choose, require_norm
from unfool.attacks.fab import stretched
from unfool.attacks.losses import query_model, runner_up_classes
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, CountFromZero, NotNegative, Positive, checked_dataclass
from unfool.threat import Threat, images

INSIDE = 1 - 1e-6  # scales the box, so that the tanh has a slope at its edges, too
HIGHEST = 1e10  # the largest weight of the margin, as in the published search


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

    @checked
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
        near = threat.size(nearest - x) <= threat.eps
        candidates = [x, torch.where(images(near), nearest, x), stretched(x, nearest, threat)]
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
        nearest, least = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        toward: Sequence[Tensor | None] = [None]
        if self.targets:
            rivals = noise.child("rivals")
            toward = runner_up_classes(model, x, y, rivals, self.eot, self.targets).unbind(1)
        for number, aim in enumerate(toward):
            weight = torch.full_like(least, self.weight)
            low, high = torch.zeros_like(weight), torch.full_like(weight, HIGHEST)
            for search in range(self.searches):
                below = noise.child("search", number, search)
                found, last, far = self._search(model, x, y, aim, weight, below)
                closer, across = far < least, far.isfinite()
                nearest = torch.where(images(closer), found, nearest)
                least = torch.where(closer, far, least)
                high = torch.where(across, torch.minimum(high, weight), high)
                low = torch.where(across, low, torch.maximum(low, weight))
                known = high < HIGHEST
                weight = torch.where(known, (low + high) / 2, (weight * 10).clamp(max=HIGHEST))
                yield nearest, last

    def _search(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        aim: Tensor | None,
        weight: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest misclassified images, the last ones, and the former's distances."""
        free = torch.atanh((2 * x - 1) * INSIDE).requires_grad_()
        adam = torch.optim.Adam([free], lr=self.learning_rate)
        nearest, least = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        x_adv = x
        for i in range(self.steps):
            with torch.enable_grad():
                x_adv = (torch.tanh(free) / INSIDE + 1).clamp(0, 2) / 2
            at = x_adv.detach()
            result = query_model(model, at, y, "margin", noise, i, self.eot, target=aim)
            far = (at - x).flatten(1).norm(dim=1)
            closer = (result.error_rate > 0.5) & (result.loss >= self.confidence) & (far < least)
            nearest = torch.where(images(closer), at, nearest)
            least = torch.where(closer, far, least)
            missing = images(weight * (result.loss < self.confidence))
            slope = 2 * (at - x) - missing * result.gradient.nan_to_num(0, 0, 0)
            (free.grad,) = torch.autograd.grad(x_adv, free, slope)
            adam.step()
        return nearest, x_adv.detach(), least
