"""Tests of the reverse loop and its steps, against diffusers, explicit recursions, and closed
forms."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from unfool.defenses.sampling import Variance
from unfool.diffusion.denoiser import Mixture, NetworkDenoiser
from unfool.diffusion.reverse import (
    DDIM,
    Ancestral,
    Heun,
    churned,
    euler_maruyama,
    even,
    flow,
    karras,
    reverse,
    scales_along,
    strided,
    walk,
)
from unfool.diffusion.schedule import VP, Discrete, Scales, pixel_noise, time_of_noise
from unfool.noise import Noise

SHAPE = (2, 3, 3)
NOISE = Noise.of(0, range(4))
BLANK = torch.zeros(4, *SHAPE, dtype=torch.float64)
X = NOISE.child("x").normal(BLANK)


class Wavy(nn.Module):
    """A nonlinear prediction that depends on the time and mixes pixels."""

    def forward(self, x, time):
        t = time[:, None, None, None] / 1000
        return torch.sin(2 * x + t) + 0.3 * x.roll(1, -1) * torch.cos(5 * t)


# ------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("n", [50, 75, 100, 125, 150])
def test_even_times_match_diffpure(n: int):
    times = even(n / 1000, n)
    assert times.dtype == torch.float64
    assert len(times) == n + 1  # n steps
    assert torch.allclose(times[:-1] * 1000, torch.arange(n, 0, -1).double(), atol=1e-9)
    assert float(times[-1]) == 1e-5
    assert float(times[-2] - times[-1]) == pytest.approx(0.00099, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 99, 100])
def test_strided_times_are_even_whole_steps_down_to_the_clean_image(steps: int):
    times = strided(0.1, steps, 1000)
    n = (times * 1000).round()
    assert torch.allclose(n, times * 1000, atol=1e-9)
    assert len(n) == steps + 1
    assert (float(n[0]), float(n[-1])) == (100, 0)
    assert (n.diff() < 0).all()  # every step moves
    assert float(n.diff().min() - n.diff().max()) >= -1  # the steps are even


def test_scales_are_float64_scalars():
    scales = scales_along(Mixture(BLANK[:1].float(), 0.1), even(0.1, 100))
    assert len(scales) == 101
    exact = VP()(even(0.1, 100))
    for i, row in enumerate(scales):
        for name, value in row._asdict().items():
            assert value.dtype == torch.float64
            assert value.shape == ()
            assert float(value) == float(getattr(exact, name)[i])


# ---------------------------------------------------------------------- equality with diffusers


def theirs(kind, **options):
    """Return a scheduler of diffusers with our float64 table, because its own is float32."""
    scheduler = kind(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        **options,
    )
    table = Discrete().abar[1:]
    assert torch.allclose(scheduler.alphas_cumprod.double(), table, rtol=1e-4)
    scheduler.alphas_cumprod = table
    return scheduler


def ours(times: torch.Tensor, step) -> list[torch.Tensor]:
    model = NetworkDenoiser(Wavy(), schedule=Discrete(), time="index")
    states = [x for _, x in walk(model, X, times, NOISE, step=step)]
    assert torch.equal(states[-1], reverse(model, X, times, NOISE, step=step))
    return states[1:]


CHAINS = {"consecutive": list(range(100, -1, -1)), "strided": [100, 95, 60, 33, 32, 7, 1, 0]}


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("chain", CHAINS)
def test_ancestral_matches_diffusers_ddpm(chain: str, variance: Variance, monkeypatch):
    n = CHAINS[chain]
    scheduler = theirs(DDPMScheduler, variance_type=f"fixed_{variance}")
    scheduler.set_timesteps(timesteps=[i - 1 for i in n[:-1]])  # n steps of noise have index n - 1
    states, x, network = ours(torch.tensor(n).double() / 1000, Ancestral(variance)), X, Wavy()
    for i, index in enumerate(scheduler.timesteps):
        drawn = NOISE.child(i).normal(X)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, z=drawn, **__: z)
        eps = network(x, index.double().expand(4))
        x = scheduler.step(eps, int(index), x, return_dict=False)[0]
        assert torch.allclose(states[i], x, rtol=1e-10, atol=1e-10)
    assert len(states) == len(scheduler.timesteps)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [100, 20, 5])
def test_ddim_matches_diffusers_ddim(steps: int, eta: float):
    scheduler = theirs(DDIMScheduler, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(steps * 10)
    scheduler.timesteps = scheduler.timesteps[scheduler.timesteps < 100]  # from t = 0.1 on
    states, x, network = ours(strided(0.1, steps, 1000), DDIM(eta)), X, Wavy()
    assert len(states) == len(scheduler.timesteps) == steps
    for i, index in enumerate(scheduler.timesteps):
        drawn = NOISE.child(i).normal(X)
        eps = network(x, index.double().expand(4))
        told: dict[str, Any] = {"eta": eta, "variance_noise": drawn, "return_dict": False}
        x = scheduler.step(eps, int(index), x, **told)[0]
        assert torch.allclose(states[i], x, rtol=1e-10, atol=1e-10)


def test_float32_ddpm_matches_unmodified_diffusers(monkeypatch):
    """Only the source of noise is replaced: DDPM over the last 100 steps."""
    scheduler = DDPMScheduler(clip_sample=False)
    model = NetworkDenoiser(Wavy(), schedule=Discrete(), time="index")
    mine = reverse(model, X.float(), strided(0.1, 100, 1000), NOISE, step=Ancestral())
    x = X.float()
    for i, index in enumerate(range(99, -1, -1)):
        drawn = NOISE.child(i).normal(x)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, z=drawn, **__: z)
        eps = Wavy()(x, torch.full((4,), float(index)))
        x = scheduler.step(eps, index, x, return_dict=False)[0]
    assert torch.allclose(mine, x, atol=2e-3)
    assert float((mine - x).norm() / x.norm()) < 1e-3


# ------------------------------------------------------------------------- relations between steps


def pair(n: int, m: int) -> tuple[Scales, Scales]:
    both = Discrete()(torch.tensor([n, m], dtype=torch.float64) / 1000)
    return Scales(*(field[0] for field in both)), Scales(*(field[1] for field in both))


class Silent(Noise):
    """Noise of zeros."""

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like)


SILENT = Silent(NOISE.keys)


@pytest.mark.parametrize("n", [1, 2, 50, 100, 999, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_mean_is_the_same_from_image_or_noise(n: int, variance):
    """The mean from the noise is (x_t - beta / sqrt(1 - abar) eps) / sqrt(1 - beta)."""
    now, then = pair(n, n - 1)
    beta = Discrete().betas[n - 1]
    eps = NOISE.child("eps").normal(X)
    x_hat = (X - now.sigma * eps) / now.alpha
    expected = (X - beta / now.sigma * eps) / torch.sqrt(1 - beta)
    mean = Ancestral(variance)(X, x_hat, now, then, SILENT)
    assert torch.allclose(mean, expected, rtol=1e-9, atol=1e-9 / float(now.alpha))


@pytest.mark.parametrize("n", [2, 50, 100, 999])
def test_ddpm_variances_match_their_formulas(n: int):
    now, then = pair(n, n - 1)
    abar, beta = Discrete().abar, Discrete().betas[n - 1]
    x_hat = NOISE.child("x_hat").normal(X)
    variances: list[tuple[Variance, torch.Tensor]] = [
        ("small", beta * (1 - abar[n - 1]) / (1 - abar[n])),
        ("large", beta),
    ]
    for variance, expected in variances:
        step = Ancestral(variance)
        spread = step(X, x_hat, now, then, NOISE) - step(X, x_hat, now, then, SILENT)
        assert torch.allclose(spread, expected.sqrt() * NOISE.normal(X), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 0), (2, 1), (100, 99), (1000, 999), (100, 60), (7, 0)])
def test_ddim_with_eta_1_equals_ancestral(n: int, m: int):
    now, then = pair(n, m)
    x_hat = NOISE.child("x_hat").normal(X)
    one, other = (s(X, x_hat, now, then, NOISE) for s in (DDIM(1.0), Ancestral("small")))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [Ancestral(), Ancestral("large"), DDIM(), DDIM(0.5), DDIM(1.0)])
def test_step_to_the_clean_image_returns_the_estimate(step):
    now, then = pair(1, 0)
    x_hat = NOISE.child("x_hat").normal(X)
    assert torch.allclose(step(X, x_hat, now, then, NOISE), x_hat, atol=1e-12)


def test_deterministic_steps_draw_no_noise():
    nothing: Any = None
    now, then = pair(100, 90)
    for step in (flow, DDIM(0.0)):
        assert step(X, X / 2, now, then, nothing) is not None


# ------------------------------------------------------------------------------------ explicit recursions


def test_euler_maruyama_matches_the_published_recursion():
    """Section 2.1 of the specification in NumPy, with the score of two Gaussian classes."""
    means, spread, steps, b0, b1 = NOISE.child("means").uniform(BLANK[:4])[:2], 0.3, 20, 0.1, 20.0
    z = X.numpy().copy()
    grid = [0.1 * (1 - k / steps) for k in range(steps)] + [1e-5]
    for k in range(steps):
        t, h = grid[k], grid[k] - grid[k + 1]
        abar = math.exp(-0.5 * (b1 - b0) * t**2 - b0 * t)
        variance = abar * spread**2 + 1 - abar
        gaps = z[:, None] - math.sqrt(abar) * means.numpy()[None]
        density = np.exp(-(gaps**2).sum((2, 3, 4)) / (2 * variance))
        weight = density / density.sum(1, keepdims=True)
        score = -(weight[:, :, None, None, None] * gaps).sum(1) / variance
        beta = b0 + t * (b1 - b0)
        xi = NOISE.child(k).normal(X).numpy()
        z = z + h * (0.5 * beta * z + beta * score) + math.sqrt(beta * h) * xi
    mine = reverse(Mixture(means, spread), X, even(0.1, steps), NOISE, step=euler_maruyama)
    assert np.abs(mine.numpy() - z).max() < 1e-10


def closed_form(x_t, mean: float, spread: float, start: Scales, end: Scales):
    """Return where the flow takes x_t if the data are N(mean, spread^2)."""
    wide = torch.sqrt(start.alpha**2 * spread**2 + start.sigma**2)
    tight = torch.sqrt(end.alpha**2 * spread**2 + end.sigma**2)
    return end.alpha * mean + tight / wide * (x_t - start.alpha * mean)


@pytest.mark.parametrize(
    ("step", "times_of", "coarsest", "error", "slowest", "fastest"),
    [
        (flow, partial(even, 0.5), 50, 1e-2, 1.7, 2.3),
        (Heun(VP()), partial(karras, VP(), 0.5), 10, 1e-3, 3.4, math.inf),
    ],
    ids=["flow, first order", "heun, second order"],
)
@pytest.mark.parametrize(("mean", "spread"), [(0.2, 0.5), (-0.4, 0.2)])
def test_solvers_converge_to_the_closed_form_at_their_order(
    step, times_of, coarsest, error, slowest, fastest, mean, spread
):
    model = Mixture(torch.full_like(X[:1], mean), spread)
    errors = []
    for steps in (coarsest, 2 * coarsest, 4 * coarsest, 8 * coarsest):
        times = times_of(steps)
        start, end = (VP()(times[i]) for i in (0, -1))
        out = reverse(model, X, times, NOISE, step=step)
        errors.append(float((out - closed_form(X, mean, spread, start, end)).abs().max()))
    assert errors[-1] < error
    assert all(slowest < a / b < fastest for a, b in pairwise(errors))


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_heun_matches_the_published_algorithm(steps: int):
    """Algorithm 2 of Karras et al. (2022) written out, with the settings of DPEDM."""
    model, start = NetworkDenoiser(Wavy()), time_of_noise(VP(), 0.25)
    z = VP()(torch.tensor(start, dtype=torch.float64))
    top = float(z.sigma / z.alpha)
    assert top == pytest.approx(0.5, abs=1e-4)
    ends = top ** (1 / 7), 0.002 ** (1 / 7)
    sizes = [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** 7 for i in range(steps)] + [0.0]

    def answer(x, size: float):
        t = (math.sqrt(0.01 + 39.8 * math.log(1 + size**2)) - 0.1) / 19.9
        alpha = (1 + size**2) ** -0.5
        return model(alpha * x, torch.tensor(t, dtype=torch.float64))

    x = X / z.alpha
    drawn = 0
    for i, (size, then) in enumerate(pairwise(sizes)):
        gamma = min(6 / steps, math.sqrt(2) - 1) if 0.01 <= size <= 0.46 else 0.0
        drawn += gamma > 0
        more = size * (1 + gamma)
        x = x + 1.007 * math.sqrt(more**2 - size**2) * NOISE.child(i).normal(x)
        slope = (x - answer(x, more)) / more
        ahead = x + (then - more) * slope
        if then:
            ahead = x + (then - more) * (slope + (ahead - answer(ahead, then)) / then) / 2
        x = ahead
    times = karras(VP(), start, steps)
    step = Heun(VP(), churned(VP(), times, 1.0))
    assert len(step.raised) == drawn
    assert drawn or steps == 2
    assert torch.allclose(reverse(model, X, times, NOISE, step=step), x, rtol=1e-9, atol=1e-9)
    assert not churned(VP(), times, 0.0)


def test_churn_on_a_chain_raises_noise_to_the_nearest_step():
    times = karras(Discrete(), 0.1, 6)
    assert not churned(Discrete(), times, 1e-6), "where that is the same one, none is"
    sizes = {t: 2 * pixel_noise(Discrete(), t) for t in (i / 1000 for i in range(1001))}
    more = min(6 / 6, math.sqrt(2) - 1)
    found = churned(Discrete(), times, 1.0)
    assert found
    for t, later in found.items():
        wanted = sizes[t] * (1 + more)
        assert later == pytest.approx(min(sizes, key=lambda at: abs(sizes[at] - wanted)))


def test_karras_times_on_a_chain_are_its_steps():
    times = karras(Discrete(), 0.1, 6)
    assert torch.allclose((times * 1000).round(), times * 1000, atol=1e-9)
    assert (float(times[0]), float(times[-2]), float(times[-1])) == (0.1, 0.001, 0.0)
    assert (times.diff() < 0).all()


def test_ddim_converges_to_the_probability_flow():
    model = Mixture(torch.full_like(X[:1], 0.2), 0.5, Discrete())
    start, end = pair(500, 0)
    errors = []
    for steps in (125, 250, 500):
        out = reverse(model, X, strided(0.5, steps, 1000), NOISE, step=DDIM())
        errors.append(float((out - closed_form(X, 0.2, 0.5, start, end)).abs().max()))
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


HEUN_TIMES = karras(VP(), 0.3, 20)


@pytest.mark.parametrize(
    ("step", "times", "schedule"),
    [
        *(
            (step, strided(0.5, 500, 1000), Discrete())
            for step in (Ancestral(), Ancestral("large"), DDIM(), DDIM(0.5))
        ),
        (euler_maruyama, even(0.5, 500), VP()),
        (flow, even(0.5, 500), VP()),
        *(
            (Heun(VP(), churned(VP(), HEUN_TIMES, share), inflation=1.0), HEUN_TIMES, VP())
            for share in (0.0, 1.0)
        ),
    ],
)
def test_samplers_carry_noised_data_back_to_the_data_distribution(step, times, schedule):
    """Noised data N(0.2, 0.5^2) end as N(0.2, 0.5^2) again, because steps keep the marginals."""
    noise, size = Noise.of(0, [0]), 10_000
    data = 0.2 + 0.5 * noise.child("data").normal(torch.zeros(1, 1, 1, size, dtype=torch.float64))
    model = Mixture(torch.full_like(data, 0.2), 0.5, schedule)
    x_t = model.perturb(data, times[0], noise.child("forward"))
    out = reverse(model, x_t, times, noise, step=step)
    exact = isinstance(step, Heun)
    assert float(out.mean()) == pytest.approx(0.2, abs=0.02 if exact else 0.03)
    assert float(out.std()) == pytest.approx(0.5, rel=0.02 if exact else 0.035)


# ------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("step", [euler_maruyama, flow])
def test_guide_adds_a_term_to_the_score(step):
    """A guide g adds h beta g to a step of the SDE, and half of that to a step of the flow."""
    model, times = Mixture(BLANK[:1] + 0.1, 0.3), even(0.1, 10)[:2]
    g = NOISE.child("g").normal(X)
    seen = []

    def guide(x_t, x_hat, now, then, noise):
        seen.append((x_t, now.t, noise))
        return g

    plain = reverse(model, X, times, NOISE, step=step)
    guided = reverse(model, X, times, NOISE, step=step, guide=guide)
    share = (times[0] - times[1]) * VP()(times[0]).beta * (1 if step is euler_maruyama else 0.5)
    assert torch.allclose(guided - plain, share * g, atol=1e-12)
    (x_t, t, noise), *more = seen
    assert not more
    assert torch.equal(x_t, X)
    assert float(t) == 0.1
    assert noise == NOISE.child(0, "guide")


def test_guide_moves_the_ddpm_mean_by_its_variance():
    """The mean moves by Sigma g (Dhariwal and Nichol, 2021), with Sigma = beta / sqrt(1 - beta)."""
    g = NOISE.child("g").normal(X)
    model = Mixture(BLANK[:1] + 0.1, 0.3, Discrete())
    times = torch.tensor([100, 99], dtype=torch.float64) / 1000
    plain = reverse(model, X, times, NOISE, step=Ancestral())
    guided = reverse(model, X, times, NOISE, step=Ancestral(), guide=lambda *_: g)
    beta = Discrete().betas[99]
    # x_hat moves by sigma^2 / alpha g, and the mean by beta sqrt(abar') / (1 - abar) of that
    assert torch.allclose(guided - plain, beta / torch.sqrt(1 - beta) * g, rtol=1e-8, atol=1e-12)


def test_labels_reach_the_denoiser():
    means = torch.stack([torch.full(SHAPE, v, dtype=torch.float64) for v in (-0.8, 0.8)])
    model = Mixture(means, 0.05)
    for label in (0, 1):
        y = torch.full((4,), label)
        times = even(0.9, 60)
        out = reverse(model, X, times, NOISE, step=flow, label=y)
        assert (out.mean((1, 2, 3)).sign() == 2 * label - 1).all()
        *_, (_, last) = walk(model, X, times, NOISE, step=flow, label=y)
        assert torch.equal(out, last)


def test_walk_yields_times_and_states():
    times = even(0.1, 5)
    states = list(walk(Mixture(BLANK[:1], 0.3), X, times, NOISE, step=euler_maruyama))
    assert [t for t, _ in states] == times.tolist()
    assert torch.equal(states[0][1], X)
