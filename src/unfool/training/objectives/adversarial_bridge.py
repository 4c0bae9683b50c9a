"""Adversarial bridges: a denoiser learns a path from the adversarial image to the clean image.

A denoiser trained on Gaussian noise treats an adversarial perturbation as a part of the image. Here the
perturbation is a part of the path and fades along it, so the denoiser learns to remove it together with
the noise. There are two paths: a diffusion (ADBM; Li et al., 2025) and a straight line (FlowPure;
Collaert et al., 2025).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Schedule, first_time
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

    Let s = sigma / alpha at time t, and S its value at the end T of the path. On the path
    `"diffusion"` (Li et al., 2025), the network sees x_t / alpha = z + s eps + (s / S)^2 delta, which
    at T is the noised adversarial image. On the path `"flow"` (Collaert et al., 2025), it sees
    z + (s / S) delta, which at T is the adversarial image without noise. The target of x_hat is z on
    both, so the loss is the denoising loss with another noise. On the flow, it is the error of the
    velocity, up to a factor.

    After the path `"diffusion"`, purify by `diffpure` with t* between `t_from` and `t_max`. The steps
    of `ddpm` stay exactly on the path; those of `ddim`, which the paper uses, keep more of delta.
    After the path `"flow"`, purify by `flowpure` with t = `t_max`.

    Attributes:
        classifier: The protected classifier, which the attack fools; its weights do not change.
        attack: The attack that makes new adversarial images in each training step. ADBM: PGD with 3
            steps and `step_size: 1`. FlowPure: PGD with 10 steps.
        path: `"diffusion"` or `"flow"`.
        attacked: The model that the attack fools: `"one-step"` is the classifier applied to the
            one-step estimate x_hat from the state on the path, at its time and with its noise
            (ADBM); `"classifier"` is the classifier alone (FlowPure).
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images. FlowPure: 0.05.
        budget: `"fixed"`, or `"uniform"`, where each image's budget is a uniformly random share of
            `eps` (FlowPure).
        t_min: The smallest time.
        t_from: The smallest T of the path `"diffusion"`; `"flow"` ignores it.
        t_max: The largest T, and the only T of `"flow"`. For each image, T is uniform between
            `t_from` and `t_max`, and t is uniform between `t_min` and T; for `"flow"`, s is uniform.
        label_dropout: The probability of replacing a label by the null class, for a conditional
            denoiser.
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
        t = t.clamp(min=first_time(model.schedule))
        state = _State(self.path, z, noise.child("noise").normal(z), t, end, label)
        x_adv = self._attacked(model, x, y, noise, state)
        return denoising_loss(model, z, t, label, state.noise_of(model, model.encode(x_adv)))

    def _times(self, schedule: Schedule, noise: Noise, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the time t of each image and the end T of its path, both (B, 1, 1, 1)."""
        share = noise.child("time").uniform(like)
        if self.path == "diffusion":
            end = self.t_from + (self.t_max - self.t_from) * noise.child("end").uniform(like)
            return self.t_min + (end - self.t_min) * share, end
        grid = torch.linspace(self.t_min, self.t_max, 2001, dtype=torch.float64)
        ratios = _noise_ratio(schedule, grid)
        drawn_ratios = ratios[0] + (ratios[-1] - ratios[0]) * share.cpu().double()
        times = torch.from_numpy(np.interp(drawn_ratios.numpy(), ratios.numpy(), grid.numpy()))
        return times.to(share), torch.full_like(share, self.t_max)

    def _attacked(
        self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise, state: "_State"
    ) -> Tensor:
        """Attack `x` within each image's budget; the weights get no gradient."""
        threat, budget_share = Threat(self.norm, self.eps), torch.ones_like(x[:, :1, :1, :1])
        if self.budget == "uniform":
            budget_share = noise.child("budget").uniform(budget_share)
        classifier = self.classifier.to(x.device).eval().requires_grad_(False)
        denoiser = model if self.attacked == "one-step" else None
        known_noise = noise.child("classify")
        target = _Target(
            classifier,
            denoiser,
            state,
            x,
            budget_share,
            {k: i for i, k in enumerate(known_noise.keys)},
        )
        with frozen(model):
            x_adv = self.attack(
                target, x, y, threat, noise.child("attack").with_known_noise(known_noise)
            )
        x_adv = x_adv.detach()
        if getattr(self.attack, "bounded", True) and not bool(threat.allows(x, x_adv).all()):
            raise RuntimeError(
                "the attack exceeded the threat, so its images are not used for training: let it "
                "end with threat.project(x, x_adv)"
            )
        return x + budget_share * (x_adv - x)


@dataclass(frozen=True)
class _State:
    """The states of a batch of images on their paths, without the perturbation.

    Attributes:
        path: The path.
        z: Clean images (B, C, H, W) in the denoiser's space.
        eps: Gaussian noise, shaped like `z`.
        t: Times (B, 1, 1, 1).
        end: The times at which the paths end, shaped like `t`.
        label: The labels (B,) given to a conditional denoiser.
    """

    path: Path
    z: Tensor
    eps: Tensor
    t: Tensor
    end: Tensor
    label: Tensor

    def take(self, rows: list[int]) -> "_State":
        """The state of the images at `rows` of the batch."""
        parts = (self.z, self.eps, self.t, self.end, self.label)
        return _State(self.path, *(part[rows] for part in parts))

    def noise_of(self, model: NetworkDenoiser, z_adv: Tensor) -> Tensor:
        """The n, which contains the perturbation, such that the state is alpha z + sigma n."""
        delta, end_ratio = z_adv - self.z, _noise_ratio(model.schedule, self.end)
        if self.path == "flow":
            return delta / end_ratio
        return self.eps + _noise_ratio(model.schedule, self.t) / end_ratio**2 * delta


@dataclass(frozen=True)
class _Target:
    """The model that the attack fools, with the time, noise and budget of each image held fixed.

    The attack may query any part of the batch: the keys of the noise, which the attack knows, tell
    which images a query contains.

    Attributes:
        classifier: The classifier.
        denoiser: The denoiser that estimates the image first; None to fool the classifier alone.
        state: The states of the images on their paths.
        x: Clean images (B, C, H, W) in [0, 1].
        budget_share: The factor that scales each perturbation (B, 1, 1, 1).
        row_of_key: The row of the batch that belongs to each key.
    """

    classifier: Classifier
    denoiser: NetworkDenoiser | None
    state: _State
    x: Tensor
    budget_share: Tensor
    row_of_key: dict[int, int]

    def __call__(self, x_adv: Tensor, noise: Noise) -> Tensor:
        """The logits (B, K)."""
        rows = [self.row_of_key[key] for key in noise.keys]
        x = self.x[rows]
        x_adv = x + self.budget_share[rows] * (x_adv - x)
        if self.denoiser is not None:
            model, state = self.denoiser, self.state.take(rows)
            _, alpha, sigma, _ = model.schedule(state.t)
            x_t = alpha * state.z + sigma * state.noise_of(model, model.encode(x_adv))
            x_adv = model.decode(model.estimate(x_t, state.t, state.label))
        return self.classifier(x_adv, noise).float()


def _noise_ratio(schedule: Schedule, t: Tensor) -> Tensor:
    """The ratio sigma / alpha at the times `t`."""
    _, alpha, sigma, _ = schedule(t)
    return sigma / alpha
