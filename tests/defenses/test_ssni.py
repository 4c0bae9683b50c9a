"""Tests of noise levels: each image gets its own t*, given or computed from score norms."""

import math

import pytest
import torch
from probe import assert_gradient, blobs, world

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.freqpure import FreqPure
from unfool.defenses.mani import Spectrum
from unfool.defenses.mimic import Mimic
from unfool.defenses.sampling import SamplerName
from unfool.defenses.ssni import ScoreNorm, score_norms
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.gradient import keep_graphs
from unfool.diffusion.schedule import VP, Discrete
from unfool.noise import Noise
from unfool.toy.blobs import mixture

X, NOISE = blobs(), Noise.of(1, range(4))
OWN = (0.05, 0.1, 0.2, 0.3)
EASY = {"center": 1.0, "width": 1.0, "levels": 3}


def given(x, t, noise):
    """Return the time OWN[i] for image i, which is found by the key of its noise."""
    places = [NOISE.child("forward", "level").keys.index(key) for key in noise.keys]
    return x.new_tensor([OWN[place] for place in places])


def constant(x, t, noise):
    return x.new_full((len(x),), t)


@pytest.mark.parametrize("sampler", ["sde", "ddpm", "ddim", "ode"])
@pytest.mark.parametrize("schedule", [VP(), Discrete(1000)])
def test_constant_noise_level_equals_diffpure(sampler: str, schedule):
    options = {"t": 0.2, "steps": 5, "sampler": sampler}
    model = mixture()
    model = Mixture(model.means.double(), 0.1, schedule)
    found = DiffPure(model, noise_level=constant, **options)(X, NOISE)
    assert torch.allclose(found, DiffPure(model, **options)(X, NOISE), atol=1e-12)
    wide = ScoreNorm(model, center=1.0, width=1e12, bias=0.2, levels=2)  # (t + bias) / 2
    assert torch.allclose(DiffPure(model, noise_level=wide, **options)(X, NOISE), found, atol=1e-9)


def test_images_with_different_times_equal_diffpure_at_each_time():
    """Use ten even steps, all of which the chain has."""
    for sampler in ("sde", "ddpm"):
        found = DiffPure(mixture(), t=0.3, steps=10, sampler=sampler, noise_level=given)(X, NOISE)
        for i, t in enumerate(OWN):
            alone = DiffPure(mixture(), t=t, steps=10, sampler=sampler)
            # the SDE ends at 1e-5 for all
            assert torch.allclose(found[i : i + 1], alone(X[i : i + 1], NOISE.take([i])), atol=1e-9)


@pytest.mark.parametrize("level", [given, ScoreNorm(mixture(), **EASY)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_bitwise_the_same_in_a_batch_with_other_times(level, dtype):
    x, purify = X.to(dtype), DiffPure(mixture(), t=0.2, steps=5, sampler="ddpm", noise_level=level)
    whole = purify(x, NOISE)
    for i in range(4):
        assert torch.equal(whole[i : i + 1], purify(x[i : i + 1], NOISE.take([i])))


def test_score_norm_of_one_gaussian_matches_closed_form():
    """Each level uses the score of N(0.2 alpha, alpha^2 0.25 + sigma^2) at its own draw."""
    x, noise = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64), Noise.of(5, [0])
    total = 0.0
    for i, t in enumerate((0.01, 0.02)):
        now = VP()(torch.tensor(t, dtype=torch.float64))
        x_t = now.alpha * 0.8 + now.sigma * noise.child(i).normal(x)
        total += float((now.alpha * 0.2 - x_t) / (now.alpha**2 * 0.25 + now.sigma**2)) / 2
    norm = score_norms(world(0.5), x, noise, levels=2)
    assert float(norm) == pytest.approx(abs(total), rel=1e-9)

    told = {"center": 0.5, "width": 0.25, "levels": 2, "bias": 0.1}
    share = 1 / (1 + math.exp(-(abs(total) - 0.5) / 0.25))
    own = ScoreNorm(world(0.5), **told)(2 * x - 1, 0.2, noise)
    assert float(own) == pytest.approx(0.3 * share, rel=1e-9)
    linear = ScoreNorm(world(0.5), **told | {"shape": "linear", "width": 20.0})
    expected = 0.2 * ((abs(total) - 0.5) / 20 + 0.5) + 0.1
    assert float(linear(2 * x - 1, 0.2, noise)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [100, 20])
def test_score_norm_on_a_short_chain_starts_at_its_first_step(steps: int):
    """Before the first step there is no noise, and so no score."""
    model = Mixture(mixture().means.double(), 0.1, Discrete(steps))
    norms = score_norms(model, X, NOISE, levels=1, up_to=1 / steps)
    assert torch.equal(score_norms(model, X, NOISE, levels=1, up_to=0.1 / steps), norms)
    level = ScoreNorm(model, center=1.0, width=1.0)
    pure = DiffPure(model, t=0.3, steps=5, sampler="ddpm", noise_level=level)(X, NOISE)
    assert bool(pure.isfinite().all())


@pytest.mark.parametrize(("sampler", "is_zero"), [("ddpm", True), ("ddim", True), ("sde", False)])
def test_gradient_of_t_on_a_chain_goes_only_through_the_lengths_of_steps(sampler, is_zero: bool):
    model = Mixture(mixture().means.double(), 0.1, Discrete(1000))
    times = X.new_tensor([0.0543, 0.1, 0.2217, 0.3]).requires_grad_()
    purify = DiffPure(model, t=0.3, steps=5, sampler=sampler, noise_level=lambda x, t, noise: times)
    (gradient,) = torch.autograd.grad(purify(X, NOISE).sum(), times)
    assert bool((gradient == 0).all()) == is_zero


def test_images_farther_from_the_data_get_more_noise():
    near, far = X, (X + 0.3 * Noise.of(9, range(4)).normal(X)).clamp(0, 1)
    level = ScoreNorm(mixture(), **EASY)
    assert bool((level(2 * far - 1, 0.2, NOISE) > level(2 * near - 1, 0.2, NOISE)).all())


@pytest.mark.parametrize("sampler", ["sde", "ddpm", "ddim", "ode"])
@pytest.mark.parametrize("shape", ["sigmoid", "linear"])
def test_gradients_are_exact_and_include_the_noise_level(sampler: SamplerName, shape):
    level = ScoreNorm(mixture(), center=4.0, width=8.0, levels=2, shape=shape)
    purify = DiffPure(mixture(), t=0.3, steps=4, sampler=sampler, noise_level=level)
    x = (0.5 + 0.6 * (X - 0.5)).clone()
    assert_gradient(lambda x: purify(x, NOISE), x)

    class Fixed(ScoreNorm):
        def forward(self, x, t, noise):
            return super().forward(x, t, noise).detach()

    fixed = Fixed(mixture(), center=4.0, width=8.0, levels=2, shape=shape)
    blind = DiffPure(mixture(), t=0.3, steps=4, sampler=sampler, noise_level=fixed)
    x.requires_grad_()
    slope, other = (
        torch.autograd.grad((p(x, NOISE) * x.detach()).sum(), x)[0] for p in (purify, blind)
    )
    assert not torch.allclose(other, slope, rtol=1e-3)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gradient_through_fresh_noise_of_ddim_is_exact(eta: float):
    level = ScoreNorm(mixture(), center=4.0, width=8.0, levels=2)
    purify = DiffPure(mixture(), t=0.3, steps=4, sampler="ddim", eta=eta, noise_level=level)
    assert_gradient(lambda x: purify(x, NOISE), (0.5 + 0.6 * (X - 0.5)).clone())


@pytest.mark.parametrize(("sampler", "eta"), [("sde", 0.0), ("ddpm", 0.0), ("ddim", 1.0)])
def test_short_steps_are_precise_in_float32(sampler: SamplerName, eta: float):
    """In float32, 1 - (alpha ratio)^2 of such a step is mostly rounding."""

    def short(x, t, noise):
        return x.new_full((len(x),), 0.001)

    single, double = (
        DiffPure(
            Mixture(mixture().means.to(dtype), 0.1, VP()),
            t=0.1,
            steps=100,
            sampler=sampler,
            eta=eta,
            noise_level=short,
        )(X.to(dtype), NOISE)
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.allclose(single.double(), double, atol=1e-5)


@pytest.mark.parametrize("graphs", [0, 2, 4])
def test_gradients_are_exact_with_guide_and_correction_of_the_image(graphs: int):
    """Both the times and the steps depend on the image, and neither gradient is counted twice."""
    purify = DiffPure(
        mixture(),
        t=0.3,
        steps=4,
        sampler="ddpm",
        noise_level=ScoreNorm(mixture(), center=4.0, width=8.0, levels=2),
        correction=FreqPure(1, 1),
        guide=Mimic(scale=5, smoothing=0.1),
        shaping=Spectrum(bands=2),
    )
    with keep_graphs(graphs):
        assert_gradient(lambda x: purify(x, NOISE), X)


def test_discrete_chain_gives_finite_outputs_and_gradients():
    model = Mixture(mixture().means.double(), 0.1, Discrete(100))
    shallow = ScoreNorm(model, center=1e4, width=1.0, levels=2)  # the smallest possible noise
    x = X.clone().requires_grad_()
    out = DiffPure(model, t=0.3, steps=5, sampler="ddpm", noise_level=shallow)(x, NOISE)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert bool(out.isfinite().all())
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [VP(), Discrete(1000)])
@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_path_shorter_than_its_last_step_ends_where_the_others_do(sampler, schedule, dtype):
    """The least time, 1e-4, in 50 even steps would pass the end at 1e-5 before the last one."""
    model = Mixture(mixture().means.to(dtype), 0.1, schedule)
    least = ScoreNorm(model, center=1e4, width=1.0, levels=1)
    x = X.to(dtype).requires_grad_()
    out = DiffPure(model, t=0.1, steps=50, sampler=sampler, noise_level=least)(x, NOISE)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(out, x, atol=0.1)
    assert bool(slope.isfinite().all())


def test_fewer_steps_require_independent_noise():
    purify = DiffPure(
        mixture(), t=0.2, steps=10, sampler="ddpm", noise_level=ScoreNorm(mixture(), **EASY)
    )
    assert purify.with_fewer_steps(5, matched=False)(X, NOISE).shape == X.shape
    with pytest.raises(ValueError, match="`surrogate` or `exact`"):
        purify.with_fewer_steps(5)


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (lambda x, t, noise: x.new_full((len(x),), 1.5), r"1\.5.* for 4 images"),
        (lambda x, t, noise: x.new_full((len(x),), torch.nan), "nan"),
        (lambda x, t, noise: x.new_full((1,), 0.1), r"\(1,\) for 4 images"),
    ],
)
def test_noise_level_must_return_one_valid_time_per_image(level, words: str):
    with pytest.raises(ValueError, match=words):
        DiffPure(mixture(), noise_level=level)(X, NOISE)


def test_heun_and_the_adjoint_refuse_noise_levels():
    with pytest.raises(ValueError, match="heun"):
        DiffPure(mixture(), t=0.2, steps=5, sampler="heun", noise_level=constant)
    with pytest.raises(ValueError, match="noise level"):
        DiffPure(mixture(), t=0.2, steps=5, noise_level=constant).adjoint()
