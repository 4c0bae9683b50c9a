"""Salt-and-pepper noise (Zhang et al., 2024, appendix E.1): pixels turn black or white."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import rank_score
from unfool.attacks.losses import query_model
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, checked_dataclass
from unfool.threat import Threat, per_image


@checked_dataclass
class SaltAndPepper:
    """Growing shares of random pixels turned black or white, for a threat with norm l0.

    It needs no gradient. Each try adds pixels in even steps up to the whole budget. Of all
    candidates and the original image, the one that is misclassified most often on the attacker's
    draws (the same for all) is returned; on ties, the one with the higher loss.

    Attributes:
        tries: Independent random orders of the pixels.
        shares: Steps in which a try grows to the full budget.
        eot: Draws of the defense's noise per candidate and image.
    """

    tries: Count = 4
    shares: Count = 5
    eot: Count = 1

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is not l0.
        """
        if threat.norm != "l0":
            raise ValueError(
                "salt-and-pepper changes a few pixels completely, which only l0 measures: set "
                f"threat.norm to l0 instead of {threat.norm}, and eps to the share of pixels (such "
                "as 0.1)"
            )
        best, best_score = x, torch.full((len(x),), -math.inf, device=x.device)
        for candidate in self._candidates(x, threat, noise):
            result = query_model(model, candidate, y, "margin", noise, 0, self.eot, gradient=False)
            score = rank_score(result)
            is_better = score > best_score
            best = torch.where(per_image(is_better), candidate, best)
            best_score = torch.where(is_better, score, best_score)
        return best

    def _candidates(self, x: Tensor, threat: Threat, noise: Noise) -> list[Tensor]:
        threats = [
            replace(threat, eps=threat.eps * share / self.shares)
            for share in range(1, self.shares + 1)
        ]
        return [x] + [
            smaller.random_at_full_budget(x, noise.child("try", i))
            for i in range(self.tries)
            for smaller in threats
        ]
