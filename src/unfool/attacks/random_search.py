"""Random search, the baseline that any other attack must beat."""

from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, checked_dataclass
from unfool.threat import Threat


@checked_dataclass
class RandomSearch:
    """The most often misclassified image among the original and random ones at the full budget.

    Attributes:
        tries: Number of random images.
        eot: Draws of the defense's noise per try and image.
    """

    tries: Count = 100
    eot: Count = 1

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`."""
        candidates = (
            x if not i else threat.random_at_full_budget(x, noise.child("try", i))
            for i in range(self.tries + 1)
        )
        return choose(model, y, candidates, "margin", noise.child("compare"), self.eot)
