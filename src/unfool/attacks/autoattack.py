"""Cascades of attacks as in AutoAttack (Croce and Hein, 2020), also for random models."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from unfool.argument_checks import check_labels, checked_attack
from unfool.attacks.apgd import APGD
from unfool.attacks.candidates import choose, require_norm
from unfool.attacks.fab import FAB
from unfool.attacks.losses import competing_logits, query_logits, recording_losses
from unfool.attacks.noise_free import split_by_noise
from unfool.attacks.pgd import PGD
from unfool.attacks.square import Square
from unfool.noise import Noise
from unfool.protocols import Attack, Classifier
from unfool.ranges import Count, CountFromZero, ShareAboveZero, checked_dataclass
from unfool.threat import Threat

Version = Literal["standard", "plus", "rand", "unfool"]
Criterion = Literal["mean", "majority"]
EOT: dict[str, int] = {"standard": 1, "plus": 1, "rand": 20, "unfool": 20}  # the defaults of `eot`


@checked_dataclass
class AutoAttack:
    """A sequence of attacks, each on the images that withstood all earlier ones.

    After each attack, its image and the best image so far are compared on the same draws, and the
    one that is misclassified more often is kept. Fresh draws then decide whether the image counts
    as broken. So a single lucky draw never decides. In the authors' release it does: one wrong
    answer of a random model counts as a broken image, and the weak images of the first attacks are
    kept. For images that the model classifies without noise, this is the published rule:
    misclassified images are not attacked further. They get a single draw, even if others get
    several (`noise_free`).

    The versions:

    - `standard`: APGD on the cross-entropy; targeted APGD on DLR; targeted FAB; Square.
    - `plus`: APGD on the cross-entropy and on DLR, and FAB, with 5 restarts each; Square; then
      targeted APGD and FAB with one. (In the release, the first FAB is untargeted; here, both are
      targeted.)
    - `rand`: APGD on the cross-entropy and on DLR, over 20 draws per step.
    - `unfool`: cheap attacks first, strong ones last, on the margin loss, which does not depend on
      the scale of logits and needs only 2 classes: PGD and APGD with few draws; Square, which
      masked gradients cannot stop; then targeted APGD, and APGD with all draws.

    Attributes:
        version: The sequence of attacks: `"standard"`, `"plus"`, or `"rand"`, as published, or
            `"unfool"`, which is stronger on random models.
        criterion: When an image counts as broken and is not attacked further. `"mean"`: the share
            of wrong draws is at least `threshold`. `"majority"`: some wrong class has more draws
            than the true one by at least two standard errors (2 sqrt(draws)). None is majority for
            `unfool`, otherwise mean.
        draws: Random draws on which candidates are compared and images are judged; at least 4.
        threshold: The share of wrong draws for the criterion `"mean"`, in (0, 1].
        eot: Draws per step; None is 20 for `rand` and `unfool`, otherwise 1, which suits models
            without noise.
        steps: Gradient steps of a run.
        queries: Queries of Square per image.
        targets: Wrong classes that targeted attacks try.
        early_stop: For PGD and APGD. If above 0, an image also leaves a stage once it is
            misclassified on this many fresh draws (see `PGD`).
    """

    version: Version = "unfool"
    criterion: Criterion | None = None
    draws: Annotated[int, Field(ge=4)] = 20
    threshold: ShareAboveZero = 1.0
    eot: Count | None = None
    steps: Count = 100
    queries: Count = 5000
    targets: Count = 9
    early_stop: CountFromZero = 0

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is l1 or l0, or the model has too few classes for the
                version.
        """
        require_norm("AutoAttack", threat, "linf", "l2")
        single = replace(self, eot=1)
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
        draws = 1 if noise_free else self.draws
        best = x.clone()
        alive = torch.arange(len(x), device=x.device)
        for i, attack in enumerate([None, *self.stages(draws)]):
            stage = noise.take(alive).child("stage", i)
            if attack is not None:
                # Hide the losses: searches on fewer and fewer images do not form one loss curve.
                with recording_losses():
                    x_adv = attack(model, x[alive], y[alive], threat, stage.child("search"))
                candidates, compare = (best[alive], x_adv), stage.child("compare")
                best[alive] = choose(model, y[alive], candidates, "margin", compare, draws)
            logits = query_logits(model, best[alive], stage.child("survive"), 0, draws)
            check_labels(y[alive], len(alive), logits.shape[2])
            needed = {"unfool": 2, "rand": 3}.get(self.version, 4)
            if logits.shape[2] < needed:
                raise ValueError(
                    f"AutoAttack's version {self.version} needs {needed} classes for its loss DLR, "
                    f"and the model has {logits.shape[2]}: set version: unfool"
                )
            others, label = competing_logits(
                logits.flatten(0, 1),
                y[alive].repeat_interleave(draws),
                getattr(model, "classes_kept", 1),
            )
            competing = others.view(len(alive), draws, -1).expand(-1, self.draws, -1)
            alive = alive[~self.broken(competing, label[::draws])]
            if not len(alive):
                break
        return best

    def broken(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return which images count as broken, (B,) of bool, given logits (B, draws, K)."""
        counts = F.one_hot(logits.argmax(2), logits.shape[2]).sum(1)  # (B, K)
        correct = counts.gather(1, y[:, None])[:, 0]
        criterion = self.criterion or ("majority" if self.version == "unfool" else "mean")
        if criterion == "mean":
            return (self.draws - correct) >= self.threshold * self.draws
        lead = counts.masked_fill(F.one_hot(y, logits.shape[2]).bool(), 0).amax(1) - correct
        return lead >= 2 * self.draws**0.5

    def stages(self, draws: int | None = None) -> list[Attack]:
        """Return the attacks of the version, in order.

        Args:
            draws: Draws on which each attack compares candidates; None is the cascade's `draws`.
        """
        eot, draws = self.eot or EOT[self.version], draws or self.draws
        steps, queries, targets = self.steps, self.queries, self.targets
        options: dict[str, Any] = {"selection_draws": draws, "early_stop": self.early_stop}
        if self.version == "unfool":
            few, fewer = max(eot // 5, 1), max(eot // 2, 1)
            return [
                PGD(max(steps // 5, 1), few, loss="margin", **options),
                APGD(max(steps // 2, 1), few, "margin", **options),
                Square(max(queries // 10, 1), few, selection_draws=draws),
                APGD(max(steps // 2, 1), fewer, "margin", min(targets, 3), **options),
                APGD(steps, eot, "ce", **options),
                APGD(steps, eot, "margin", restarts=2, **options),
            ]
        # As published: the same draws in all steps if the model has no noise, otherwise fresh ones.
        options |= {"steps_per_draw": steps + 1 if eot == 1 else 1}
        if self.version == "rand":
            return [APGD(steps, eot, "ce", **options), APGD(steps, eot, "dlr", **options)]
        restarts = 5 if self.version == "plus" else 1
        square = Square(
            queries, eot, selection_draws=draws, steps_per_draw=queries if eot == 1 else 1
        )
        targeted_dlr = APGD(steps, eot, "dlr", targets, **options)
        fab = FAB(steps, eot, targets, selection_draws=draws)
        untargeted_ce = APGD(steps, eot, "ce", restarts=restarts, **options)
        if self.version == "standard":
            return [untargeted_ce, targeted_dlr, fab, square]
        return [
            untargeted_ce,
            APGD(steps, eot, "dlr", restarts=restarts, **options),
            FAB(steps, eot, targets, restarts, selection_draws=draws),
            square,
            targeted_dlr,
            fab,
        ]
