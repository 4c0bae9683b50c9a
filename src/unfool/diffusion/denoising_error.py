"""Tests whether a denoiser denoises: compares the error of x_hat with estimates without a network.

A wrong time, schedule, prediction or sign, or raw weights in place of averaged ones, raise no error: they
only make a defense look weak. The best estimate that is linear in each pixel alone knows nothing of
images but the mean and the variance of each pixel; a denoiser that is worse than that is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction, Time
from unfool.diffusion.schedule import VP, Discrete, Schedule
from unfool.noise import Noise

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3)
BETTER = 0.75  # of the error: what another setting must reach to be named
SCHEDULES: dict[str, Schedule] = {
    "vp": VP(),
    "discrete": Discrete(),
    "{name: discrete, kind: cosine}": Discrete(1000, "cosine"),
    "{name: discrete, kind: cosine, steps: 4000}": Discrete(4000, "cosine"),
    "{name: discrete, kind: scaled_linear, beta_min: 0.85, beta_max: 12}": Discrete(
        1000, "scaled_linear", 0.85, 12.0
    ),
}
# Conventions of which no single part works without the others: what is predicted, and the time told.
TOGETHER: tuple[tuple[Prediction, Time], ...] = (
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
        x_hat: Of the denoiser.
        linear: Of the best estimate that is linear in each pixel alone.
        nothing: Of x_t / alpha, which is to do nothing.
    """

    t: float
    x_hat: float
    linear: float
    nothing: float


@dataclass(frozen=True)
class Clean:
    """Clean images in a denoiser's space, and what the linear estimate knows.

    Attributes:
        z: Images to be noised (B, C, H, W).
        mean: Of each pixel (C, H, W).
        variance: Of each pixel (C, H, W).
        label: Classes (B,) that the denoiser is told; None for none.
    """

    z: Tensor
    mean: Tensor
    variance: Tensor
    label: Tensor | None = None


@torch.no_grad()
def clean_images(
    denoiser: Denoiser, x: Tensor, count: int = 32, label: Tensor | None = None
) -> Clean:
    """What `denoising_errors` needs.

    Args:
        denoiser: Whose space is meant.
        x: Images (B, C, H, W) in [0, 1], on the denoiser's device; all of them tell mean and variance.
        count: How many of them, the first ones, are noised.
        label: Their classes (B,), if the denoiser is to be told.
    """
    z = denoiser.encode(x)
    told = None if label is None else label[:count]
    return Clean(z[:count], z.mean(0), z.var(0, correction=0), told)


@torch.no_grad()
def denoising_errors(
    denoiser: Denoiser, clean: Clean, times: Sequence[float] = TIMES, seed: int = 0
) -> list[DenoisingError]:
    """The errors of x_hat at some times, each on the same draw of the noise.

    Args:
        denoiser: In evaluation mode.
        clean: What `clean_images` returned.
        times: Of the denoiser's schedule, in (0, 1].
        seed: Of the noise.
    """
    noise = Noise.of(seed, range(len(clean.z))).child("denoising")
    found: list[DenoisingError] = []
    for t in times:
        at = torch.tensor(t, dtype=torch.float64)
        _, alpha, sigma, _ = (float(value) for value in denoiser.schedule(at))
        x_t = alpha * clean.z + sigma * noise.normal(clean.z)
        gain = alpha * clean.variance / (alpha**2 * clean.variance + sigma**2)
        linear = clean.mean + gain * (x_t - alpha * clean.mean)
        x_hat = denoiser(x_t, at.to(x_t.device), clean.label)
        errors = (float((e - clean.z).square().mean().sqrt()) for e in (x_hat, linear, x_t / alpha))
        found.append(DenoisingError(t, *errors))
    return found


def ratios(errors: Sequence[DenoisingError]) -> list[float]:
    """The error of x_hat over that of the linear estimate, at each time; above 1 something is wrong."""
    return [error.x_hat / error.linear for error in errors]


def better_setting(
    denoiser: Denoiser, clean: Clean, times: Sequence[float] = (0.05, 0.1, 0.2)
) -> tuple[str, float] | None:
    """The time, prediction or schedule under which a denoiser's network does far better, if any.

    Returns:
        The options as a spec writes them, and the mean of the ratios under them; None if no other
        setting is better by a quarter and than the linear estimate, or the denoiser has no such setting.
    """
    if not isinstance(denoiser, NetworkDenoiser):
        return None
    own = {name: getattr(denoiser, name) for name in ("time", "predicts", "schedule")}
    best: tuple[str, float] | None = None
    limit = min(BETTER * _mean_ratio(denoiser, clean, times), 1.0)
    try:
        for told, setting in _others(own):
            for name, value in {**own, **setting}.items():
                setattr(denoiser, name, value)
            ratio = _mean_ratio(denoiser, clean, times)
            if ratio < (limit if best is None else best[1]):
                best = told, ratio
    finally:
        for name, value in own.items():
            setattr(denoiser, name, value)
    return best


def _mean_ratio(denoiser: Denoiser, clean: Clean, times: Sequence[float]) -> float:
    found = ratios(denoising_errors(denoiser, clean, times))
    mean = sum(found) / len(found)
    return mean if mean == mean else float("inf")  # of NaN


def _others(own: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting that differs from `own` in one part, and the conventions that go together."""
    for time in get_args(Time):
        yield f"time: {time}", {"time": time}
    for predicts in get_args(Prediction):
        yield f"predicts: {predicts}", {"predicts": predicts}
    for name, schedule in SCHEDULES.items():
        yield f"schedule: {name}", {"schedule": schedule}
    for predicts, time in TOGETHER:
        if own["predicts"] != predicts and own["time"] != time:
            yield f"predicts: {predicts}, time: {time}", {"predicts": predicts, "time": time}
