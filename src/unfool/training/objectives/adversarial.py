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
    """Cross-entropy on adversarial images from PGD (Madry et al., 2018, section 2.1).

    The model is in evaluation mode for the attack, and in training mode for the loss.

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD, from a random start; with 0, the random start is the adversarial image.
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
        """Find adversarial images with PGD, shaped like `x`; the weights get no gradient."""

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, y, reduction="sum")

        threat = Threat(self.norm, self.eps)
        start = threat.start(x, noise.child("start"))
        return _strongest_images(model, loss, x, start, threat, self.steps, self.step_size, noise)

    def loss(self, model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), given its adversarial image from PGD."""
        return F.cross_entropy(model(x_adv, noise).float(), y, reduction="none")


@checked_dataclass
class TRADES:
    """Cross-entropy on clean images plus the divergence an attack can cause (Zhang et al., 2019).

    The loss is cross-entropy(f(x), y) + beta KL(f(x) || f(x')), where PGD finds x' by maximizing
    that divergence (equation 5 and algorithm 1).

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD, starting from the image plus normal noise of standard deviation 0.001
            (as published).
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
        """Find adversarial images with PGD, shaped like `x`; the weights get no gradient."""
        threat = Threat(self.norm, self.eps)
        with frozen(model):
            clean = model(x, noise).float().softmax(1)

        def loss(logits: Tensor) -> Tensor:
            return F.kl_div(logits.log_softmax(1), clean, reduction="sum")

        start = threat.project(x, x + 0.001 * noise.child("start").normal(x))
        return _strongest_images(model, loss, x, start, threat, self.steps, self.step_size, noise)

    def loss(self, model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), given its adversarial image from PGD."""
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
    """Increase `loss` of the logits by steps of `attacks.PGD`; the weights get no gradient.

    The loop is not the attack's own, because here the loss can be any function, such as the
    divergence of TRADES, its logits are float32 even under autocast, and there can be 0 steps.
    """
    pgd, x_adv = PGD(max(steps, 1), step_size=step_size), start
    with frozen(model):
        for i in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            value = loss(model(x_adv, noise.child("attack", i)).float())
            (gradient,) = torch.autograd.grad(value, x_adv)
            x_adv = pgd.step(x, x_adv.detach(), gradient, threat, i)
    return x_adv.detach()
