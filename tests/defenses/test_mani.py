"""Tests of forward noise that is shaped by the image's spectrum."""

import pytest
import torch
from probe import blobs

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.mani import Spectrum
from unfool.noise import Noise
from unfool.toy.blobs import mixture

X, NOISE = blobs(), Noise.of(1, range(4))


@pytest.mark.parametrize("plain", [{"gamma": 0}, {"bands": 1, "gamma": 2}])
def test_equal_weights_give_plain_diffpure(plain):
    bare = DiffPure(mixture(), t=0.2, steps=4, sampler="ddpm")
    shaped = DiffPure(mixture(), t=0.2, steps=4, sampler="ddpm", shaping=Spectrum(**plain))
    assert torch.allclose(shaped(X, NOISE), bare(X, NOISE), atol=1e-12)


def test_noise_avoids_the_image_spectrum_and_keeps_its_power():
    """For a slow wave, the noise in the wave's own band is weaker than in any other band."""
    place = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    images = 0.5 * torch.cos(place).expand(400, 1, 16, 16)
    eps = Noise.of(3, range(400)).normal(images)
    shape = Spectrum(bands=4, gamma=0.5)
    out = shape(eps, images)
    assert float(out.square().mean()) == pytest.approx(1, abs=0.02)
    power = torch.fft.fft2(out).abs().square().mean((0, 1)) / 256
    weight = shape.weights(images[:1])[0]
    assert float(weight[0, 1]) == pytest.approx(float(weight.min()))
    share = (weight[8, 8] / weight[0, 1]).square()
    # of 16 x 16 frequencies: (0, 1) is in the first of four rings up to 8 sqrt(2), (8, 8) in the last
    assert float(power[8, 8] / power[0, 1]) == pytest.approx(float(share), rel=0.4)


def test_gradients_are_exact_and_pass_through_the_spectrum():
    shape, eps = Spectrum(bands=3), NOISE.normal(X)[:1, :1]
    x = X[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: shape(eps, z), (x,))
    (slope,) = torch.autograd.grad(shape(eps, x).square().sum(), x)
    assert float(slope.abs().max()) > 0


def test_black_images_get_finite_noise_and_gradients():
    x = torch.full((1, 1, 4, 4), -1.0, requires_grad=True)
    out = Spectrum()(Noise.of(0, [0]).normal(x), x)
    (slope,) = torch.autograd.grad(out.square().sum(), x)
    assert bool(out.isfinite().all())
    assert bool(slope.isfinite().all())
