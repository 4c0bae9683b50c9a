"""Tests of DiffPure: closed forms, samplers, costs, and options."""

import math
from typing import Any

import pytest
import torch
from probe import Probe, blobs, mean_and_deviation, world

from unfool.argument_checks import images_of_any_range
from unfool.defenses.diffpure import DiffPure
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.reverse import DDIM, Ancestral, Heun, euler_maruyama, even, flow, reverse
from unfool.diffusion.schedule import VP, Discrete
from unfool.noise import Noise
from unfool.toy.blobs import mixture

SAMPLERS = {
    "sde": {},
    "sde discrete": {"forward": "discrete"},
    "ddpm small": {"sampler": "ddpm"},
    "ddpm large": {"sampler": "ddpm", "variance": "large"},
    "ddim": {"sampler": "ddim"},
    "ddim half": {"sampler": "ddim", "eta": 0.5},
    "ode": {"sampler": "ode"},
    "heun": {"sampler": "heun"},
    "heun noised": {"sampler": "heun", "eta": 1.0},
}


# --------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("spread", "t", "mean", "deviation"),
    [
        (0.5, 0.1, 0.609176, 0.365029),
        (0.5, 0.075, 0.674512, 0.305118),
        (0.1, 0.1, 0.246092, 0.099938),
        (0.1, 0.15, 0.220672, 0.100215),
    ],
)
def test_released_sampler_matches_closed_form(spread, t, mean: float, deviation: float):
    """Discrete forward noise and Euler-Maruyama on x = 0.8, for data N(0.2, spread^2)."""
    probe, steps = Probe(), round(1000 * t)
    model = world(spread)
    purify = DiffPure(model, t=t, steps=steps, forward="discrete")
    found = mean_and_deviation(
        lambda z, noise: 2 * purify((z + 1) / 2, noise) - 1, probe, steps + 1
    )
    assert found == pytest.approx((mean, deviation), abs=6e-7)
    assert probe.drawn == [("forward",), *(("reverse", i) for i in range(steps))]


def test_reverse_sde_without_forward_noise_matches_closed_form():
    """As in COUP without its guide, x_t is the image itself."""
    probe = Probe()
    found = mean_and_deviation(
        lambda z, noise: reverse(world(0.5), z, even(0.1, 100), noise, step=euler_maruyama),
        probe,
        100,
    )
    assert found == pytest.approx((0.639632, 0.282649), abs=6e-7)
    assert probe.drawn == [(i,) for i in range(100)]


def test_random_noise_gives_the_closed_form_distribution():
    """Check the first closed form by 10,000 draws of `Noise`."""
    model = Mixture(torch.full((1, 1, 100, 100), 0.2, dtype=torch.float64), 0.5)
    purify = DiffPure(model, t=0.1, steps=100, forward="discrete")
    out = 2 * purify(torch.full((1, 1, 100, 100), 0.9).double(), Noise.of(0, [0])) - 1
    assert float(out.mean()) == pytest.approx(0.609176, abs=4 * 0.365 / 100)
    assert float(out.std()) == pytest.approx(0.365029, abs=4 * 0.365 / 100 / 2**0.5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_consecutive_discrete_chain_matches_closed_form(sampler):
    """DDPM and DDIM(1) on the full chain match the recursion of Ho et al., computed in scalars."""
    spread, n = 0.5, 100
    betas = Discrete().betas.tolist()
    abar = [1.0]
    for beta in betas:
        abar.append(abar[-1] * (1 - beta))
    mean, variance = math.sqrt(abar[n]) * 0.8, 1 - abar[n]
    for k in range(n, 0, -1):
        beta, a, b = betas[k - 1], abar[k], abar[k - 1]
        gain = math.sqrt(a) * spread**2 / (a * spread**2 + 1 - a)  # x_hat = gain x_t + rest
        rest = 0.2 - gain * math.sqrt(a) * 0.2
        c_hat = math.sqrt(b) * beta / (1 - a)
        c_t = math.sqrt(1 - beta) * (1 - b) / (1 - a)
        mean = c_hat * (gain * mean + rest) + c_t * mean
        variance = (c_hat * gain + c_t) ** 2 * variance + beta * (1 - b) / (1 - a)
    model = world(spread, schedule=Discrete())
    purify = DiffPure(model, t=n / 1000, steps=n, sampler=sampler, eta=1.0)
    found = mean_and_deviation(lambda z, noise: 2 * purify((z + 1) / 2, noise) - 1, Probe(), n + 1)
    assert found == pytest.approx((mean, math.sqrt(variance)), abs=1e-9)


# ----------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    ("forward", "schedule", "alpha", "sigma"),
    [
        ("continuous", VP(), 0.94672, 0.32205),
        ("discrete", VP(), 0.94711, 0.32091),
        ("continuous", Discrete(), 0.94711, 0.32091),
        ("discrete", Discrete(50), 0.94711, 0.32091),
    ],
)
def test_forward_noise_has_the_expected_scale(forward, schedule, alpha: float, sigma: float):
    purify = DiffPure(mixture(schedule=schedule), t=0.1, steps=5, forward=forward)
    x, noise = blobs(3), Noise.of(0, range(3))
    _, noised = next(purify.walk(x, noise))
    expected = alpha * (2 * x - 1) + sigma * noise.child("forward").normal(x)
    assert torch.allclose(2 * noised - 1, expected, atol=5e-5)
    assert purify.pixel_noise == pytest.approx(sigma / alpha / 2, rel=1e-4)


def test_sampler_names_select_the_right_steps():
    def step(**options):
        return DiffPure(mixture(), **options).step

    assert step() is euler_maruyama
    assert step(sampler="ode") is flow
    assert step(sampler="ddpm") == Ancestral("small")
    assert step(sampler="ddpm", variance="large") == Ancestral("large")
    assert step(sampler="ddim", eta=0.3) == DDIM(0.3)
    assert step(sampler="heun") == Heun(VP())
    assert getattr(step(sampler="heun", eta=1.0), "raised", None)


def test_heun_refuses_fewer_steps():
    with pytest.raises(ValueError, match="view `exact`"):
        DiffPure(mixture(), sampler="heun").with_fewer_steps()


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_costs_one_network_call_and_two_for_heun(name: str, steps: int):
    model = mixture()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    DiffPure(model, steps=steps, **SAMPLERS[name])(blobs(2).float(), Noise.of(0, range(2)))
    assert len(calls) == (2 * steps - 1 if name.startswith("heun") else steps)


def test_float32_output_is_close_to_float64():
    purify = DiffPure(mixture(), t=0.1, steps=100)
    x, noise = blobs(6), Noise.of(0, range(6))
    single = purify(x.float(), noise)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), purify(x, noise), atol=1e-4)


def test_outputs_are_not_clipped():
    purify = DiffPure(mixture(), t=0.1, steps=10)
    x = torch.full((1, 1, 4, 4), 1.9).double()
    with images_of_any_range():
        out = purify(x, Noise.of(0, [0]))
    assert float(out.max()) > 1


def test_gradient_is_the_slope_of_the_affine_map():
    """If the data are one Gaussian, purification is affine, and the gradient is its slope."""
    purify = DiffPure(world(0.5), t=0.1, steps=100, forward="discrete")
    x = torch.full((102, 1, 1, 1), 0.9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(purify(x, Probe()).sum(), x)
    high, low = (purify(torch.full_like(x, v), Probe())[0, 0, 0, 0] for v in (0.9, 0.2))
    assert slope.flatten().tolist() == pytest.approx([float(high - low) / 0.7] * 102, rel=1e-9)
    assert float(slope[0]) == pytest.approx((0.609176 - 0.2) / (0.8 - 0.2), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "ddpm", "steps": 101}, "steps must be at most 100"),
        ({"sampler": "ddim", "t": 0.05}, "steps must be at most 50"),
    ],
)
def test_invalid_options_are_refused(options, words: str):
    with pytest.raises(ValueError, match=words):
        DiffPure(mixture(), **options)


def test_discrete_chain_limits_the_number_of_steps():
    with pytest.raises(ValueError, match=r"at most 5, .* 50 steps"):
        DiffPure(mixture(schedule=Discrete(50)), sampler="ddim", steps=6)
    with pytest.raises(ValueError, match="50 steps of `heun`"):
        DiffPure(mixture(schedule=Discrete()), sampler="heun", steps=50)
    out = DiffPure(mixture(schedule=Discrete(50)), sampler="ddim", steps=5)
    assert out(blobs(1), Noise.of(0, [0])).isfinite().all()


@pytest.mark.parametrize("sampler", ["sde", "ode", "ddpm", "ddim"])
def test_more_steps_than_the_chain_has_below_t_are_refused(sampler):
    with pytest.raises(ValueError, match="steps must be at most 100"):
        DiffPure(mixture(schedule=Discrete()), t=0.1, steps=300, sampler=sampler)
    purify = DiffPure(mixture(schedule=Discrete()), t=0.1, steps=100, sampler=sampler)
    assert purify(blobs(1), Noise.of(0, [0])).isfinite().all()


# --------------------------------------------------------------------- guides and corrections


def test_guides_and_corrections_apply_in_forward_and_walk():
    x, noise, seen = blobs(), Noise.of(0, range(len(blobs()))), []

    def correct(x_hat, x, now):
        seen.append(x)
        return 0.5 * (x_hat + x)

    def guide(x_t, x_hat, now, then, noise):
        return 0.1 * noise.normal(x_t)

    plain = DiffPure(mixture(), t=0.1, steps=3)(x, noise)
    cases: list[dict[str, Any]] = [
        {"guide": guide},
        {"correction": correct},
        {"guide": guide, "correction": correct},
    ]
    for parts in cases:
        purify = DiffPure(mixture(), t=0.1, steps=3, **parts)
        out = purify(x, noise)
        *_, (_, last) = purify.walk(x, noise)
        assert torch.equal(out, last)
        assert not torch.allclose(out, plain, atol=1e-4)
    assert all(torch.equal(given, mixture().encode(x)) for given in seen)


def test_adjoint_refuses_guides_and_corrections():
    cases: list[dict[str, Any]] = [
        {"guide": lambda *_: 0},
        {"correction": lambda x_hat, x, now: x_hat},
    ]
    for parts in cases:
        with pytest.raises(ValueError, match="exact"):
            DiffPure(mixture(), steps=3, **parts).adjoint()


def test_custom_step_uses_the_times_of_ddpm():
    x, noise = blobs(), Noise.of(0, range(len(blobs())))

    def own(x_t, x_hat, now, then, noise):
        return Ancestral("small")(x_t, x_hat, now, then, noise)

    pure = DiffPure(mixture(), t=0.1, steps=5, sampler=own)
    assert torch.equal(
        pure(x, noise), DiffPure(mixture(), t=0.1, steps=5, sampler="ddpm")(x, noise)
    )
    with pytest.raises(ValueError, match="100"):
        DiffPure(mixture(), t=0.1, steps=101, sampler=own)
    with pytest.raises(ValueError, match="sdee"):
        DiffPure(mixture(), sampler="sdee")  # pyright: ignore
