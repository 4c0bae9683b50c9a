"""Tests of GDMP against its formula."""

from typing import Any

import pytest
import torch
from probe import blobs

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.gdmp import GDMP, AnchorDistance
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import Discrete
from unfool.noise import Noise
from unfool.toy.blobs import mixture

SHORT = {"t": 0.036, "steps": 3, "passes": 2}


@pytest.mark.parametrize("options", [{"distance": "none"}, {"scale": 0.0}])
def test_unguided_gdmp_equals_repeated_diffpure(options):
    x, noise = blobs(3), Noise.of(0, range(3))
    once = DiffPure(mixture(), t=0.036, steps=3, sampler="ddpm", variance="large")
    twice = once(once(x, noise.child("pass", 0)), noise.child("pass", 1))
    assert torch.allclose(GDMP(mixture(), **SHORT, **options)(x, noise), twice, atol=1e-12)


def test_mse_guide_pulls_as_strongly_as_the_released_code():
    """At index 35 on CIFAR-10, MSE pulls by 0.0019 (x - y) for batches of 100 images."""
    model = Mixture(torch.zeros(1, 3, 32, 32).double(), 0.5, Discrete())
    x = torch.full((1, 3, 32, 32), 0.6, dtype=torch.float64)
    y, noise = 2 * x - 1, Noise.of(0, [0])
    for batch_mean, average, pull in ((False, 100, 0.0019), (False, 1, 0.19), (True, 100, 0.19)):
        options = {
            "passes": 1,
            "anchor": "image",
            "reference_batch_size": average,
            "batch_mean": batch_mean,
        }
        free, held = (GDMP(model, scale=s, **options) for s in (0.0, 60000.0))
        x_t = model.perturb(y, free.times[0], noise.child("pass", 0, "forward"))
        free.times = held.times = free.times[:2]  # the first step only, from n = 36 to 35
        moved = 2 * (held(x, noise) - free(x, noise))
        assert float((moved / (y - x_t)).mean()) == pytest.approx(pull, rel=0.03)
        assert float((moved / (y - x_t)).std()) < 1e-8


@pytest.mark.parametrize("distance", ["ssim", "ssim-padded"])
def test_ssim_guide_is_the_ssim_gradient_with_or_without_zero_padding(distance):
    model, noise = Mixture(torch.zeros(1, 3, 16, 16).double(), 0.5, Discrete()), Noise.of(0, [0])
    x = noise.child("x").uniform(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    options = {"passes": 1, "anchor": "image", "reference_batch_size": 1, "distance": distance}
    free, held = (GDMP(model, scale=scale, **options) for scale in (0.0, 10.0))
    x_t = model.perturb(2 * x - 1, free.times[0], noise.child("pass", 0, "forward"))
    free.times = held.times = free.times[:2]
    moved = (held(x, noise) - free(x, noise)).flatten()

    place = torch.arange(11, dtype=torch.float64) - 5
    row = torch.exp(-(place**2) / (2 * 1.5**2))
    window = (row[:, None] * row / row.sum() ** 2).expand(3, 1, 11, 11)
    border = 5 if distance == "ssim-padded" else 0

    def mean(image):
        return torch.nn.functional.conv2d(image, window, padding=border, groups=3)

    a, b = x_t.requires_grad_(), 2 * x - 1
    shared = 2 * (mean(a * b) - mean(a) * mean(b)) + 9e-4
    spread = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2 + 9e-4
    light = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
    (slope,) = torch.autograd.grad((light * shared / spread).mean(), a)
    ratio = float(moved @ slope.flatten() / slope.square().sum())
    assert ratio > 0
    assert torch.allclose(moved, ratio * slope.flatten(), atol=1e-9)


def test_batch_mean_makes_outputs_depend_on_the_batch():
    x, noise = blobs(4), Noise.of(0, range(4))
    legacy = GDMP(mixture(), **SHORT, scale=3e5, batch_mean=True)
    assert torch.allclose(
        legacy(x, noise),
        GDMP(mixture(), **SHORT, scale=3e5, reference_batch_size=4)(x, noise),
        atol=1e-12,
    )
    alone = torch.cat([legacy(x[i : i + 1], noise.take([i])) for i in range(4)])
    assert not torch.allclose(alone, legacy(x, noise), atol=1e-3)


@pytest.mark.parametrize(("distance", "scale"), [("mse", 2e4), ("ssim", 300.0)])
def test_guidance_keeps_output_close_to_the_image(distance: AnchorDistance, scale: float):
    x, noise = blobs(16), Noise.of(0, range(16))
    options: dict[str, Any] = {
        "t": 0.1,
        "steps": 20,
        "passes": 2,
        "anchor": "image",
        "scale": scale,
    }
    distances: list[AnchorDistance] = ["none", distance]
    free, held = (
        (GDMP(mixture(), distance=d, **options)(x, noise) - x).square().mean() for d in distances
    )
    assert float(held) < 0.95 * float(free)


def test_extra_noise_step_adds_noise_as_in_the_released_code():
    early, late = (
        GDMP(mixture(schedule=Discrete()), extra_noise_step=late) for late in (False, True)
    )
    assert early.pixel_noise == pytest.approx(0.0638, abs=5e-5)
    assert late.pixel_noise == pytest.approx(0.0654, abs=5e-5)
    assert torch.equal(early.times, late.times)
    x, noise = blobs(2), Noise.of(0, range(2))
    assert not torch.equal(early(x, noise), late(x, noise))


def test_chain_limits_the_number_of_steps():
    with pytest.raises(ValueError, match="steps must be at most 36"):
        GDMP(mixture(), steps=37)
