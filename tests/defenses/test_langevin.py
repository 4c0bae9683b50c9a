"""Tests of the Langevin-like purifier from DiffPure's released code."""

import math

import pytest
import torch

from unfool.defenses.langevin import Langevin
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import VP, Discrete
from unfool.noise import Noise
from unfool.toy.blobs import mixture

CURVED = Mixture(0.3 * Noise.of(3, range(5)).normal(torch.empty(5, 1, 2, 2)).double(), 0.1)
X = 0.5 + 0.1 * Noise.of(0, range(4)).normal(torch.empty(4, 1, 2, 2)).double()
NOISE = Noise.of(1, range(4))


def test_recursion_matches_the_released_code_for_gaussian_data():
    """The drift uses the score of N(alpha 0.2, alpha^2 0.25 + sigma^2) at t = 0.01."""
    purify = Langevin(Mixture(torch.full((1, 1, 2, 2), 0.2, dtype=torch.float64), 0.5))
    now = VP()(torch.tensor(0.01, dtype=torch.float64))
    variance = now.alpha**2 * 0.25 + now.sigma**2
    z = anchor = 2 * X - 1
    for i in range(10):
        pull = 0.005 * ((now.alpha * 0.2 - z) / variance - (z - anchor) / 1e-3)
        z = z + 0.01 * pull + 5 * math.sqrt(1e-2 * 0.01) * NOISE.child("reverse", i).normal(z)
    assert torch.allclose(purify(X, NOISE), (z + 1) / 2, atol=1e-12)


def test_anchor_without_score_has_ornstein_uhlenbeck_moments():
    """Without a score, this is an Ornstein-Uhlenbeck process with deviation 0.126 in continuous time."""

    class Nothing(Mixture):
        def forward(self, x_t, t, label=None):
            return x_t / self.schedule(t.double()).alpha  # an estimate whose score is 0

    model = Nothing(torch.zeros(1, 1, 100, 100).double(), 1.0)
    x = torch.full((1, 1, 100, 100), 0.7).double()
    out = 2 * Langevin(model, steps=200)(x, Noise.of(0, [0])) - 1
    assert float(out.mean()) == pytest.approx(0.4, abs=4 * 0.126 / 100)
    assert float(out.std()) == pytest.approx(math.sqrt(0.025 * (1 - math.exp(-1))), rel=0.03)


def test_score_before_the_first_step_of_a_chain_is_that_of_the_first_step():
    x, noise = torch.full((2, 1, 2, 2), 0.6, dtype=torch.float64), Noise.of(0, range(2))
    model = Mixture(torch.zeros(2, 1, 2, 2, dtype=torch.float64), 0.3, Discrete(20))
    found = Langevin(model)(x, noise)  # score_t is 0.01
    assert torch.equal(found, Langevin(model, score_t=1 / 20)(x, noise))
    assert bool(found.isfinite().all())


def test_too_strong_anchor_is_refused():
    with pytest.raises(ValueError, match="the anchor overshoots"):
        Langevin(mixture(), sigma2=1e-6)
