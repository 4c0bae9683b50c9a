"""Tests of FreqPure on spectra with known results."""

import math

import pytest
import torch

from unfool.defenses.freqpure import FreqPure
from unfool.diffusion.schedule import VP
from unfool.noise import Noise

NOW = VP()(torch.tensor(0.1, dtype=torch.float64))
SHAPE = torch.empty(4, 3, 6, 5, dtype=torch.float64)
X, X_HAT = (0.3 * Noise.of(seed, range(4)).normal(SHAPE) for seed in (1, 2))


def spectrum(z: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2((z + 1) / 2)


def low(radius: float) -> torch.Tensor:
    """Return which frequencies of 6 x 5 images lie within a radius, with distances written out."""
    down, across = torch.tensor([0, 1, 2, 3, 2, 1.0]), torch.tensor([0, 1, 2, 2, 1.0])
    return (down[:, None] ** 2 + across**2).sqrt() <= radius


def test_no_radius_or_a_perfect_estimate_changes_nothing():
    nothing = FreqPure(amplitude_radius=None, phase_radius=None)
    assert torch.allclose(nothing(X_HAT, X, NOW), X_HAT, atol=1e-14)
    assert torch.allclose(FreqPure()(X, X, NOW), X, atol=1e-14)


def test_taking_all_frequencies_returns_the_image():
    everything = FreqPure(amplitude_radius=100, phase_radius=100, delta=0)
    assert torch.allclose(everything(X_HAT, X, NOW), X, atol=1e-14)


def test_low_amplitudes_are_replaced_and_phases_stay_within_delta():
    found = spectrum(FreqPure(amplitude_radius=2, phase_radius=1, delta=0.3)(X_HAT, X, NOW))
    near, estimate, image = low(2), spectrum(X_HAT), spectrum(X)
    assert torch.allclose(found.abs()[..., near], image.abs()[..., near], atol=1e-12)
    assert torch.allclose(found[..., ~near], estimate[..., ~near], atol=1e-12)
    turn = (found * image.conj()).angle()[..., low(1)].abs()
    assert float(turn.max()) <= 0.3 + 1e-9
    assert float(turn.max()) == pytest.approx(0.3)  # some phases were farther away
    ring = near & ~low(1)
    assert torch.allclose(found.angle()[..., ring], estimate.angle()[..., ring], atol=1e-9)


def test_phase_differences_wrap_around_the_circle():
    """The phases pi - 0.1 and -pi + 0.1 are 0.2 apart, not 2 pi - 0.2."""
    place = torch.arange(8, dtype=torch.float64) * 2 * math.pi / 8
    image, estimate = (
        0.5 * torch.cos(place + phase).expand(1, 1, 8, 8)
        for phase in (math.pi - 0.1, 0.1 - math.pi)
    )
    assert torch.allclose(FreqPure(delta=0.3)(estimate, image, NOW), estimate, atol=1e-12)
    between = 0.5 * torch.cos(place + math.pi + 0.05).expand(1, 1, 8, 8)
    assert torch.allclose(FreqPure(delta=0.15)(estimate, image, NOW), between, atol=1e-12)


def test_gradients_for_estimate_and_image_are_exact():
    correct = FreqPure(amplitude_radius=2, phase_radius=1)
    inputs = tuple(z[:1, :1].clone().requires_grad_() for z in (X_HAT, X))
    assert torch.autograd.gradcheck(lambda a, b: correct(a, b, NOW), inputs)


@pytest.mark.parametrize("pixel", [-1.0, 0.2])
def test_flat_images_have_finite_gradients(pixel: float):
    """The spectra of flat images are 0, except for the mean; those of black images are all 0."""
    flat = torch.full((1, 1, 4, 4), pixel, dtype=torch.float64)
    for pair in ((X_HAT[:1, :1, :4, :4], flat), (flat, X[:1, :1, :4, :4]), (flat, flat)):
        inputs = [z.clone().requires_grad_() for z in pair]
        out = FreqPure()(inputs[0], inputs[1], NOW)
        slopes = torch.autograd.grad(out.square().sum(), inputs)
        assert all(bool(slope.isfinite().all()) for slope in (out, *slopes))


def test_released_form_rounds_replaces_phases_and_has_no_gradient():
    z = X_HAT.clone().requires_grad_()
    out = FreqPure(released=True)(z, X, NOW)
    assert not out.requires_grad
    assert torch.equal(FreqPure(released=True, delta=3.0)(z, X, NOW), out)
    levels = ((X + 1) / 2 * 255).clamp(0, 255).floor()
    whole = FreqPure(released=True, amplitude_radius=100, phase_radius=100)(z, X, NOW)
    assert torch.allclose((whole + 1) / 2 * 255, levels, atol=1e-4)
