"""ADDT: adversarial denoising diffusion training (Liu et al., 2025, "A stochastic perspective").

A part of the forward noise is replaced, keeping its variance, by a perturbation that the classifier
finds hard (CGPO) and that is made to look Gaussian (RBGM). The denoiser learns to take it away.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.noise import Noise
from unfool.ranges import Count, NotNegative, Share, ShareAboveZero, checked_dataclass
from unfool.training.freeze import frozen
from unfool.training.objectives.denoising import Denoising, Times, denoising_loss, time_and_label

Mapping = Literal["rbgm", "normalize", "none", "linf"]
Target = Literal["ce", "mse"]
Mode = Literal["train", "eval"]
EPS, STEP = 16 / 255, 8 / 255  # of the variant linf, in the denoiser's [-1, 1]: 8/255 of pixels
STEEPEST = 10  # alpha / sigma counts as no more there


@checked_dataclass
class ADDT:
    """The error of the denoiser on noise that is in part adversarial (section 4 and algorithm 1).

    Noise of the strength lambda = clip(strength alpha / sigma, 0, most) is exchanged:
    n = sqrt(1 - lambda^2) eps + lambda delta, and the prediction is of n. For discrete, continuous
    and EDM models alike, as alpha / sigma is 1 / sigma of EDM.

    Attributes:
        classifier: The protected classifier (`nn.Module`), which guides the perturbation: in
            evaluation mode, and its weights stay as they are.
        lambda_unit: lambda per unit of alpha / sigma.
        lambda_max: The largest lambda, in [0, 1].
        cgpo_steps: Steps of CGPO; their gradients add up.
        mapping: How a gradient becomes noise: by the ranks of its values (`"rbgm"`), scaled to unit
            variance (`"normalize"`), or as it is (`"none"`). With `"linf"` (a control) it does not:
            PGD from 0 with steps of 8/255 finds a perturbation of the image, at most 16/255 in the
            denoiser's space (8/255 for pixels in [0, 1]) and within its box. Gradients do not add
            up, n = eps + min(alpha / sigma, 10) delta, and `lambda_unit` and `lambda_max` are not
            used.
        target: The loss that the perturbation increases: the classifier's cross-entropy on the
            one-step estimate of the image, or the denoiser's error (`"mse"`, a control): that of
            its prediction of the Gaussian part eps alone, not of the whole noise n.
        mode: The mode of the denoiser during the search for a perturbation: `"train"` (dropout on,
            as released) or `"eval"`.
        t_min, t_max, label_dropout, times: See `Denoising`.
    """

    classifier: Any
    lambda_unit: NotNegative = 0.03
    lambda_max: Share = 0.3
    cgpo_steps: Count = 5
    mapping: Mapping = "rbgm"
    target: Target = "ce"
    mode: Mode = "train"
    t_min: ShareAboveZero = 1e-3
    t_max: ShareAboveZero = 1.0
    label_dropout: Share = 0.1
    times: Times = "uniform"

    def __post_init__(self) -> None:
        Denoising(self.t_min, self.t_max, self.label_dropout, self.times)

    def __call__(self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,)."""
        plain = Denoising(self.t_min, self.t_max, self.label_dropout, self.times)
        t, label = time_and_label(plain, model, x, y, noise)
        delta = self.perturbation(model, x, y, t, label, noise.child("cgpo"))
        z = model.encode(x)
        mixed = self.mixed(model, t, noise.child("noise").normal(z), delta)
        return denoising_loss(model, z, t, label, mixed)

    def perturbation(
        self, model: NetworkDenoiser, x: Tensor, y: Tensor, t: Tensor, label: Tensor, noise: Noise
    ) -> Tensor:
        """Classifier-guided perturbation optimization: delta (B, ...), noise-like unless linf.

        Args:
            model: The denoiser; its weights get no gradient.
            x: Clean images (B, C, H, W) in [0, 1].
            y: Their classes (B,).
            t: Times (B, 1, 1, 1).
            label: The labels (B,) given to a conditional denoiser.
            noise: The noise for all steps.
        """
        with frozen(model, self.mode == "train"):
            return self._search(model, x, y, t, label, noise)

    def _search(
        self, model: NetworkDenoiser, x: Tensor, y: Tensor, t: Tensor, label: Tensor, noise: Noise
    ) -> Tensor:
        z = model.encode(x)
        total = torch.zeros_like(z)
        delta = total if self.mapping == "linf" else noise.child("start").normal(z)
        _, alpha, sigma, _ = model.schedule(t)
        classifier = self.classifier.to(x.device).eval().requires_grad_(False)
        for i in range(self.cgpo_steps):
            here, delta = noise.child(i), delta.detach().requires_grad_()
            eps = here.child("noise").normal(z)
            mixed = self.mixed(model, t, eps, delta)
            x_t = alpha * z + sigma * mixed
            if self.target == "mse":
                error = model.predict(x_t, t, label).to(z) - model.target(z, eps, t)
                value = error.square().flatten(1).mean(1).sum()
            else:
                x_hat = model.estimate(x_t, t, label)
                logits = classifier(model.decode(x_hat), here.child("classify"))
                value = F.cross_entropy(logits.float(), y, reduction="sum")
            gradient = torch.autograd.grad(value, delta)[0]
            if self.mapping == "linf":
                delta = (delta + STEP * gradient.sign()).clamp(-EPS, EPS)
                delta = (z + delta).clamp(-1, 1) - z
            else:
                total = total + gradient
                delta = self._mapped(total, here.child("rank"))
        return delta.detach()

    def mixed(self, model: NetworkDenoiser, t: Tensor, eps: Tensor, delta: Tensor) -> Tensor:
        """The noise `eps` with the perturbation `delta` (both (B, C, H, W)) mixed in at times `t`."""
        _, alpha, sigma, _ = model.schedule(t)
        if self.mapping == "linf":
            return eps + (alpha / sigma).clamp(max=STEEPEST) * delta
        share = (self.lambda_unit * alpha / sigma).clamp(0, self.lambda_max)
        return torch.sqrt(1 - share**2) * eps + share * delta

    def _mapped(self, gradient: Tensor, noise: Noise) -> Tensor:
        if self.mapping == "rbgm":
            return rank_map(gradient, noise.normal(gradient))
        if self.mapping == "normalize":
            scale = gradient.flatten(1).std(1).clamp(min=1e-30)
            return gradient / scale[:, None, None, None]
        return gradient


def rank_map(values: Tensor, gaussian: Tensor) -> Tensor:
    """Rank-based Gaussian mapping: Gaussian numbers in the order of the values.

    In each channel of each image the largest number goes where the largest value is, and so on; of
    equal values the first counts as the smaller.

    Args:
        values: What gives the order, (B, C, H, W).
        gaussian: The numbers, of the same shape.
    """
    ranks = values.flatten(2).argsort(dim=2, stable=True).argsort(2)
    return gaussian.flatten(2).sort(2).values.gather(2, ranks).view(values.shape)
