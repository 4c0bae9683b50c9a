"""Transfer attack: adversarial images made on another classifier, without querying the model."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unfool.argument_checks import checked_attack
from unfool.attacks.views import batched_like, without_elimination
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.threat import Threat


@dataclass(frozen=True)
class Transfer:
    """An attack on a source classifier, whose adversarial images are then given to the model.

    Withstanding this attack says little about a model: an attacker with access to the model attacks
    it directly.

    Attributes:
        source: The classifier that is attacked, in calls of at most the model's `batch_size`; a
            diffusion classifier is attacked without elimination (`views.no_elimination`).
        attack: The attack on the source.
    """

    source: Any
    attack: Any

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`."""
        source = self.source
        if isinstance(source, nn.Module):
            source.eval().requires_grad_(False).to(x.device)
        source = without_elimination(batched_like(model, source))
        return self.attack(source, x, y, threat, Noise(noise.keys))
