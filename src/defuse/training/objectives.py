"""Training objectives: a model, images and labels to the loss of each image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from defuse.diffusion.denoise import Network
from defuse.noise import Noise
from defuse.protocols import Classifier
from defuse.threat import images


@dataclass(frozen=True)
class Denoising:
    """The plain objective (Ho et al., 2020, equation 14): the squared error of the prediction.

    Attributes:
        t_min: The least time of training, above 0.
        t_max: The greatest; a purifier at t* never needs more than t*.
        drop: How often a label is replaced by the null class, for a conditional denoiser.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(
                f"times must satisfy 0 < t_min < t_max <= 1, not {self.t_min} and {self.t_max}"
            )

    def __call__(self, model: Network, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,), with a time of its own for each."""
        t = self.t_min + (self.t_max - self.t_min) * noise.fold("time").uniform(x[:, :1, :1, :1])
        label = y
        if model.classes:
            dropped = noise.fold("drop").uniform(x[:, 0, 0, 0]) < self.drop
            label = torch.where(dropped, model.classes, y)
        return denoising_loss(model, x, t, label, noise.fold("noise"))


def denoising_loss(model: Network, x: Tensor, t: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """The mean squared error of what the network predicts of x_t, (B,).

    Args:
        model: The denoiser.
        x: Clean images (B, C, H, W) in [0, 1].
        t: Times, shaped () or (B, 1, 1, 1).
        y: Labels (B,), of which an unconditional denoiser takes no notice.
        noise: The noise in x_t.
    """
    z, eps = model.encode(x), noise.normal(x)
    _, alpha, sigma, _ = model.schedule(t)
    out = model.predict(alpha * z + sigma * eps, t, y)
    return (out - model.target(z, eps, t)).square().flatten(1).mean(1)


def cross_entropy(model: Classifier, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """The plain objective of a classifier: cross-entropy (B,)."""
    return F.cross_entropy(model(x, noise), y, reduction="none")


def augmented(x: Tensor, noise: Noise, flip: bool, crop: int) -> Tensor:
    """Images mirrored half of the time, and moved by up to `crop` pixels (grey outside)."""
    if flip:
        x = torch.where(images(noise.fold("flip").uniform(x[:, 0, 0, 0]) < 0.5), x.flip(3), x)
    if crop:
        padded = F.pad(x, (crop,) * 4, value=0.5)
        places = (noise.fold("crop").uniform(x[:, 0, 0, :2]) * (2 * crop + 1)).long().tolist()
        high, wide = x.shape[2:]
        x = torch.stack(
            [p[:, i : i + high, j : j + wide] for p, (i, j) in zip(padded, places, strict=True)]
        )
    return x
