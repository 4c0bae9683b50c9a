"""Tests of distribution transfer: the guide against its formula and finite differences."""

from typing import Any

import pytest
import torch
from probe import blobs
from torch import nn

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.distribution_transfer import DistributionTransfer
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import Discrete
from unfool.distances import INPUT, OUTPUT, Output
from unfool.models.classifiers import NormalizedClassifier
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.toy.blobs import bayes, mixture

READINGS = {
    "as written": {},
    "l2, l1": {"output": "l2", "input": "l1"},
    "confidence": {"output": "confidence", "input": "none"},
    "entropy, ssim": {"output": "entropy", "input": "ssim"},
    "repel": {"output": "repel", "scale": 0.2},
    "noised anchor": {"anchor": "noised", "output": "none"},
    "x_hat": {"at": "x_hat"},
    "x_hat, sde": {"at": "x_hat", "sampler": "sde"},
    "ddim": {"sampler": "ddim"},
    "large": {"variance": "large", "anchor": "noised"},
}
SHORT = {"t": 0.1, "steps": 3}


def curved(side: int = 4) -> NormalizedClassifier:
    """A small classifier with second derivatives, in float64."""
    seed_torch(0, "curved")
    net = nn.Sequential(nn.Flatten(), nn.Linear(side**2, 6), nn.Tanh(), nn.Linear(6, 3))
    return NormalizedClassifier(net.double().requires_grad_(False))


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"output": "none", "input": "none"}])
def test_unguided_output_equals_diffpure(options):
    x, noise = blobs(3), Noise.of(0, range(3))
    plain = DiffPure(mixture(), **SHORT, sampler="ddpm")
    transfer = DistributionTransfer(mixture(), curved(), **SHORT, **options)
    assert torch.equal(transfer(x, noise), plain(x, noise))
    assert transfer.pixel_noise == plain.pixel_noise


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("output", sorted(OUTPUT))
def test_guided_step_matches_equation_10(output: Output, variance: str):
    """The mean moves by - s Sigma grad [D_out + lambda D_in], with grad by central differences."""
    model, see = mixture(schedule=Discrete()), curved()
    x, noise = blobs(2), Noise.of(0, range(2))
    options: dict[str, Any] = {"t": 0.1, "steps": 2, "variance": variance}
    guided = DistributionTransfer(model, see, output=output, scale=0.7, weight=30.0, **options)
    plain = DiffPure(model, sampler="ddpm", **options)
    (_, x_t), (_, found), _ = guided.walk(x, noise)
    _, (_, without), _ = plain.walk(x, noise)

    def distance(image):
        logits, reference = see(image, noise), see(x, noise)
        return OUTPUT[output](logits, reference) + 30.0 * INPUT["mse"](image, x)

    gradient, h = torch.zeros_like(x_t), 1e-5
    for pixel in range(16):
        nudge = torch.zeros(1, 1, 4, 4).double()
        nudge.view(-1)[pixel] = h
        slope = (distance(x_t + nudge) - distance(x_t - nudge)) / (2 * h)
        gradient.view(2, -1)[:, pixel] = slope / 2  # from images in [0, 1] to x_t in [-1, 1]
    abar = Discrete().abar
    beta = 1 - abar[100] / abar[50]
    sigma2 = beta if variance == "large" else beta * (1 - abar[50]) / (1 - abar[100])
    moved = 2 * (found - without)
    assert torch.allclose(moved, -0.7 * sigma2 * gradient, rtol=1e-5, atol=1e-10)
    assert float(moved.detach().abs().max()) > 1e-4


def test_guide_at_x_hat_differentiates_through_the_denoiser():
    """If x_hat is linear in x_t with slope k, D_in(x_hat) pulls by k times its own gradient."""
    model = Mixture(torch.zeros(1, 1, 4, 4).double(), 0.5, Discrete())
    x, noise = blobs(2), Noise.of(0, range(2))
    options = {"t": 0.1, "steps": 2, "output": "none", "variance": "large"}
    plain = DistributionTransfer(model, curved(), scale=0.0, **options)
    guided = DistributionTransfer(model, curved(), at="x_hat", weight=16.0, **options)
    (_, x_t), (_, found), _ = guided.walk(x, noise)
    _, (_, without), _ = plain.walk(x, noise)
    abar = Discrete().abar
    slope = abar[100].sqrt() * 0.25 / (abar[100] * 0.25 + 1 - abar[100])
    x_hat = (slope * (2 * x_t - 1) + 1) / 2
    expected = -(1 - abar[100] / abar[50]) * slope * 2 * (x_hat - x) / 2
    assert torch.allclose(2 * (found - without), expected, atol=1e-12)


def test_guidance_keeps_output_close_to_the_image_and_its_prediction():
    """Descending MSE approaches the image, descending KL its prediction; `repel` moves away."""
    x, noise = blobs(8), Noise.of(0, range(8))

    def far(**options):
        pure = DistributionTransfer(mixture(), bayes().double(), t=0.3, steps=20, **options)
        out = pure(x, noise)
        logits, reference = (bayes().double()(image, noise) for image in (out, x))
        found = INPUT["mse"](out, x).mean(), OUTPUT["kl"](logits, reference).mean()
        return [float(value.detach()) for value in found]

    free, held = far(scale=0.0), far(output="none", weight=50.0)
    assert held[0] < 0.8 * free[0]
    assert far(weight=0.0, scale=0.5)[1] < free[1]
    assert far(output="repel", weight=0.0, scale=0.02)[1] > free[1]


def test_network_with_attention_can_be_differentiated_twice():
    seed_torch(0, "attention")
    model = unet(channels=1, size=8, widths=(8, 8), groups=4, attention=(1,))
    see = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    pure = DistributionTransfer(model, see, t=0.1, steps=2, at="x_hat")
    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(pure(x, Noise.of(0, [0])).sum(), x)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classifier": None}, "the guide needs the classifier"),
        ({"at": "x_hat", "anchor": "noised"}, "x_hat, which has no noise"),
        ({"steps": 59}, "steps must be at most 58"),
    ],
)
def test_invalid_options_are_refused(options, words: str):
    with pytest.raises(ValueError, match=words):
        DistributionTransfer(mixture(), **({"classifier": curved()} | options))


def test_classifier_without_gradient_is_refused():
    pure = DistributionTransfer(
        mixture(), lambda x, noise: x.detach().flatten(1), **SHORT, weight=0
    )
    with pytest.raises(ValueError, match=r"the gradient .*classifier's logits"):
        pure(blobs(1), Noise.of(0, [0]))
