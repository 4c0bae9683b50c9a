"""Tests of schedules against tables of Nie et al. and of Nichol and Dhariwal."""

import math

import numpy as np
import pytest
import torch

from unfool.diffusion.schedule import VP, Discrete, pixel_noise, time_of_noise


def at(t: float | list[float]) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


# index i of the usual 0-based tables means n = i + 1 steps of noise, at t = n / 1000
@pytest.mark.parametrize(
    ("index", "abar"), [(74, 0.939120902), (99, 0.897018146), (149, 0.788321351)]
)
def test_linear_chain_matches_known_alpha_bar(index: int, abar: float):
    schedule = Discrete()
    assert float(schedule.abar[index + 1]) == pytest.approx(abar, abs=1e-9)
    scales = schedule(at((index + 1) / 1000))
    assert float(scales.alpha**2) == pytest.approx(abar, abs=1e-9)
    assert float(scales.sigma**2) == pytest.approx(1 - abar, abs=1e-9)


def test_linear_betas_match_ho_et_al():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(Discrete().betas, betas, rtol=1e-14, atol=0)
    assert torch.allclose(Discrete().abar[1:], (1 - betas).cumprod(0), rtol=1e-13, atol=0)
    # beta is per unit of t, and close to that of the continuous schedule
    t = at([0.001, 0.1, 0.5, 1.0])
    assert torch.allclose(Discrete()(t).beta / 1000, betas[[0, 99, 499, 999]])
    assert torch.allclose(Discrete()(t).beta, VP()(t).beta, rtol=1e-2, atol=0.03)


def test_continuous_schedule_matches_known_values():
    scales = VP()(at(0.1))
    assert float(scales.alpha**2) == pytest.approx(0.896282164, abs=1e-9)
    assert float(scales.beta) == pytest.approx(0.1 + 0.1 * 19.9)


@pytest.mark.parametrize(
    ("t", "alpha", "sigma", "pixel"),
    [(0.075, 0.96876, 0.24798, 0.1280), (0.1, 0.94672, 0.32205, 0.1701)],
)
def test_continuous_noise_levels_match_the_table(
    t: float, alpha: float, sigma: float, pixel: float
):
    scales = VP()(at(t))
    assert float(scales.alpha) == pytest.approx(alpha, abs=5e-6)
    assert float(scales.sigma) == pytest.approx(sigma, abs=5e-6)
    assert pixel_noise(VP(), t) == pytest.approx(pixel, abs=5e-5)


@pytest.mark.parametrize(
    ("steps", "kind", "n", "alpha", "sigma", "pixel"),
    [
        (1000, "linear", 75, 0.96908, 0.24674, 0.1273),
        (1000, "linear", 100, 0.94711, 0.32091, 0.1694),
        (1000, "linear", 125, 0.91988, 0.39220, 0.2132),
        (1000, "linear", 150, 0.88788, 0.46009, 0.2591),
        (1000, "linear", 500, 0.28033, 0.95990, 1.712),
        (1000, "linear", 470, 0.32471, 0.94582, 1.456),
        (4000, "cosine", 470, 0.98102, 0.19394, 0.0988),
        (1000, "cosine", 470, 0.73523, 0.67782, 0.461),
    ],
)
def test_discrete_noise_levels_match_the_table(
    steps, kind, n: int, alpha: float, sigma: float, pixel: float
):
    schedule = Discrete(steps, kind)
    scales = schedule(at(n / steps))
    assert float(scales.alpha) == pytest.approx(alpha, abs=1.5e-5)  # the table has roots of
    assert float(scales.sigma) == pytest.approx(sigma, abs=1.5e-5)  # rounded numbers
    assert pixel_noise(schedule, n / steps) == pytest.approx(pixel, rel=2e-3)


def test_cosine_chain_matches_its_formula():
    schedule = Discrete(4000, "cosine")
    assert float(schedule.abar[470]) == pytest.approx(0.962386942, abs=1e-9)
    assert float(schedule.betas.max()) == 0.999
    # before the cap, alpha-bar is the cosine itself
    n = np.array([1, 100, 2000, 3900])
    f = np.cos((n / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2
    f0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert schedule.abar[n].numpy() == pytest.approx(f / f0, rel=1e-9)


@pytest.mark.parametrize("schedule", [VP(), Discrete(), Discrete(50), Discrete(1000, "cosine")])
def test_scales_preserve_variance_and_noise_never_decreases(schedule):
    scales = schedule(torch.linspace(0, 1, 51, dtype=torch.float64))
    assert torch.allclose(scales.alpha**2 + scales.sigma**2, at(1.0))
    assert float(scales.alpha[0]) == 1
    assert float(scales.sigma[0]) == 0
    assert (scales.sigma.diff() >= 0).all()
    assert (scales.alpha.diff() < 0).all()


def test_beta_is_the_derivative_of_log_alpha_bar():
    """beta = -d log(abar) / dt, by central differences."""
    t, h = torch.linspace(0.1, 0.9, 9, dtype=torch.float64), 1e-5
    slope = (2 * VP()(t + h).alpha.log() - 2 * VP()(t - h).alpha.log()) / (2 * h)
    assert torch.allclose(VP()(t).beta, -slope, rtol=1e-8)


def test_small_noise_keeps_its_precision_in_float32():
    single = VP()(torch.tensor(1e-5))
    double = VP()(at(1e-5))
    assert float(single.sigma) == pytest.approx(float(double.sigma), rel=1e-5)


def test_discrete_times_round_to_the_nearest_step_even_in_float32():
    schedule = Discrete()
    for n in range(1001):
        t = torch.tensor(n / 1000, dtype=torch.float32)
        assert float(schedule(t).alpha) == pytest.approx(float(schedule.abar[n].sqrt()), rel=1e-6)
    assert float(schedule(at(0.1004)).alpha) == float(schedule(at(0.1)).alpha)
    assert float(schedule(at(0.1006)).alpha) == float(schedule(at(0.101)).alpha)


def test_scales_have_the_shape_and_dtype_of_the_times():
    for schedule in (VP(), Discrete()):
        for t in (torch.tensor(0.3), torch.full((4, 1, 1, 1), 0.3, dtype=torch.float64)):
            for field in schedule(t):
                assert field.shape == t.shape
                assert field.dtype == t.dtype


@pytest.mark.parametrize(
    ("schedule", "indices"),
    [
        (Discrete(4000, "cosine"), (1158, 1984, 2809)),
        (Discrete(), (145, 259, 396)),
    ],
)
def test_times_of_noise_match_denoised_smoothing(schedule, indices):
    """The indices of Carlini et al. for pixel noise 0.25, 0.5, and 1, counted from 0."""
    for sigma, index in zip((0.25, 0.5, 1.0), indices, strict=True):
        t = time_of_noise(schedule, sigma)
        assert t == (index + 1) / schedule.steps
        assert pixel_noise(schedule, t) >= sigma > pixel_noise(schedule, index / schedule.steps)


@pytest.mark.parametrize("sigma", [1e-6, 0.05, 0.25, 1.0, 76.0])
def test_time_of_noise_inverts_pixel_noise(sigma: float):
    assert pixel_noise(VP(), time_of_noise(VP(), sigma)) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize(
    "schedule", [Discrete(), Discrete(100), Discrete(1000, "scaled_linear", 0.85, 12.0)]
)
def test_noise_of_a_step_leads_back_to_that_step(schedule):
    steps = range(1, schedule.steps + 1)
    found = [time_of_noise(schedule, pixel_noise(schedule, n / schedule.steps)) for n in steps]
    assert found == [n / schedule.steps for n in steps]


def test_noise_outside_the_schedule_is_refused():
    for sigma in (0.0, -1.0, 77.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"above 0 and at most 76\.08"):
            time_of_noise(VP(), sigma)
