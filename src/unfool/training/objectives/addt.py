"""ADDT: adversarial denoising diffusion training (Liu et al., 2025, "A stochastic perspective").

Part of the forward noise is replaced, at the same variance, by a perturbation that is optimized to
fool the classifier (CGPO) and mapped to look Gaussian (RBGM). The denoiser learns to remove it.
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
# PGD of the mapping "linf", in the denoiser's range [-1, 1], so eps is 8/255 for pixels in [0, 1].
EPS, STEP = 16 / 255, 8 / 255
STEEPEST = 10  # the largest alpha / sigma that the mapping "linf" uses


@checked_dataclass
class ADDT:
    """The denoiser's error on partly adversarial noise (section 4 and algorithm 1).

    With lambda = clip(lambda_unit alpha / sigma, 0, lambda_max), the noise of x_t is
    n = sqrt(1 - lambda^2) eps + lambda delta, and the denoiser is trained to predict n. This holds
    for discrete, continuous and EDM models alike, because alpha / sigma is 1 / sigma of EDM.

    Attributes:
        classifier: The protected classifier (`nn.Module`), which guides the perturbation; it is in
            evaluation mode, and its weights do not change.
        lambda_unit: lambda per unit of alpha / sigma.
        lambda_max: The largest lambda, in [0, 1].
        cgpo_steps: The number of CGPO steps, whose gradients are summed.
        mapping: How a gradient becomes noise: by the ranks of its values (`"rbgm"`), scaled to unit
            variance (`"normalize"`), or unchanged (`"none"`). `"linf"`, a control, makes no noise:
            PGD from 0 with steps of 8/255 finds a perturbation of the image, at most 16/255 in the
            denoiser's space (8/255 for pixels in [0, 1]) and within the valid range of images.
            Gradients are not summed, n = eps + min(alpha / sigma, 10) delta, and `lambda_unit` and
            `lambda_max` are ignored.
        target: The loss that the perturbation increases: the classifier's cross-entropy on the
            one-step estimate of the image (`"ce"`), or, as a control, the denoiser's error
            (`"mse"`) in predicting the Gaussian part eps alone, not the whole noise n.
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
        """Find delta (B, C, H, W) by classifier-guided perturbation optimization (CGPO).

        Args:
            model: The denoiser, whose weights get no gradient.
            x: Clean images (B, C, H, W) in [0, 1].
            y: Their classes (B,).
            t: Times (B, 1, 1, 1).
            label: The labels (B,) given to a conditional denoiser.
            noise: The randomness of all steps.
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
            step_noise, delta = noise.child(i), delta.detach().requires_grad_()
            eps = step_noise.child("noise").normal(z)
            mixed = self.mixed(model, t, eps, delta)
            x_t = alpha * z + sigma * mixed
            if self.target == "mse":
                error = model.predict(x_t, t, label).to(z) - model.target(z, eps, t)
                value = error.square().flatten(1).mean(1).sum()
            else:
                x_hat = model.estimate(x_t, t, label)
                logits = classifier(model.decode(x_hat), step_noise.child("classify"))
                value = F.cross_entropy(logits.float(), y, reduction="sum")
            gradient = torch.autograd.grad(value, delta)[0]
            if self.mapping == "linf":
                delta = (delta + STEP * gradient.sign()).clamp(-EPS, EPS)
                delta = (z + delta).clamp(-1, 1) - z
            else:
                total = total + gradient
                delta = self._mapped(total, step_noise.child("rank"))
        return delta.detach()

    def mixed(self, model: NetworkDenoiser, t: Tensor, eps: Tensor, delta: Tensor) -> Tensor:
        """Mix the perturbation `delta` into the noise `eps`, both (B, C, H, W), at times `t`."""
        _, alpha, sigma, _ = model.schedule(t)
        if self.mapping == "linf":
            return eps + (alpha / sigma).clamp(max=STEEPEST) * delta
        lam = (self.lambda_unit * alpha / sigma).clamp(0, self.lambda_max)
        return torch.sqrt(1 - lam**2) * eps + lam * delta

    def _mapped(self, gradient: Tensor, noise: Noise) -> Tensor:
        if self.mapping == "rbgm":
            return rank_map(gradient, noise.normal(gradient))
        if self.mapping == "normalize":
            scale = gradient.flatten(1).std(1).clamp(min=1e-30)
            return gradient / scale[:, None, None, None]
        return gradient


def rank_map(values: Tensor, gaussian: Tensor) -> Tensor:
    """Arrange Gaussian samples in the order of `values` (rank-based Gaussian mapping, RBGM).

    In each channel of each image, the largest sample goes to the position of the largest value, and
    so on; of two equal values, the first counts as smaller.

    Args:
        values: Tensor (B, C, H, W) that determines the order.
        gaussian: Gaussian samples of the same shape.
    """
    ranks = values.flatten(2).argsort(dim=2, stable=True).argsort(2)
    return gaussian.flatten(2).sort(2).values.gather(2, ranks).view(values.shape)
