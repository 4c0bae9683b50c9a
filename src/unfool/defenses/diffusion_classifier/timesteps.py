"""The times at which a diffusion classifier measures errors, and their weights."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.defenses.diffusion_classifier.elimination import evenly_spaced
from unfool.diffusion.denoiser import SIGMA_DATA
from unfool.diffusion.schedule import Discrete, Scales, Schedule, chain_length, time_of_noise

Grid = Literal["even", "sigma"]
Weight = Literal["uniform", "elbo", "edm", "rdc", "snr", "image"]


def times_of(
    schedule: Schedule, grid: Grid, draws: int, span: tuple[float, float] | None
) -> Tensor:
    """The increasing times (M,) of the draws, in float64."""
    if grid == "sigma":
        low, high = span or (1e-4, 3.0)
        if not 0 < low < high:
            raise ValueError(
                f"span must be two values of sigma / alpha with 0 < low < high, not {span}"
            )
        return _times_of_noise(schedule, torch.linspace(low, high, draws, dtype=torch.float64))
    low, high = span or (0.0, 1.0)
    if not 0 <= low < high <= 1:
        raise ValueError(f"span must be two times with 0 <= low < high <= 1, not {span}")
    chain = chain_length(schedule)
    first, last = round(low * chain), round(high * chain)
    if draws > last - first:
        raise ValueError(
            f"draws must be at most {last - first}, the number of the schedule's steps in the span"
        )
    steps = [
        first + k + 1 for k in evenly_spaced(last - first, draws)
    ]  # index k is k + 1 steps of noise
    return torch.tensor(steps, dtype=torch.float64) / chain


def _times_of_noise(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """The times (M,) at which sigma / alpha is `sigmas` (M,)."""
    latest = time_of_noise(schedule, float(sigmas[-1]) / 2)  # in units of [0, 1] pixels; may raise
    if isinstance(schedule, Discrete):
        return torch.tensor([time_of_noise(schedule, s / 2) for s in sigmas.tolist()]).double()
    low, high = torch.zeros_like(sigmas), torch.full_like(sigmas, latest)
    for _ in range(60):
        middle = (low + high) / 2
        scales = schedule(middle)
        is_less = scales.sigma / scales.alpha < sigmas
        low, high = torch.where(is_less, middle, low), torch.where(is_less, high, middle)
    return high


def weights_of(
    weight: Weight | Sequence[float] | Callable[[Scales], Tensor], scales: Scales
) -> Tensor:
    """The weights (M,), in float64, of the errors of the noise prediction."""
    sigma = scales.sigma / scales.alpha
    if isinstance(weight, str):
        weights = WEIGHTS[weight](sigma)
    elif callable(weight):
        weights = torch.as_tensor(weight(scales)).double()
    else:
        weights = torch.tensor(list(weight), dtype=torch.float64)
    if weights.shape != sigma.shape or not bool((weights > 0).all() & weights.isfinite().all()):
        raise ValueError(
            f"the weights must be {len(sigma)} numbers above 0, one for each draw: exclude draws "
            "of weight 0 with `span`, and take fewer draws if several fall on one step of the "
            "schedule"
        )
    return weights


def _edm(sigma: Tensor, power: int) -> Tensor:
    """EDM's training weight times density (Karras et al., 2022, table 1), for noise errors."""
    gap = ((sigma.log() + 1.2) / 1.2**power).square() / 2
    # for errors of x_hat, the weight is (sigma^2 + data^2) / (sigma data)^2;
    # for errors of the noise, it is sigma^2 times that
    return (sigma**2 + SIGMA_DATA**2) * torch.exp(-gap) / sigma * _widths(sigma)


def _widths(values: Tensor) -> Tensor:
    """The weight of each of several increasing values in the trapezoidal rule."""
    if len(values) == 1:
        return torch.ones_like(values)
    gaps = values.diff()
    return (F.pad(gaps, (1, 0)) + F.pad(gaps, (0, 1))) / 2


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "elbo": lambda sigma: _widths(sigma.log()),  # half of the integral of d log(sigma^2)
    "edm": lambda sigma: _edm(sigma, 1),
    "rdc": lambda sigma: _edm(sigma, -1),
    "snr": lambda sigma: sigma**-2,
    "image": torch.square,
}
