"""The fast adaptive boundary attack (Croce and Hein, 2020b), targeted, over the defense's noise."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.batch_queue import serve
from unfool.attacks.candidates import Selection, require_norm
from unfool.attacks.losses import query_model, runner_up_classes
from unfool.attacks.noise_free import split_by_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, checked_dataclass
from unfool.threat import Threat, per_image

STEP_LENGTH = 1.05  # the length of a step, in distances to the plane
MAX_BIAS = 0.1  # the largest weight of the step that starts at the original image
KEPT_SHARE = 0.9  # the share of the perturbation that is kept once an image is misclassified


@checked_dataclass
class FAB:
    """Steps toward the boundary of one class after another, as close to the image as possible.

    The boundary between the true and the target class is approximated by a plane, from the mean
    logits and gradients over the draws. An image counts as misclassified if most draws of the next
    step are wrong.

    The published attack (Croce and Hein, 2020) returns the nearest misclassified image if it is
    within eps. A random model is wrong there only about half of the time, and more often farther
    away. So the images at distance eps, in the direction of that image and of the last plane, are
    candidates, too, and all are compared on fresh draws. An image that is misclassified on most
    draws from the start is moved away from the plane, not toward it. Images that the model
    classifies without noise get a single draw, even if others get several (`noise_free`), and later
    runs skip those that are broken already.

    Attributes:
        steps: Steps of a run.
        eot: Draws of the defense's noise per step and image, for the gradient and for the decision.
        targets: Number of wrong classes to run toward, in order of decreasing mean logits.
        restarts: Runs for each target; the first starts at the image, the others at random.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
    """

    steps: Count = 100
    eot: Count = 1
    targets: Count = 9
    restarts: Count = 1
    selection_draws: Count | None = None

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`; the original where no candidate ranks above it.

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("FAB", threat, "linf", "l2")
        single = replace(self, eot=1, selection_draws=1)
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
        draws = self.selection_draws or self.eot
        selection = Selection(y, "margin", noise.child("compare"), draws)
        serve(model, [selection.compare(x)])
        for indices, nearest, last in self._runs(model, x, y, threat, noise, noise_free):
            originals = x[indices]
            is_allowed = threat.size(nearest - originals) <= threat.eps
            nearest_allowed = torch.where(per_image(is_allowed), nearest, originals)
            candidates = (
                nearest_allowed,
                stretched(originals, nearest, threat),
                stretched(originals, last, threat),
            )
            serve(model, [selection.compare(*candidates, which=indices)])
        return selection.best

    @checked_attack
    def nearest(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Return the nearest misclassified images of all runs, at any distance, or else `x`.

        Only the norm of the threat matters (and eps, for the random starts of `restarts`).

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("FAB", threat, "linf", "l2")
        best, least_distance = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        for _, x_adv, _ in self._runs(model, x, y, threat, noise):
            distance = threat.size(x_adv - x)
            is_closer = (distance > 0) & (distance < least_distance)
            best = torch.where(per_image(is_closer), x_adv, best)
            least_distance = torch.where(is_closer, distance, least_distance)
        return best

    def _runs(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        noise: Noise,
        skip_broken: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each run's image positions, nearest misclassified images, and last images.

        With `skip_broken`, later runs skip the images that a run broke within eps.
        """
        targets = runner_up_classes(model, x, y, noise.child("rivals"), self.eot, self.targets)
        remaining = torch.arange(len(x), device=x.device)
        for i, target in enumerate(targets.unbind(1)):
            for restart in range(self.restarts):
                run_noise = noise.child("run", i, restart)
                if not len(remaining):
                    return
                run_noise, originals = run_noise.take(remaining), x[remaining]
                start = threat.start(originals, run_noise.child("start")) if restart else originals
                nearest, last = self._run(
                    model, originals, y[remaining], target[remaining], start, threat, run_noise
                )
                yield remaining, nearest, last
                if skip_broken:
                    distance = threat.size(nearest - originals)
                    remaining = remaining[~((distance > 0) & (distance <= threat.eps))]

    def _run(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        target: Tensor,
        x_adv: Tensor,
        threat: Threat,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images, and ones away from the true class, or `x`."""
        nearest, last, least_distance = x, x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        for i in range(self.steps):
            result = query_model(model, x_adv, y, "margin", noise, i, self.eot, target=target)
            gradient = result.gradient.nan_to_num(0, 0, 0)
            # the gains of the loss from x_adv, and from x, to the plane
            gap_from_iterate = -result.loss.nan_to_num(0, 0, 0)
            gap_from_original = gap_from_iterate + (gradient * (x_adv - x)).flatten(1).sum(1)
            step_from_iterate = to_plane(x_adv, gradient, gap_from_iterate, threat)
            step_from_original = to_plane(x, gradient, gap_from_original, threat)
            length = threat.size(step_from_iterate)
            total_length = length + threat.size(step_from_original)
            bias = per_image((length / total_length.clamp(min=1e-12)).clamp(max=MAX_BIAS))
            from_iterate = x_adv + STEP_LENGTH * step_from_iterate
            from_original = x + STEP_LENGTH * step_from_original
            x_adv = ((1 - bias) * from_iterate + bias * from_original).clamp(0, 1)
            next_result = query_model(
                model, x_adv, y, "margin", noise, i + 1, self.eot, gradient=False
            )
            is_broken, distance = next_result.error_rate > 0.5, threat.size(x_adv - x)
            is_closer = is_broken & (distance < least_distance)
            nearest = torch.where(per_image(is_closer), x_adv, nearest)
            least_distance = torch.where(is_closer, distance, least_distance)
            # away from the true class, on either side of the plane
            step_away = per_image(gap_from_original.sign()) * step_from_original
            last = torch.where(per_image(is_broken | (gap_from_original < 0)), x + step_away, last)
            x_adv = torch.where(per_image(is_broken), x + KEPT_SHARE * (x_adv - x), x_adv)
        return nearest, last


def stretched(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """Return the allowed image at distance eps from `x` in the direction of `x_adv`."""
    size = threat.size(x_adv - x).clamp(min=1e-12)
    return threat.project(x, x + per_image(threat.eps / size) * (x_adv - x))


def to_plane(x: Tensor, normal: Tensor, gain: Tensor, threat: Threat) -> Tensor:
    """Return the shortest d, in the threat's norm, with <normal, d> = gain and x + d in [0, 1].

    Every pixel moves at its own speed (1 for linf, |normal| for l2) until it reaches the edge of
    the box. The time at which all pixels together reach `gain` is found among the sorted times at
    which they reach the edge (Croce and Hein, 2020b). If the box forbids it, d goes as far as the
    box allows.

    Args:
        x: Images (B, C, H, W) in [0, 1].
        normal: The normals of the planes, shaped like `x`.
        gain: Wanted changes (B,), of any sign.
        threat: A threat with norm linf or l2.
    """
    slopes = normal.flatten(1)
    scale = slopes.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    slopes, total_gain = slopes / scale, gain[:, None] / scale
    direction = total_gain.sign() * slopes.sign()
    room = torch.where(direction > 0, 1 - x.flatten(1), x.flatten(1)) * direction.abs()
    speed = slopes.abs() if threat.norm == "l2" else (slopes != 0).to(x)
    edge_times = torch.where(speed > 0, room / speed.clamp(min=torch.finfo(x.dtype).tiny), 0)
    edge_times, order = edge_times.sort(1)
    # the gain of the pixels at the edge of the box, and that of the others per unit of time
    gain_at_edge = (slopes.abs() * room).gather(1, order).cumsum(1)
    gain_rates = (slopes.abs() * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    zero = torch.zeros_like(total_gain)
    gain_before = torch.cat([zero, gain_at_edge], 1)
    gain_rates = torch.cat([gain_rates, zero], 1)
    edges_reached = (gain_before[:, 1:] + gain_rates[:, 1:] * edge_times < total_gain.abs()).sum(
        1, keepdim=True
    )
    missing_gain = total_gain.abs() - gain_before.gather(1, edges_reached)
    time = missing_gain / gain_rates.gather(1, edges_reached).clamp(min=torch.finfo(x.dtype).tiny)
    time = torch.where(edges_reached == edge_times.shape[1], edge_times[:, -1:], time)
    return (direction * torch.minimum(time * speed, room)).view_as(x)
