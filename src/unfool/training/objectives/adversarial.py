"""Adversarial training of a classifier: PGD-AT and TRADES."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.attacks.pgd import PGD
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import CountFromZero, InEps, NotNegative, checked_dataclass
from unfool.threat import Threat
from unfool.training.freeze import frozen


@checked_dataclass
class PGDAT:
    """Cross-entropy of the worst images that PGD finds (Madry et al., 2018, section 2.1).

    The attack sees the model in evaluation mode, the loss in training mode.

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD, from a random start; 0 takes the random start alone.
        step_size: The step size of PGD, in units of eps.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    steps: CountFromZero = 7
    step_size: InEps = 0.25

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        return self.loss(model, x, self.adversarial(model, x, y, noise), y, noise)

    def adversarial(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The images that PGD finds, shaped like `x`; the weights get no gradient."""

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, y, reduction="sum")

        threat = Threat(self.norm, self.eps)
        start = threat.start(x, noise.child("start"))
        return _strongest_images(model, loss, x, start, threat, self.steps, self.step_size, noise)

    def loss(self, model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), given what PGD found."""
        return F.cross_entropy(model(x_adv, noise).float(), y, reduction="none")


@checked_dataclass
class TRADES:
    """Cross-entropy of the image, and how far an attack can move the answer (Zhang et al., 2019).

    Cross-entropy(f(x), y) + beta KL(f(x) || f(x')), x' from PGD on that divergence (equation 5 and
    algorithm 1).

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD, from a start with a little normal noise (0.001, as published).
        step_size: The step size of PGD, in units of eps.
        beta: The weight of the divergence (1 / lambda of the paper).
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    steps: CountFromZero = 10
    step_size: InEps = 0.25
    beta: NotNegative = 6.0

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        return self.loss(model, x, self.adversarial(model, x, y, noise), y, noise)

    def adversarial(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The images that PGD finds, shaped like `x`; the weights get no gradient."""
        threat = Threat(self.norm, self.eps)
        with frozen(model):
            clean = model(x, noise).float().softmax(1)

        def loss(logits: Tensor) -> Tensor:
            return F.kl_div(logits.log_softmax(1), clean, reduction="sum")

        start = threat.project(x, x + 0.001 * noise.child("start").normal(x))
        return _strongest_images(model, loss, x, start, threat, self.steps, self.step_size, noise)

    def loss(self, model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), given what PGD found."""
        logits, moved = model(x, noise).float(), model(x_adv, noise).float()
        drift = F.kl_div(moved.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
        return F.cross_entropy(logits, y, reduction="none") + self.beta * drift


def _strongest_images(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    step_size: float,
    noise: Noise,
) -> Tensor:
    """The steps of `attacks.PGD` on `loss` of the logits, from `start`; the weights get no gradient.

    The loss may be any, such as the divergence of TRADES, and is of logits in float32 whatever
    autocast makes of them; and the steps may be none. So the loop is not that of an attack.
    """
    pgd, x_adv = PGD(max(steps, 1), step_size=step_size), start
    with frozen(model):
        for i in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            value = loss(model(x_adv, noise.child("attack", i)).float())
            (gradient,) = torch.autograd.grad(value, x_adv)
            x_adv = pgd.step(x, x_adv.detach(), gradient, threat, i)
    return x_adv.detach()
