"""Adversarial weight perturbation (AWP; Wu et al., 2020): train at the worst weights nearby."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unfool.noise import Noise
from unfool.ranges import CountFromZero, InEps, NotNegative, checked_dataclass
from unfool.training.objectives.adversarial import PGDAT, TRADES


@checked_dataclass
class AWP:
    """The loss of PGD-AT or TRADES at perturbed weights w + v (Wu et al., 2020).

    For each layer, v = gamma |w| g / |g|, where g is the gradient, at w, of the mean loss over the
    batch's adversarial images. Training computes its gradient at w + v and applies it to w. As
    released, only weights with two or more dimensions are perturbed, and the search for v does not
    change the statistics of batch normalization. Each part of a split batch has its own v.

    Attributes:
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        steps: Steps of PGD.
        step_size: The step size of PGD, in units of eps.
        gamma: The size of v, relative to the layer's weights; 0 is plain adversarial training. The
            paper uses 0.01, and 0.005 with TRADES.
        beta: The weight of TRADES's divergence, 6 as published; None for PGD-AT.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    steps: CountFromZero = 10
    step_size: InEps = 0.25
    gamma: NotNegative = 0.01
    beta: NotNegative | None = None

    def __post_init__(self) -> None:
        self._plain()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        plain = self._plain()
        x_adv = plain.adversarial(model, x, y, noise)
        worst = self.perturbed(model, x, x_adv, y, noise)
        return plain.loss(_At(model, worst), x, x_adv, y, noise)

    def perturbed(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise
    ) -> dict[str, Tensor]:
        """Return the weights w + v by name, differentiable in w with the identity as derivative.

        Args:
            model: The classifier; neither its weights nor its buffers change.
            x: Clean images (B, C, H, W) in [0, 1].
            x_adv: Their adversarial images.
            y: Labels (B,).
            noise: The randomness of the model.
        """
        weights = {
            name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1
        }
        if not self.gamma or not weights:
            return {}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        # Copies, because autocast would cache casts of the weights themselves without their graph.
        copies = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
        loss = self._plain().loss(_At(model, copies | buffers), x, x_adv, y, noise).mean()
        gradients = torch.autograd.grad(loss, [*copies.values()], allow_unused=True)
        worst: dict[str, Tensor] = {}
        for (name, w), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                scale = self.gamma * w.detach().norm() / gradient.norm().clamp(min=1e-12)
                worst[name] = w + scale * gradient
        return worst

    def _plain(self) -> PGDAT | TRADES:
        if self.beta is None:
            return PGDAT(self.norm, self.eps, self.steps, self.step_size)
        return TRADES(self.norm, self.eps, self.steps, self.step_size, self.beta)


@dataclass(frozen=True)
class _At:
    """A model in which the weights and buffers named in `state` are replaced."""

    model: nn.Module
    state: dict[str, Tensor]

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return functional_call(self.model, self.state, (x, noise))
