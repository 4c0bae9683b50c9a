"""Denoisers: the interface of a diffusion model for all other code.

A denoiser computes E[x_0 | x_t]. It hides whether its network predicts the noise, the image, the
velocity, or a scaled mixture, and in which units the network takes the time.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from unfool.diffusion.schedule import VP, Discrete, Scales, Schedule, chain_length
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.runtime.text import html_repr, short_repr

Prediction = Literal["noise", "image", "velocity", "edm", "ve", "subvp", "consistency"]
Time = Literal["scaled", "score_sde", "index", "rescaled", "edm", "consistency", "ve", "subvp"]
SIGMA_DATA = 0.5  # standard deviation of pixels in [-1, 1] that the prediction "edm" assumes
SIGMA_MIN = 0.002  # the noise at which a consistency model returns its input
TIME_TOLERANCE = 1e-3  # a step of a chain of 1000 steps, to which times are rounded


class Denoiser(nn.Module, ABC):
    """A denoiser, which estimates E[x_0 | x_t] under a noise schedule, in its own space.

    Attributes:
        schedule: The noise schedule, which maps times to scales.
        shape: The image shape (C, H, W) the denoiser expects, or None if it accepts any shape.
        resizes: Whether `encode` brings images of any size to that shape.
        classes: The number of labels it can be conditioned on; 0 for an unconditional denoiser.
        multi_head: Whether one call can return the estimates for several labels of each image.
        wordings: The number of prompts of each class; empty if each has one. The label
            c + (classes + 1) w stands for class c with prompt w.
        t_max: The largest time that it was trained for.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    schedule: Schedule
    shape: tuple[int, int, int] | None = None
    resizes: bool = False
    classes: int = 0
    multi_head: bool = False
    wordings: tuple[int, ...] = ()
    t_max: float = 1.0

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], shaped like `x_t`, or (B, L, C, H, W) for L labels of each image.

        Args:
            x_t: Noisy images (B, C, H, W) in the denoiser's space.
            t: Times in [0, 1], shaped () or (B, 1, 1, 1).
            label: Class labels (B,), or (B, L) of a multi-head denoiser; None for the unconditional
                estimate.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] to the denoiser's space: here [-1, 1], without a clamp."""
        return 2 * x - 1

    def decode(self, z: Tensor) -> Tensor:
        """Map states in the denoiser's space to images in [0, 1]."""
        return (z + 1) / 2

    def perturb(
        self, z: Tensor, t: Tensor, noise: Noise, schedule: Schedule | None = None
    ) -> Tensor:
        """Draw x_t given x_0 = `z`, under the denoiser's schedule or another one."""
        scales = (schedule or self.schedule)(t)
        return scales.alpha * z + scales.sigma * noise.normal(z)


class NetworkDenoiser(Denoiser):
    """A denoiser that computes x_hat from what a network predicts.

    The network is called with (x_t, time (B,)), and with labels (B,) if it has classes. Images
    without a label get the label `classes`, the null class. If the output has twice the channels of
    x_t (a learned variance), only the first half is used.

    Args:
        network: The network; a diffusers `UNet2DModel` or any module with that call.
        schedule: Its noise schedule; `VP()` if None.
        predicts: `"noise"`, `"image"`, `"velocity"` (alpha noise - sigma x_0), or `"edm"`: the
            network's input and target are scaled to unit variance (Karras et al., 2022, section 5).
            `"ve"` takes x_t / alpha and predicts the negative noise. `"subvp"` predicts the noise
            from x_t as the sub-VP SDE scales it at the same sigma / alpha (Song et al., 2021).
            `"consistency"` is the function of a consistency model (Song et al., 2023), which gives
            an end point of the probability flow and not E[x_0 | x_t].
        shape: The shape (C, H, W) of its images.
        classes: The number of labels it is conditioned on, without the null class; 0 for none.
        multi_head: Whether the network also takes labels (B, L) and predicts for all in one call.
        time: The time input of the network, where n = T t counts the T steps of the schedule (1000
            for a continuous one) and s = sigma / alpha. `"scaled"` is n - 1, `"index"` is n - 1 as
            an integer, `"rescaled"` is the index in a schedule of 1000 steps, `"score_sde"` 999 t,
            `"edm"` ln(s) / 4, `"consistency"` 250 ln(s), `"ve"` ln(s / 2), `"subvp"` 999 times the
            time of the sub-VP SDE. Or a function from scales to the time input. For a time between
            two steps of a chain, it is that of the nearest step, whose noise x_t has.
        clip_x0: Whether x_hat is clipped to [-1, 1], as many DDPM samplers do. Clipped pixels have
            no gradient.
        null: Whether the network has a null class. If not, it needs labels.
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
        time: Time | Callable[[Scales], Tensor] = "scaled",
        clip_x0: bool = False,
        null: bool = True,
    ):
        super().__init__()
        if predicts not in get_args(Prediction):
            raise ValueError(
                f"predicts must be one of {', '.join(get_args(Prediction))}; not {predicts!r}"
            )
        if not callable(time) and time not in get_args(Time):
            raise ValueError(f"time must be one of {', '.join(get_args(Time))}; not {time!r}")
        self.network, self.schedule = network, schedule or VP()
        self.predicts, self.shape, self.classes = predicts, shape, classes
        self.multi_head, self.time, self.clip_x0, self.null = multi_head, time, clip_x0, null

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t].

        Raises:
            SpecError: The network was not trained for such large times.
            ValueError: The network needs a label.
        """
        if self.t_max < 1 and float(t.max()) > self.t_max + TIME_TOLERANCE:
            raise SpecError(
                f"the denoiser was trained for times up to {self.t_max:g}, not for "
                f"{float(t.max()):.3g}: add less noise (a smaller t or sigma), or take a denoiser "
                "that was trained for it"
            )
        out = self.estimate(x_t, t, label)
        return out.clamp(-1, 1) if self.clip_x0 else out

    def estimate(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], never clipped."""
        _, alpha, sigma, _ = self.schedule(_exact(t, x_t))
        out = self.predict(x_t, t, label)
        if out.ndim > x_t.ndim:  # several labels per image
            x_t, alpha, sigma = (
                value.unsqueeze(1) if value.ndim else value for value in (x_t, alpha, sigma)
            )
        if self.predicts in ("noise", "subvp"):
            out = (x_t - sigma * out) / alpha
        elif self.predicts == "ve":
            out = (x_t + sigma * out) / alpha
        elif self.predicts == "velocity":
            out = alpha * x_t - sigma * out
        elif self.predicts == "edm":
            size = _size(alpha, sigma)
            out = alpha * SIGMA_DATA**2 / size**2 * x_t + sigma * SIGMA_DATA / size * out
        elif self.predicts == "consistency":
            keep, scale = _consistency(alpha, sigma)
            out = keep * x_t + scale * out
        return out

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw prediction of the network, in the shape that `forward` returns.

        Raises:
            ValueError: The network has classes but no null class, and `label` is None.
        """
        scales = self.schedule(_exact(t, x_t))
        time = self._time(scales).to(x_t).expand(len(x_t), 1, 1, 1).flatten()
        inputs = self._input(x_t, scales)
        if not self.classes:
            out = self.network(inputs, time)
        else:
            out = self.network(inputs, time, self._null(x_t) if label is None else label)
        out = cast(Tensor, out if isinstance(out, Tensor) else out.sample)
        channels = x_t.shape[1]
        return out[..., :channels, :, :] if out.shape[-3] == 2 * channels else out

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The training target of `predict` at x_t = alpha z + sigma eps.

        For a consistency model, it is the output that makes the consistency function equal `z`.
        """
        _, alpha, sigma, _ = self.schedule(t)
        if self.predicts == "edm":
            return (sigma / SIGMA_DATA * z - alpha * SIGMA_DATA * eps) / _size(alpha, sigma)
        if self.predicts == "velocity":
            return alpha * eps - sigma * z
        if self.predicts == "consistency":
            keep, scale = _consistency(alpha, sigma)
            return (z - keep * (alpha * z + sigma * eps)) / scale
        return {"noise": eps, "subvp": eps, "ve": -eps, "image": z}[self.predicts]

    def loss_factor(self, t: Tensor) -> Tensor:
        """The factor from a squared error of x_hat to the squared error of the prediction."""
        _, alpha, sigma, _ = self.schedule(t)
        if self.predicts == "image":
            return torch.ones_like(alpha)
        if self.predicts in ("noise", "ve", "subvp"):
            return (alpha / sigma) ** 2
        if self.predicts == "velocity":
            return sigma**-2
        if self.predicts == "consistency":
            return _consistency(alpha, sigma)[1] ** -2
        return (_size(alpha, sigma) / (sigma * SIGMA_DATA)) ** 2

    def _null(self, x_t: Tensor) -> Tensor:
        if not self.null:
            raise ValueError(
                f"the network has {self.classes} classes and no null class, so it cannot denoise "
                "without labels: take an unconditional network"
            )
        return torch.full((len(x_t),), self.classes, device=x_t.device)

    def _input(self, x_t: Tensor, scales: Scales) -> Tensor:
        _, alpha, sigma, _ = scales
        if self.predicts in ("edm", "consistency"):
            return x_t / _size(alpha, sigma)
        if self.predicts == "ve":
            return x_t / alpha
        return x_t * _subvp_alpha(scales) / alpha if self.predicts == "subvp" else x_t

    def _time(self, scales: Scales) -> Tensor:
        steps = chain_length(self.schedule)
        n = steps * scales.t
        if isinstance(self.schedule, Discrete):  # the step whose noise x_t has
            n = (steps * scales.t.detach().double()).round().clamp(max=steps)
            scales = scales._replace(t=n / steps)
        if callable(self.time):
            return self.time(scales)
        number = (n - 1).clamp(min=0)
        log_noise = (scales.sigma / scales.alpha).log()
        return {
            "scaled": lambda: number,
            "index": lambda: number.round(),
            "rescaled": lambda: number.round() * 1000 / steps,
            "score_sde": lambda: 999 * scales.t,
            "edm": lambda: log_noise / 4,
            "consistency": lambda: 250 * log_noise,
            "ve": lambda: log_noise - math.log(2),
            "subvp": lambda: 999 * _vp_time(_subvp_alpha(scales)),
        }[self.time]()


class Mixture(Denoiser):
    """The exact denoiser of equally likely isotropic Gaussians, for tests and tours.

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
    """The standard deviation of x_t if that of x_0 is SIGMA_DATA."""
    return torch.sqrt((alpha * SIGMA_DATA) ** 2 + sigma**2)


def _consistency(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_t and of the network in a consistency function (Song et al., 2023)."""
    beyond = sigma / alpha - SIGMA_MIN
    keep = SIGMA_DATA**2 / (beyond**2 + SIGMA_DATA**2) / alpha
    return keep, beyond * SIGMA_DATA * alpha / _size(alpha, sigma)


def _subvp_alpha(scales: Scales) -> Tensor:
    """The alpha of the sub-VP SDE, whose sigma is 1 - alpha^2, at the sigma / alpha of `scales`."""
    noise = scales.sigma / scales.alpha
    return 2 / (noise + torch.sqrt(noise**2 + 4))


def _vp_time(alpha: Tensor) -> Tensor:
    """The time at which the default `VP` schedule, or the sub-VP SDE, has this alpha."""
    slope, rise = VP().beta_min, VP().beta_max - VP().beta_min
    return (torch.sqrt(slope**2 - 4 * rise * alpha.log()) - slope) / rise


def _exact(t: Tensor, x_t: Tensor) -> Tensor:
    """The time in the type of `x_t`, or in float64 if it is a scalar, which promotes nothing."""
    return t.double() if t.ndim == 0 else t.to(x_t)
