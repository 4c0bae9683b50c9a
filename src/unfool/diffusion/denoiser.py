"""Denoisers: what a diffusion model is, seen from everything above it.

A denoiser answers one question, E[x_0 | x_t]. Whether its network predicts the noise, the image, the
velocity or a scaled mixture, and in which units it is told the time, is settled inside it.
"""

from abc import ABC, abstractmethod
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from unfool.diffusion.schedule import VP, Schedule, chain_length
from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr

Prediction = Literal["noise", "image", "velocity", "edm"]
SIGMA_DATA = 0.5  # the standard deviation that the prediction "edm" takes pixels in [-1, 1] to have


class Denoiser(nn.Module, ABC):
    """E[x_0 | x_t] under a schedule, in a space of its own.

    Attributes:
        schedule: Times to scales.
        shape: (C, H, W) of the images it was made for; None if any will do.
        resizes: Whether `encode` brings images of any size to that shape.
        classes: How many labels it can be conditioned on; 0 for an unconditional one.
        multi_head: Whether one call answers for several labels of each image.
        wordings: In how many ways each class can be told, if not in one: the label
            c + (classes + 1) w is class c in its wording w.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    schedule: Schedule
    shape: tuple[int, int, int] | None = None
    resizes: bool = False
    classes: int = 0
    multi_head: bool = False
    wordings: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], shaped like `x_t`, or (B, L, C, H, W) for L labels of each image.

        Args:
            x_t: Noisy images (B, C, H, W) in the denoiser's space.
            t: Times in [0, 1], shaped () or (B, 1, 1, 1).
            label: Class labels (B,), or (B, L) of a multi-head denoiser; None for the unconditional
                answer.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Images of [0, 1] to the denoiser's space: here [-1, 1], without a clamp."""
        return 2 * x - 1

    def decode(self, z: Tensor) -> Tensor:
        """The denoiser's space to images of [0, 1]."""
        return (z + 1) / 2

    def perturb(
        self, z: Tensor, t: Tensor, noise: Noise, schedule: Schedule | None = None
    ) -> Tensor:
        """A draw of x_t given x_0 = `z`, by the denoiser's schedule or another."""
        scales = (schedule or self.schedule)(t)
        return scales.alpha * z + scales.sigma * noise.normal(z)


class NetworkDenoiser(Denoiser):
    """A network as a denoiser: x_hat from what it predicts.

    The network is called with (x_t, time (B,)), and the labels (B,) if it has classes. Where images
    have no label, the label is `classes`, the null class.

    Args:
        network: The network; a diffusers `UNet2DModel` or any module with that call.
        schedule: Its noise schedule; `VP()` if None.
        predicts: `"noise"`, `"image"`, `"velocity"` (alpha noise - sigma x_0), or `"edm"`: the
            network's input and target are scaled to unit variance (Karras et al., 2022, section 5).
        shape: (C, H, W) of its images.
        classes: How many labels it knows.
        multi_head: Whether the network takes labels (B, L) too, and answers for all of them in one call.
        time: `"scaled"` tells it 1000 t - 1 (999 t for the continuous models of score_sde: use
            `"score_sde"`), `"index"` the whole number of the step, counted from 0.
        clip_x0: Whether x_hat is clipped to [-1, 1], as many DDPM samplers do. Clipped pixels have no
            gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        schedule: Schedule | None = None,
        predicts: Prediction = "noise",
        shape: tuple[int, int, int] | None = None,
        classes: int = 0,
        multi_head: bool = False,
        time: Literal["scaled", "score_sde", "index"] = "scaled",
        clip_x0: bool = False,
    ):
        super().__init__()
        if predicts not in get_args(Prediction):
            raise ValueError(
                f"a network predicts {', '.join(get_args(Prediction))}; not {predicts!r}"
            )
        self.network, self.schedule = network, schedule or VP()
        self.predicts, self.shape, self.classes = predicts, shape, classes
        self.multi_head, self.time, self.clip_x0 = multi_head, time, clip_x0

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t]."""
        out = self.estimate(x_t, t, label)
        return out.clamp(-1, 1) if self.clip_x0 else out

    def estimate(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], never clipped."""
        _, alpha, sigma, _ = self.schedule(_exact(t, x_t))
        out = self.predict(x_t, t, label)
        if out.ndim > x_t.ndim:  # several labels of each image
            x_t, alpha, sigma = (
                value.unsqueeze(1) if value.ndim else value for value in (x_t, alpha, sigma)
            )
        if self.predicts == "noise":
            out = (x_t - sigma * out) / alpha
        elif self.predicts == "velocity":
            out = alpha * x_t - sigma * out
        elif self.predicts == "edm":
            size = _size(alpha, sigma)
            out = alpha * SIGMA_DATA**2 / size**2 * x_t + sigma * SIGMA_DATA / size * out
        return out

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """What the network itself says, in its own terms, shaped as `forward` answers."""
        exact = _exact(t, x_t)
        time = self._time(exact).to(x_t).expand(len(x_t), 1, 1, 1).flatten()
        if self.predicts == "edm":
            _, alpha, sigma, _ = self.schedule(exact)
            x_t = x_t / _size(alpha, sigma)
        if not self.classes:
            out = self.network(x_t, time)
        else:
            null = torch.full((len(x_t),), self.classes, device=x_t.device)
            out = self.network(x_t, time, null if label is None else label)
        return cast(Tensor, out if isinstance(out, Tensor) else out.sample)

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What `predict` should say of x_t = alpha z + sigma eps."""
        _, alpha, sigma, _ = self.schedule(t)
        if self.predicts == "edm":
            return (sigma / SIGMA_DATA * z - alpha * SIGMA_DATA * eps) / _size(alpha, sigma)
        return {"noise": eps, "image": z, "velocity": alpha * eps - sigma * z}[self.predicts]

    def sharpness(self, t: Tensor) -> Tensor:
        """How much a squared error of x_hat weighs in the squared error of the prediction."""
        _, alpha, sigma, _ = self.schedule(t)
        if self.predicts == "image":
            return torch.ones_like(alpha)
        if self.predicts == "noise":
            return (alpha / sigma) ** 2
        if self.predicts == "velocity":
            return sigma**-2
        return (_size(alpha, sigma) / (sigma * SIGMA_DATA)) ** 2

    def _time(self, t: Tensor) -> Tensor:
        if self.time == "score_sde":
            return 999 * t
        time = (chain_length(self.schedule) * t - 1).clamp(min=0)
        return time.round() if self.time == "index" else time


class Mixture(Denoiser):
    """The exact denoiser of a world of equal isotropic Gaussians, for tests and tours.

    Args:
        means: The center of each class (K, C, H, W), in [-1, 1].
        spread: The standard deviation of a class, in [-1, 1] units.
        schedule: The noise schedule; `VP()` if None.
    """

    means: Tensor

    def __init__(self, means: Tensor, spread: float, schedule: Schedule | None = None):
        super().__init__()
        self.register_buffer("means", means)
        self.spread, self.schedule = spread, schedule or VP()
        _, *shape = means.shape
        self.shape, self.classes = (shape[0], shape[1], shape[2]), len(means)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], in closed form."""
        scales = self.schedule(_exact(t, x_t))
        _, alpha, sigma, _ = (s[..., None] if s.ndim else s for s in scales)
        variance = (alpha * self.spread) ** 2 + sigma**2  # (..., 1) beside (B, K, C, H, W)
        gap = x_t[:, None] - alpha * self.means
        if label is None:
            weight = (-(gap**2 / (2 * variance)).flatten(2).sum(2)).softmax(1)
        else:
            weight = nn.functional.one_hot(label, len(self.means)).to(x_t)
        posterior = self.means + alpha * self.spread**2 / variance * gap
        return torch.einsum("bk,bk...->b...", weight, posterior)


def _size(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The standard deviation of x_t, if that of x_0 is SIGMA_DATA."""
    return torch.sqrt((alpha * SIGMA_DATA) ** 2 + sigma**2)


def _exact(t: Tensor, x_t: Tensor) -> Tensor:
    """A time in float64 if it is one for all images: a number keeps the type of what it meets."""
    return t.double() if t.ndim == 0 else t.to(x_t)
