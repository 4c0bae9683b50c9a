"""The fast adaptive boundary attack (Croce and Hein, 2020b), targeted, over the defense's noise."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked
from unfool.attacks.batch_queue import serve
from unfool.attacks.candidates import Selection, require_norm
from unfool.attacks.losses import query_model, runner_up_classes
from unfool.attacks.noise_free import split_by_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, checked_dataclass
from unfool.threat import Threat, images

BEYOND = 1.05  # the length of a step, in distances to the plane
PULL = 0.1  # the largest weight of the step that starts at the original image
BACK = 0.9  # the share of the perturbation that is kept once an image is misclassified


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

    @checked
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`; the original where no candidate ranks above it.

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("FAB", threat, "linf", "l2")
        single = replace(self, eot=1, selection_draws=1)

        def attack(x: Tensor, y: Tensor, noise: Noise, sure: bool) -> Tensor:
            return (single if sure else self)._attack(model, x, y, threat, noise, sure)

        return split_by_noise(model, x, y, noise, attack)

    def _attack(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise, sure: bool
    ) -> Tensor:
        draws = self.selection_draws or self.eot
        contest = Selection(y, "margin", noise.child("compare"), draws)
        serve(model, [contest.meet(x)])
        for left, nearest, last in self._runs(model, x, y, threat, noise, sure):
            still = x[left]
            near = threat.size(nearest - still) <= threat.eps
            within = torch.where(images(near), nearest, still)
            further = stretched(still, nearest, threat), stretched(still, last, threat)
            serve(model, [contest.meet(within, *further, which=left)])
        return contest.best

    @checked
    def nearest(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Return the nearest misclassified images of all runs, at any distance, or else `x`.

        Only the norm of the threat matters (and eps, for the random starts of `restarts`).

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("FAB", threat, "linf", "l2")
        best, least = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        for _, found, _ in self._runs(model, x, y, threat, noise):
            way = threat.size(found - x)
            closer = (way > 0) & (way < least)
            best = torch.where(images(closer), found, best)
            least = torch.where(closer, way, least)
        return best

    def _runs(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        noise: Noise,
        leave: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each run's image positions, nearest misclassified images, and last images.

        With `leave`, later runs skip the images that a run broke within eps.
        """
        aims = runner_up_classes(model, x, y, noise.child("rivals"), self.eot, self.targets)
        left = torch.arange(len(x), device=x.device)
        for i, aim in enumerate(aims.unbind(1)):
            for restart in range(self.restarts):
                below = noise.child("run", i, restart)
                if not len(left):
                    return
                below, still = below.take(left), x[left]
                start = threat.start(still, below.child("start")) if restart else still
                nearest, last = self._run(model, still, y[left], aim[left], start, threat, below)
                yield left, nearest, last
                if leave:
                    way = threat.size(nearest - still)
                    left = left[~((way > 0) & (way <= threat.eps))]

    def _run(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        aim: Tensor,
        x_adv: Tensor,
        threat: Threat,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images, and ones away from the true class, or `x`."""
        nearest, last, least = x, x, torch.full_like(x[:, 0, 0, 0], torch.inf)
        for i in range(self.steps):
            result = query_model(model, x_adv, y, "margin", noise, i, self.eot, target=aim)
            slope = result.gradient.nan_to_num(0, 0, 0)
            missing = -result.loss.nan_to_num(0, 0, 0)  # gain from x_adv to the plane,
            since = missing + (slope * (x_adv - x)).flatten(1).sum(1)  # and from x to it
            here = to_plane(x_adv, slope, missing, threat)
            there = to_plane(x, slope, since, threat)
            one, two = threat.size(here), threat.size(there)
            share = images((one / (one + two).clamp(min=1e-12)).clamp(max=PULL))
            x_adv = (1 - share) * (x_adv + BEYOND * here) + share * (x + BEYOND * there)
            x_adv = x_adv.clamp(0, 1)
            judged = query_model(model, x_adv, y, "margin", noise, i + 1, self.eot, gradient=False)
            across, way = judged.error_rate > 0.5, threat.size(x_adv - x)
            closer = across & (way < least)
            nearest = torch.where(images(closer), x_adv, nearest)
            least = torch.where(closer, way, least)
            away = images(since.sign()) * there  # from the true class, on either side
            last = torch.where(images(across | (since < 0)), x + away, last)
            x_adv = torch.where(images(across), x + BACK * (x_adv - x), x_adv)
        return nearest, last


def stretched(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """Return the allowed image at distance eps from `x` in the direction of `x_adv`."""
    size = threat.size(x_adv - x).clamp(min=1e-12)
    return threat.project(x, x + images(threat.eps / size) * (x_adv - x))


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
    pull = normal.flatten(1)
    scale = pull.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    pull, wanted = pull / scale, gain[:, None] / scale
    way = wanted.sign() * pull.sign()
    room = torch.where(way > 0, 1 - x.flatten(1), x.flatten(1)) * way.abs()
    speed = pull.abs() if threat.norm == "l2" else (pull != 0).to(x)
    meets = torch.where(speed > 0, room / speed.clamp(min=torch.finfo(x.dtype).tiny), 0)
    meets, order = meets.sort(1)
    gained = (pull.abs() * room).gather(1, order).cumsum(1)  # by pixels at the edge of the box
    slopes = (pull.abs() * speed).gather(1, order).flip(1).cumsum(1).flip(1)  # of the other pixels
    zero = torch.zeros_like(wanted)
    before = torch.cat([zero, gained], 1)
    slopes = torch.cat([slopes, zero], 1)
    met = (before[:, 1:] + slopes[:, 1:] * meets < wanted.abs()).sum(1, keepdim=True)
    rest = wanted.abs() - before.gather(1, met)
    time = rest / slopes.gather(1, met).clamp(min=torch.finfo(x.dtype).tiny)
    time = torch.where(met == meets.shape[1], meets[:, -1:], time)
    return (way * torch.minimum(time * speed, room)).view_as(x)
