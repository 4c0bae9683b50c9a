"""Denoising score matching (Ho et al., 2020): the squared error of a network's prediction at x_t."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Schedule, first_time
from unfool.noise import Noise
from unfool.ranges import NotNegative, Positive, Share, ShareAboveZero, checked_dataclass

Times = Literal["uniform", "lognormal"]


@checked_dataclass
class Denoising:
    """Denoising score matching: the squared error of the prediction (Ho et al., 2020, equation 14).

    Attributes:
        t_min: The smallest time of training, above 0; on a discrete chain, times before its first
            step are raised to it.
        t_max: The largest time of training, at most 1; a purifier at t* never needs more than t*.
        label_dropout: The probability of replacing a label by the null class, for a conditional
            denoiser.
        times: The distribution of times: `"uniform"`, or `"lognormal"`, where the logarithm of
            sigma / alpha is normal (Karras et al., 2022, table 1), truncated to the range.
        center: The mean of that logarithm, for `"lognormal"`.
        spread: The standard deviation of that logarithm, for `"lognormal"`.
        min_snr: The cap on the weight (alpha / sigma)^2 of the squared error of x_hat (Hang et al.,
            2023, section 3.4: 5); None weights errors of the network's own prediction equally.
        stratified: Whether the times of a batch of B images are stratified, with one time in each
            of B parts of equal probability.
        classification_weight: The weight of the cross-entropy of the diffusion classifier on this
            random draw. Its logits are the negative squared errors of the prediction under each
            class, summed over the image. It needs a multi-head denoiser, which returns all of them
            in one call.
    """

    t_min: ShareAboveZero = 1e-3
    t_max: ShareAboveZero = 1.0
    label_dropout: Share = 0.1
    times: Times = "uniform"
    center: float = -1.2
    spread: Positive = 1.2
    min_snr: Positive | None = None
    stratified: bool = False
    classification_weight: NotNegative = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(
                f"times must satisfy 0 < t_min < t_max <= 1, not {self.t_min} and {self.t_max}"
            )

    def __call__(self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), each at its own random time."""
        t, label = time_and_label(self, model, x, y, noise)
        z = model.encode(x)
        eps = noise.child("noise").normal(z)
        if self.classification_weight:
            loss, cross_entropy = losses_of_heads(model, z, t, label, y, eps)
        else:
            loss, cross_entropy = denoising_loss(model, z, t, label, eps), 0.0
        if self.min_snr is not None:
            _, alpha, sigma, _ = model.schedule(t)
            weight = ((alpha / sigma) ** 2).clamp(max=self.min_snr)
            loss = loss * (weight / model.loss_factor(t)).flatten()
        return loss + self.classification_weight * cross_entropy

    def quantile(self, probability: Tensor, schedule: Schedule) -> Tensor:
        """The quantiles of the distribution of times at `probability`, a tensor of any shape."""
        if self.times == "uniform":
            return self.t_min + (self.t_max - self.t_min) * probability
        grid = torch.linspace(self.t_min, self.t_max, 2001, dtype=torch.float64)
        _, alpha, sigma, _ = schedule(grid)
        normal = torch.distributions.Normal(self.center, self.spread)
        cumulative = normal.cdf((sigma / alpha).log())
        cumulative = (cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0])
        times = np.interp(probability.cpu().double().numpy(), cumulative.numpy(), grid.numpy())
        return torch.from_numpy(times).to(probability)


def time_and_label(
    objective: Denoising, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Draw each image's time (B, 1, 1, 1) and the label (B,) that a conditional denoiser gets."""
    probability = noise.child("time").uniform(x[:, :1, :1, :1])
    if objective.stratified:
        probability = stratified(probability, noise.child("stratum").uniform(probability))
    t = objective.quantile(probability, model.schedule).clamp(min=first_time(model.schedule))
    return t, label_or_null(model, y, objective.label_dropout, noise)


def label_or_null(model: NetworkDenoiser, y: Tensor, dropout: float, noise: Noise) -> Tensor:
    """Replace some labels (B,) by the null class of a conditional denoiser.

    Args:
        model: The denoiser; if it has no classes, `y` is returned unchanged.
        y: The classes of the images (B,).
        dropout: The probability of replacing a label.
        noise: The randomness that selects which labels are replaced.

    Raises:
        ValueError: Labels are to be replaced, and the denoiser has no null class.
    """
    if not model.classes:
        return y
    if dropout and not getattr(model, "null", True):
        raise ValueError(
            f"the network has {model.classes} classes and no null class, so no label can be "
            "replaced: set objective.label_dropout: 0"
        )
    dropped = noise.child("drop").uniform(torch.empty(y.shape, device=y.device)) < dropout
    return torch.where(dropped, model.classes, y)


def stratified(rank: Tensor, within: Tensor) -> Tensor:
    """Return stratified uniform values, one in each of B equal parts of [0, 1), shaped like `rank`.

    Args:
        rank: Uniform values (B, ...), one per image, whose order assigns images to parts.
        within: Uniform position of each image within its part, in the same shape.
    """
    tied = rank.double() + within.double() * 2**-24  # breaks ties between equal 24-bit values
    order = tied.flatten().argsort().argsort().view_as(rank)
    return ((order + within) / len(rank)).clamp(max=1 - 2**-24)


def denoising_loss(model: NetworkDenoiser, z: Tensor, t: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """The mean squared error of the network's prediction at x_t, (B,).

    Args:
        model: The denoiser.
        z: Clean images (B, C, H, W) in the denoiser's space.
        t: Times, shaped () or (B, 1, 1, 1).
        y: Labels (B,), which an unconditional denoiser ignores.
        eps: The noise in x_t, shaped like `z`.
    """
    _, alpha, sigma, _ = model.schedule(t)
    out = model.predict(alpha * z + sigma * eps, t, y)
    return (out.to(z) - model.target(z, eps, t)).square().flatten(1).mean(1)


def losses_of_heads(
    model: NetworkDenoiser, z: Tensor, t: Tensor, label: Tensor, y: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the denoising loss and the diffusion classifier's cross-entropy, both (B,).

    Args:
        model: A multi-head denoiser.
        z: Clean images (B, C, H, W) in the denoiser's space.
        t: Times (B, 1, 1, 1).
        label: The head that denoises each image (B,): a class, or the null class.
        y: The classes of the images (B,).
        eps: The noise in x_t, shaped like `z`.

    Raises:
        ValueError: The denoiser has no heads.
    """
    if not model.multi_head:
        raise ValueError(
            "classification_weight needs a denoiser that returns the errors of all classes in one "
            "call: give it classes and multi_head: true, or leave classification_weight out"
        )
    _, alpha, sigma, _ = model.schedule(t)
    labels = torch.arange(model.classes + 1, device=z.device).expand(len(z), -1)
    out = model.predict(alpha * z + sigma * eps, t, labels).to(z)
    errors = (out - model.target(z, eps, t).unsqueeze(1)).square().flatten(2).mean(2)
    logits = -z[0].numel() * errors[:, : model.classes]
    cross_entropy = F.cross_entropy(logits, y, reduction="none")
    return errors.gather(1, label[:, None])[:, 0], cross_entropy
