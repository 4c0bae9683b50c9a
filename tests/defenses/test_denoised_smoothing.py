"""Tests of denoised smoothing against closed forms."""

from typing import Any

import pytest
import torch
from probe import blobs

from unfool.defenses.denoised_smoothing import DensePure, OneStep
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import VP, Discrete
from unfool.noise import Noise
from unfool.toy.blobs import mixture


def world(schedule=None, side: int = 1) -> Mixture:
    """Return a denoiser for pixels N(0.6, 0.2^2) in [0, 1]."""
    return Mixture(torch.full((1, 1, side, side), 0.2).double(), 0.4, schedule)


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5])
def test_one_step_returns_the_posterior_mean(sigma: float):
    """For a Gaussian pixel with Gaussian noise, it is the precision-weighted mean."""
    x = torch.tensor([-0.7, 0.3, 0.9, 2.1], dtype=torch.float64).view(4, 1, 1, 1)
    out = OneStep(world(), sigma=0.25).denoise(x, sigma, Noise.of(0, range(4)))
    share = 0.2**2 / (0.2**2 + sigma**2)
    assert torch.allclose(out, 0.6 + share * (x - 0.6), atol=1e-12)


def test_densepure_samples_from_the_posterior():
    """For a pixel with noise 0.25, the reverse chain ends in a sample of p(x | noisy x)."""
    model = world(Discrete(), side=60)
    x = torch.full((1, 1, 60, 60), 0.9, dtype=torch.float64)
    pure = DensePure(model, sigma=0.25, steps=146)
    out = pure.denoise(x, 0.25, Noise.of(0, [0]))
    share = 0.2**2 / (0.2**2 + 0.25**2)
    assert float(out.mean()) == pytest.approx(0.6 + share * 0.3, abs=0.01)
    assert float(out.std()) == pytest.approx((share * 0.25**2) ** 0.5, rel=0.05)


def test_densepure_steps_match_the_paper():
    """K calls at round(t - i t / K), counted from 0; the paper's formula gives t = 1158.5 of 4000."""
    model = mixture(schedule=Discrete(4000, "cosine"))
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(float(args[1])))
    DensePure(model, sigma=0.25, steps=10)(blobs(1), Noise.of(0, [0]))
    expected = [1158.5 - i * 115.85 for i in range(10)]
    assert [4000 * t - 1 for t in seen] == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("name", ["one-step", "densepure"])
def test_purifier_adds_the_forward_noise_itself(name: str):
    pure = {"one-step": OneStep, "densepure": DensePure}[name](mixture(), sigma=0.2)
    x, noise = blobs(3), Noise.of(0, range(3))
    noisy = x + 0.2 * noise.child("forward").normal(x)
    whole = pure(x, noise)
    assert torch.equal(whole, pure.denoise(noisy, 0.2, noise))
    assert pure.pixel_noise == 0.2


def test_denoise_adds_no_forward_noise():
    """`denoise` adds no noise of its own: OneStep draws nothing, DensePure only the reverse noise."""
    x, noise = blobs(2), Noise.of(0, range(2))
    one, dense = OneStep(mixture(), sigma=0.5), DensePure(mixture(), sigma=0.5)
    assert torch.equal(one.denoise(x, 0.3, noise), one.denoise(x, 0.3, Noise.of(1, range(2))))
    first, again, other = (
        dense.denoise(x, 0.3, seed) for seed in (noise, noise, Noise.of(1, range(2)))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_time_is_converted_to_pixel_noise():
    assert OneStep(mixture(), t=0.1).pixel_noise == pytest.approx(0.1701, abs=5e-5)
    assert DensePure(mixture(), t=0.1).pixel_noise == pytest.approx(0.1701, abs=5e-5)


@pytest.mark.parametrize("schedule", [VP(), Discrete()])
@pytest.mark.parametrize("purifier", [OneStep, DensePure])
def test_gradients_are_exact(purifier, schedule):
    options: dict[str, Any] = {"steps": 3} if purifier is DensePure else {}
    pure = purifier(mixture(side=2, schedule=schedule), sigma=0.2, **options)
    x = blobs(2)[:, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pure(x, Noise.of(0, range(2))), x)


@pytest.mark.parametrize("purifier", [OneStep, DensePure])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give exactly one of sigma"),
        ({"sigma": 0.5, "t": 0.1}, "give exactly one of sigma"),
        ({"t": 3.0}, "t must be from 0.0001 to 1"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": float("nan")}, "sigma must be above 0"),
        ({"sigma": 1e3}, "at most 76.08"),
    ],
)
def test_invalid_options_are_refused(purifier, options, words: str):
    with pytest.raises(ValueError, match=words):
        purifier(mixture(), **options)


def test_denoise_refuses_noise_or_steps_beyond_the_schedule():
    x, noise = blobs(1), Noise.of(0, [0])
    for pure in (OneStep(mixture(), sigma=0.5), DensePure(mixture(), sigma=0.5)):
        with pytest.raises(ValueError, match="sigma must be above 0 and at most 76"):
            pure.denoise(x, 100.0, noise)
    with pytest.raises(ValueError, match="steps must be from 1 to 15"):
        DensePure(mixture(), sigma=0.5, steps=40).denoise(x, 0.03, noise)
    with pytest.raises(ValueError, match=r"variance .*small, large"):
        DensePure(mixture(), sigma=0.5, variance="learned")  # pyright: ignore[reportArgumentType]
