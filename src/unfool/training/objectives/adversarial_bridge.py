"""Adversarial bridges: a denoiser learns the way from the adversarial image to the clean one.

A denoiser that was trained on Gaussian noise takes an adversarial perturbation for a part of the image.
Here the perturbation stands on the path, fades on it to the clean image, and is unlearned with the
noise. There are two paths: that of a diffusion (ADBM; Li et al., 2025) and a straight line (FlowPure;
Collaert et al., 2025).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Schedule
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import NotNegative, Share, ShareAboveZero, checked_dataclass
from unfool.threat import Threat
from unfool.training.freeze import frozen
from unfool.training.objectives.denoising import denoising_loss, label_or_null

Path = Literal["diffusion", "flow"]
Attacked = Literal["one-step", "classifier"]
Budget = Literal["fixed", "uniform"]


@checked_dataclass
class AdversarialBridge:
    """The denoiser's error on a path from the adversarial image z + delta to the clean image z.

    With s = sigma / alpha at the time t and S the same at the path's end T, the network sees
    x_t / alpha = z + s eps + (s / S)^2 delta on the path `"diffusion"` (Li et al., 2025): at T the
    adversarial image, noised. On the path `"flow"` (Collaert et al., 2025) it sees z + (s / S) delta: at
    T the adversarial image, without noise. x_hat is to be z on both, so the loss is that of denoising
    with other noise. On the flow it is the error of the velocity, up to a factor.

    Purify by `diffpure` with a t* from `t_from` to `t_max`. The steps of `ddpm` stay on this very path;
    those of `ddim`, which the paper takes, keep more of delta. After the path `"flow"` purify by
    `flowpure`, whose t is `t_max`.

    Attributes:
        classifier: The protected classifier, which the attack fools; its weights stay as they are.
        attack: The attack that makes the adversarial images, again in each training step. ADBM: PGD
            with 3 steps and `step_size: 1`. FlowPure: PGD with 10 steps.
        path: `"diffusion"` or `"flow"`.
        attacked: The model that the attack fools: `"one-step"` is the classifier on the one-step
            estimate x_hat of the state on the path, at this time and with this noise (ADBM);
            `"classifier"` is the classifier alone (FlowPure).
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images. FlowPure: 0.05.
        budget: `"fixed"`, or `"uniform"`, where the budget of an image is a random share of `eps`
            (FlowPure).
        t_min: The smallest time.
        t_from: The smallest T of the path `"diffusion"`; not used by `"flow"`.
        t_max: The largest T, and the only one for `"flow"`. For each image, T is uniform, and t is
            uniform below it; for `"flow"`, s is uniform.
        label_dropout: How often a label is replaced by the null class, for a conditional denoiser.
    """

    classifier: Any
    attack: Any
    path: Path = "diffusion"
    attacked: Attacked = "one-step"
    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    budget: Budget = "fixed"
    t_min: ShareAboveZero = 1e-3
    t_from: ShareAboveZero = 0.1
    t_max: ShareAboveZero = 0.2
    label_dropout: Share = 0.1

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        least = self.t_from if self.path == "diffusion" else self.t_max
        if not self.t_min < least <= self.t_max:
            raise ValueError(
                f"times must satisfy t_min < t_from <= t_max, not {self.t_min}, {least} and {self.t_max}"
            )

    def __call__(self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,).

        Raises:
            RuntimeError: The attack exceeded the threat.
        """
        label = label_or_null(model, y, self.label_dropout, noise)
        z = model.encode(x)
        t, end = self._times(model.schedule, noise, x[:, :1, :1, :1])
        state = _State(self.path, z, noise.child("noise").normal(z), t, end, label)
        x_adv = self._attacked(model, x, y, noise, state)
        return denoising_loss(model, z, t, label, state.noise_of(model, model.encode(x_adv)))

    def _times(self, schedule: Schedule, noise: Noise, like: Tensor) -> tuple[Tensor, Tensor]:
        """The time t of each image, and that of the end of its path, both (B, 1, 1, 1)."""
        share = noise.child("time").uniform(like)
        if self.path == "diffusion":
            end = self.t_from + (self.t_max - self.t_from) * noise.child("end").uniform(like)
            return self.t_min + (end - self.t_min) * share, end
        grid = torch.linspace(self.t_min, self.t_max, 2001, dtype=torch.float64)
        sizes = _size(schedule, grid)
        wanted = sizes[0] + (sizes[-1] - sizes[0]) * share.cpu().double()
        times = torch.from_numpy(np.interp(wanted.numpy(), sizes.numpy(), grid.numpy()))
        return times.to(share), torch.full_like(share, self.t_max)

    def _attacked(
        self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise, state: "_State"
    ) -> Tensor:
        """Adversarial images, shaped like `x`; the weights get no gradient."""
        threat, share = Threat(self.norm, self.eps), torch.ones_like(x[:, :1, :1, :1])
        if self.budget == "uniform":
            share = noise.child("budget").uniform(share)
        classifier = self.classifier.to(x.device).eval().requires_grad_(False)
        through = model if self.attacked == "one-step" else None
        told = noise.child("classify")
        target = _Target(
            classifier, through, state, x, share, {k: i for i, k in enumerate(told.keys)}
        )
        with frozen(model):
            found = self.attack(target, x, y, threat, noise.child("attack").with_known_noise(told))
        found = found.detach()
        if getattr(self.attack, "bounded", True) and not bool(threat.allows(x, found).all()):
            raise RuntimeError(
                "the attack exceeded the threat, so its images are not used for training: let it "
                "end with threat.project(x, x_adv)"
            )
        return x + share * (found - x)


@dataclass(frozen=True)
class _State:
    """Where the images of a batch stand on their paths: what does not depend on the attack.

    Attributes:
        path: Which path.
        z: Clean images (B, C, H, W) in the denoiser's space.
        eps: Gaussian noise, shaped alike.
        t: Their times (B, 1, 1, 1).
        end: The times of the ends of their paths, shaped alike.
        label: What a conditional denoiser is told (B,).
    """

    path: Path
    z: Tensor
    eps: Tensor
    t: Tensor
    end: Tensor
    label: Tensor

    def take(self, rows: list[int]) -> "_State":
        """That of the images at these rows."""
        parts = (self.z, self.eps, self.t, self.end, self.label)
        return _State(self.path, *(part[rows] for part in parts))

    def noise_of(self, model: NetworkDenoiser, z_adv: Tensor) -> Tensor:
        """The n such that the state is alpha z + sigma n, with the perturbation in n."""
        delta, whole = z_adv - self.z, _size(model.schedule, self.end)
        if self.path == "flow":
            return delta / whole
        return self.eps + _size(model.schedule, self.t) / whole**2 * delta


@dataclass(frozen=True)
class _Target:
    """What the attack fools, with an image's time, noise and budget held fixed.

    A query is known by the keys of its noise, of which the attack was told, whatever part of the batch
    it is about.

    Attributes:
        classifier: The classifier.
        denoiser: It estimates the image first; None to fool the classifier alone.
        state: Where the images stand.
        x: Clean images (B, C, H, W) in [0, 1].
        share: How much of a perturbation counts (B, 1, 1, 1).
        places: The row of each key.
    """

    classifier: Classifier
    denoiser: NetworkDenoiser | None
    state: _State
    x: Tensor
    share: Tensor
    places: dict[int, int]

    def __call__(self, x_adv: Tensor, noise: Noise) -> Tensor:
        """The logits (B, K)."""
        rows = [self.places[key] for key in noise.keys]
        x = self.x[rows]
        x_adv = x + self.share[rows] * (x_adv - x)
        if self.denoiser is not None:
            model, state = self.denoiser, self.state.take(rows)
            _, alpha, sigma, _ = model.schedule(state.t)
            x_t = alpha * state.z + sigma * state.noise_of(model, model.encode(x_adv))
            x_adv = model.decode(model.estimate(x_t, state.t, state.label))
        return self.classifier(x_adv, noise).float()


def _size(schedule: Schedule, t: Tensor) -> Tensor:
    """The ratio sigma / alpha at the times `t`."""
    _, alpha, sigma, _ = schedule(t)
    return sigma / alpha
