"""Check that a denoiser denoises, by comparing its error with that of estimates without a network.

A wrong time, schedule, prediction, or sign, or raw weights instead of averaged ones, raise no
error: they only make a defense look weak. The best estimate that is linear in each pixel knows
nothing about images but the mean and the variance of each pixel; a denoiser that is worse than that
is set up wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import VP, Discrete, Schedule, first_time
from unfool.noise import Noise

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3)
# Another setting is suggested if its error is below this share of the current one.
BETTER_SHARE = 0.75
SCHEDULES: dict[str, Schedule] = {
    "vp": VP(),
    "discrete": Discrete(),
    "{name: discrete, kind: cosine}": Discrete(1000, "cosine"),
    "{name: discrete, kind: cosine, steps: 4000}": Discrete(4000, "cosine"),
    "{name: discrete, kind: scaled_linear, beta_min: 0.85, beta_max: 12}": Discrete(
        1000, "scaled_linear", 0.85, 12.0
    ),
}
# Pairs of prediction and time input that only work together.
LINKED_SETTINGS: tuple[tuple[Prediction, Time], ...] = (
    ("edm", "edm"),
    ("ve", "ve"),
    ("noise", "index"),
    ("noise", "score_sde"),
    ("subvp", "subvp"),
    ("edm", "consistency"),
)


class DenoisingError(NamedTuple):
    """Root mean squared errors of estimates of x_0, in the denoiser's space.

    Attributes:
        t: The time.
        x_hat: The error of the denoiser.
        linear: The error of the best estimate that is linear in each pixel.
        nothing: The error of x_t / alpha, that is, without any denoising.
    """

    t: float
    x_hat: float
    linear: float
    nothing: float


@dataclass(frozen=True)
class Clean:
    """Clean images in a denoiser's space, and the statistics that the linear estimate uses.

    Attributes:
        z: Images to add noise to (B, C, H, W).
        mean: The mean of each pixel (C, H, W).
        variance: The variance of each pixel (C, H, W).
        label: Class labels (B,) for the denoiser, or None.
    """

    z: Tensor
    mean: Tensor
    variance: Tensor
    label: Tensor | None = None


@torch.no_grad()
def clean_images(
    denoiser: Denoiser, x: Tensor, count: int = 32, label: Tensor | None = None
) -> Clean:
    """Prepare images for `denoising_errors`.

    Args:
        denoiser: The denoiser, which encodes the images.
        x: Images (B, C, H, W) in [0, 1], on the denoiser's device. Mean and variance are over all.
        count: The number of images, from the first, to add noise to.
        label: Their classes (B,), if the denoiser is to be conditioned on them.
    """
    z = denoiser.encode(x)
    chosen_label = None if label is None else label[:count]
    return Clean(z[:count], z.mean(0), z.var(0, correction=0), chosen_label)


@torch.no_grad()
def denoising_errors(
    denoiser: Denoiser, clean: Clean, times: Sequence[float] = TIMES, seed: int = 0
) -> list[DenoisingError]:
    """Compute the errors of x_hat at several times, with the same draw of the noise.

    Args:
        denoiser: The denoiser, in evaluation mode.
        clean: The images, from `clean_images`.
        times: Times of the denoiser's schedule, in (0, 1]; those before the first step of a chain and
            those above its `t_max` are left out, and `t_max` is taken if none is left.
        seed: The seed of the noise.
    """
    noise = Noise.of(seed, range(len(clean.z))).child("denoising")
    results: list[DenoisingError] = []
    first, last = first_time(denoiser.schedule), denoiser.t_max
    for t in [t for t in times if first <= t <= last] or [last]:
        time = torch.tensor(t, dtype=torch.float64)
        _, alpha, sigma, _ = (float(value) for value in denoiser.schedule(time))
        x_t = alpha * clean.z + sigma * noise.normal(clean.z)
        gain = alpha * clean.variance / (alpha**2 * clean.variance + sigma**2)
        linear = clean.mean + gain * (x_t - alpha * clean.mean)
        x_hat = denoiser(x_t, time.to(x_t.device), clean.label)
        errors = (
            float((estimate - clean.z).square().mean().sqrt())
            for estimate in (x_hat, linear, x_t / alpha)
        )
        results.append(DenoisingError(t, *errors))
    return results


def ratios(errors: Sequence[DenoisingError]) -> list[float]:
    """The error of x_hat over that of the linear estimate, at each time; above 1 is a fault."""
    return [error.x_hat / error.linear for error in errors]


def better_setting(
    denoiser: Denoiser, clean: Clean, times: Sequence[float] = (0.05, 0.1, 0.2)
) -> tuple[str, float] | None:
    """Find a time, prediction, or schedule with which a denoiser's network does far better.

    Returns:
        The options as written in a spec, and the mean of the ratios with them. None if no other
        setting lowers that mean by a quarter and below 1, or if the denoiser has no such settings.
    """
    if not isinstance(denoiser, NetworkDenoiser):
        return None
    current = {name: getattr(denoiser, name) for name in ("time", "predicts", "schedule")}
    best: tuple[str, float] | None = None
    limit = min(BETTER_SHARE * _mean_ratio(denoiser, clean, times), 1.0)
    try:
        for description, setting in _other_settings(current):
            for name, value in {**current, **setting}.items():
                setattr(denoiser, name, value)
            ratio = _mean_ratio(denoiser, clean, times)
            if ratio < (limit if best is None else best[1]):
                best = description, ratio
    finally:
        for name, value in current.items():
            setattr(denoiser, name, value)
    return best


def _mean_ratio(denoiser: Denoiser, clean: Clean, times: Sequence[float]) -> float:
    values = ratios(denoising_errors(denoiser, clean, times))
    mean = sum(values) / len(values)
    return mean if mean == mean else float("inf")  # NaN is worse than all


def _other_settings(current: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings that change one part of `current`, and the pairs that only work together."""
    for time in get_args(Time):
        yield f"time: {time}", {"time": time}
    for predicts in get_args(Prediction):
        yield f"predicts: {predicts}", {"predicts": predicts}
    for name, schedule in SCHEDULES.items():
        yield f"schedule: {name}", {"schedule": schedule}
    for predicts, time in LINKED_SETTINGS:
        if current["predicts"] != predicts and current["time"] != time:
            yield f"predicts: {predicts}, time: {time}", {"predicts": predicts, "time": time}
