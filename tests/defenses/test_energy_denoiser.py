"""Tests of energy-based models as denoisers, and of Langevin dynamics along their score."""

import math

import pytest
import torch
from torch import nn

from unfool.defenses.energy_denoiser import Energy
from unfool.defenses.langevin import Langevin
from unfool.models.jem import JEM
from unfool.noise import Noise
from unfool.toy.blobs import bayes

NOISE = Noise.of(1, range(4))
X = 0.5 + 0.1 * Noise.of(0, range(4)).normal(torch.empty(4, 3, 8, 8)).double()


class Gaussian(nn.Module):
    """log p(x) of pixels with mean 0.6 in [0, 1] and standard deviation 0.1 in [-1, 1]."""

    def density(self, x):
        return -(2 * (x - 0.6)).square().flatten(1).sum(1) / (2 * 0.1**2)


def test_score_is_the_gradient_of_the_log_density():
    z, t = 2 * X - 1, torch.tensor(0.01, dtype=torch.float64)
    model = Energy(Gaussian(), temperature=2.0)
    now = model.schedule(t)
    score = (now.alpha * model(z, t) - z) / now.sigma**2
    assert torch.allclose(score, -(z - 0.2) / 0.01 / 2, atol=1e-9)


def test_long_chains_forget_the_image_and_sample_from_the_model():
    """An Ornstein-Uhlenbeck chain: steps of tau^2 / 2 = 0.0005 along -(z - 0.2) / 0.01."""
    purify = Langevin(Energy(Gaussian()), t=1.0, steps=400, sigma2=None, weight=0.4, eta=1.0)
    x = torch.full((4, 3, 8, 8), 0.9, dtype=torch.float64)
    out = 2 * purify(x, NOISE) - 1
    kept = 1 - 0.0005 / 0.01
    deviation = math.sqrt(0.001 / (1 - kept**2))  # of the chain; it tends to 0.1 for shorter steps
    assert float(out.mean()) == pytest.approx(0.2, abs=4 * 0.1 / math.sqrt(768))
    assert float(out.std()) == pytest.approx(deviation, rel=0.1)


def test_jem_can_be_used_as_an_energy():
    model = JEM(10, 1).double().eval().requires_grad_(False)
    purify = Langevin(Energy(model, temperature=0.05), steps=2, sigma2=None)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(purify(x, NOISE).sum(), x)
    assert bool(slope.isfinite().all())


def test_no_anchor_equals_a_very_weak_anchor():
    loose = Langevin(Energy(Gaussian()), sigma2=1e12)
    assert torch.allclose(Langevin(Energy(Gaussian()), sigma2=None)(X, NOISE), loose(X, NOISE))


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match=r"density.*jem"):
        Energy(bayes())
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Energy(Gaussian(), temperature=0)  # pyright: ignore
