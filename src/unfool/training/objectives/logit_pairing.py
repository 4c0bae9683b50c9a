"""Adversarial logit pairing (ALP; Kannan et al., 2018): similar logits for clean and attacked images."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from unfool.noise import Noise
from unfool.ranges import CountFromZero, InEps, NotNegative, Share, checked_dataclass
from unfool.training.objectives.adversarial import PGDAT


@checked_dataclass
class ALP:
    """Cross-entropy on clean and adversarial images plus the squared difference of their logits.

    The loss is clean_share CE(f(x), y) + (1 - clean_share) CE(f(x'), y) + weight mean (f(x') -
    f(x))^2 (Kannan et al., 2018), where x' is from PGD and the mean is over classes. With `weight`
    and `clean_share` 0 it is PGD-AT. The published model withstood only weak attacks (Engstrom et
    al., 2018), so evaluate with strong ones.

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD, from a random start; with 0, the random start is the adversarial image.
        step_size: The step size of PGD, in units of eps.
        weight: The weight of the squared difference; 0.5 in the paper.
        clean_share: The weight of the cross-entropy on clean images, in [0, 1]; 0.5 in the paper.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    steps: CountFromZero = 7
    step_size: InEps = 0.25
    weight: NotNegative = 0.5
    clean_share: Share = 0.5

    def __post_init__(self) -> None:
        self._attack()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        x_adv = self._attack().adversarial(model, x, y, noise)
        moved = model(x_adv, noise).float()
        loss = (1 - self.clean_share) * F.cross_entropy(moved, y, reduction="none")
        if not (self.weight or self.clean_share):
            return loss
        logits = model(x, noise).float()
        clean = self.clean_share * F.cross_entropy(logits, y, reduction="none")
        return loss + clean + self.weight * (moved - logits).square().mean(1)

    def _attack(self) -> PGDAT:
        return PGDAT(self.norm, self.eps, self.steps, self.step_size)
