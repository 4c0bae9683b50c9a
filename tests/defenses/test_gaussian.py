"""Tests of purifiers that have a closed form for Gaussian data, against scalar computations.

The data are N(0.2, 0.5^2) in [-1, 1], and the image is 0.8. A purifier, also with a mean-square
guide, is then affine in its state and its draws. Its output is Gaussian, and a step maps
(mean, variance) to (a mean + b, a^2 variance + c^2). The formulas below are those of the papers, in
scalars, and share no code with the package. (OneStep and likelihood maximization have closed forms
in their own tests.)
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from probe import Probe, mean_and_deviation, world
from torch import nn

from unfool.defenses.coup import COUP
from unfool.defenses.denoised_smoothing import DensePure
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.distribution_transfer import DistributionTransfer
from unfool.defenses.gdmp import GDMP
from unfool.defenses.gradual import Gradual
from unfool.defenses.langevin import Langevin
from unfool.defenses.sampling import SamplerName
from unfool.models.classifiers import NormalizedClassifier

CENTER, SPREAD, IMAGE = 0.2, 0.5, 0.8
ANY = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(1, 2).double()))


def scales(t: float) -> tuple[float, float, float]:
    """Return alpha, sigma, and beta of the VP schedule, with beta from 0.1 to 20."""
    abar = math.exp(-(0.1 * t + 19.9 * t**2 / 2))
    return math.sqrt(abar), math.sqrt(1 - abar), 0.1 + 19.9 * t


def affine(t: float) -> tuple[float, float]:
    """Return (gain, rest) of x_hat = gain x_t + rest."""
    alpha, sigma, _ = scales(t)
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return gain, CENTER - gain * alpha * CENTER


def sde(t: float, s: float, flow: bool = False) -> tuple[float, float, float]:
    """Return (a, b, c) of an Euler step of the reverse SDE or the probability flow."""
    alpha, sigma, beta = scales(t)
    # The variance of x_t, whose score is -(x_t - mean) / variance.
    variance, h = (alpha**2 * SPREAD**2 + sigma**2, t - s)
    share = 0.5 if flow else 1.0
    a = 1 + h * beta * (0.5 - share / variance)
    return a, h * beta * share * alpha * CENTER / variance, 0 if flow else math.sqrt(beta * h)


def ddpm(t: float, s: float, large: bool = False, pull: float = 0.0) -> tuple[float, float, float]:
    """Return (a, b, c) of a DDPM step whose mean moves by - Sigma pull (x_t - image)."""
    (alpha, sigma, _), (after, rest_sigma, _) = scales(t), scales(s)
    kept, (gain, rest) = alpha / after, affine(t)
    beta = 1 - kept**2
    posterior = beta * rest_sigma**2 / sigma**2
    share = after * beta / sigma**2
    moved = (beta if large else posterior) * pull
    a = share * gain + kept * rest_sigma**2 / sigma**2 - moved
    deviation = math.sqrt(beta if large else posterior) if s > 0 else 0.0
    return a, share * rest + moved * IMAGE, deviation


def ddim(t: float, s: float, eta: float = 0.0) -> tuple[float, float, float]:
    """Return (a, b, c) of a DDIM step (Song et al., 2021, equation 12)."""
    (alpha, sigma, _), (after, rest_sigma, _) = scales(t), scales(s)
    gain, rest = affine(t)
    fresh = eta * rest_sigma / sigma * math.sqrt(1 - alpha**2 / after**2)
    kept = math.sqrt(rest_sigma**2 - fresh**2)
    a = after * gain + kept * (1 - alpha * gain) / sigma
    return a, after * rest - kept * alpha * rest / sigma, fresh


def back(state: tuple[float, float], times: list[float], step) -> tuple[float, float]:
    mean, variance = state
    for t, s in pairwise(times):
        a, b, c = step(t, s)
        mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, variance


def noised(state: tuple[float, float], t: float) -> tuple[float, float]:
    alpha, sigma, _ = scales(t)
    return alpha * state[0], alpha**2 * state[1] + sigma**2


JUMPS = [0.1, 0.08, 0.06, 0.04, 0.02, 0.0]  # 5 steps from t = 0.1 on a chain of 1000
EVEN = [*JUMPS[:-1], 1e-5]
START = (IMAGE, 0.0)
FORWARD = noised(START, 0.1)
STEPS = {"t": 0.1, "steps": 5}


def gdmp(noised_to: float, passes: int) -> tuple[float, float]:
    state, eps, average, scale = START, 8 / 255, 100, 600.0
    for _ in range(passes):
        state = noised(state, noised_to)
        for t, s in ((0.036, 0.024), (0.024, 0.012), (0.012, 0.0)):
            alpha, sigma, _ = scales(t)
            rate = 3 * scale * sigma / (2 * eps * alpha)
            state = back(state, [t, s], partial(ddpm, large=True, pull=2 * rate / average))
    return state


def langevin() -> tuple[float, float]:
    alpha, sigma, _ = scales(0.01)
    variance, h = alpha**2 * SPREAD**2 + sigma**2, 0.01
    a = 1 - 0.5 * 1e-2 * h * (1 / variance + 1e3)
    b = 0.5 * 1e-2 * h * (alpha * CENTER / variance + 1e3 * IMAGE)
    return back(START, [0.0] * 11, lambda t, s: (a, b, 5 * math.sqrt(1e-2 * h)))


def gradual() -> tuple[float, float]:
    first = back(noised(START, 0.03), [0.03, 0.02, 0.01, 0.0], ddpm)
    return back(noised(first, 0.05), [0.05, 0.025, 0.0], ddpm)


WAYS: dict[SamplerName, tuple[Any, Any]] = {
    "sde": (EVEN, sde),
    "ddpm": (JUMPS, ddpm),
    "ddim": (JUMPS, ddim),
    "ode": (EVEN, partial(sde, flow=True)),
}
HELD = {"output": "none", "weight": 40.0, "scale": 0.5}  # scale * weight * (x_t - image) / 2
CASES = {
    **{
        f"diffpure, {name}": (DiffPure(world(SPREAD), sampler=name, **STEPS), back(FORWARD, *way))
        for name, way in WAYS.items()
    },
    "diffpure, ddpm large": (
        DiffPure(world(SPREAD), sampler="ddpm", variance="large", **STEPS),
        back(FORWARD, JUMPS, partial(ddpm, large=True)),
    ),
    "diffpure, ddim 0.5": (
        DiffPure(world(SPREAD), sampler="ddim", eta=0.5, **STEPS),
        back(FORWARD, JUMPS, partial(ddim, eta=0.5)),
    ),
    **{
        f"coup without guidance, {name}": (
            COUP(world(SPREAD), ANY, sampler=name, weight=0, **STEPS),
            back(START, *way),
        )
        for name, way in WAYS.items()
    },
    "transfer, held to the image": (
        DistributionTransfer(world(SPREAD), ANY, **HELD, **STEPS),
        back(FORWARD, JUMPS, partial(ddpm, pull=0.5 * 40 / 2)),
    ),
    "transfer, large": (
        DistributionTransfer(world(SPREAD), ANY, variance="large", **HELD, **STEPS),
        back(FORWARD, JUMPS, partial(ddpm, large=True, pull=0.5 * 40 / 2)),
    ),
    "gdmp, held to the image": (
        GDMP(world(SPREAD), t=0.036, steps=3, passes=2, scale=600.0, anchor="image"),
        gdmp(0.036, 2),
    ),
    "gdmp, a step late": (
        GDMP(
            world(SPREAD),
            t=0.036,
            steps=3,
            passes=2,
            scale=600.0,
            anchor="image",
            extra_noise_step=True,
        ),
        gdmp(0.037, 2),
    ),
    "gradual": (Gradual(world(SPREAD), passes=[(0.03, 3), (0.05, 2)]), gradual()),
    "densepure": (DensePure(world(SPREAD), **STEPS), back(FORWARD, JUMPS, ddpm)),
    "langevin": (Langevin(world(SPREAD)), langevin()),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_and_deviation_match_scalar_computation(name: str):
    purify, (mean, variance) = CASES[name]
    probe = Probe()
    with torch.no_grad():
        found = mean_and_deviation(lambda z, noise: 2 * purify((z + 1) / 2, noise) - 1, probe, 40)
    assert found == pytest.approx((mean, math.sqrt(variance)), abs=1e-9)
    assert probe.drawn or name.endswith("ode") or name == "coup without guidance, ddim"
