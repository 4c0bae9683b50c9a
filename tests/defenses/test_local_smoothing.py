"""Tests of a classifier that takes a vote over noisy copies of an image."""

import pytest
import torch
from scipy.stats import norm

from unfool.defenses.local_smoothing import LocalSmoothing
from unfool.noise import Noise

X = torch.full((2000, 1, 1, 1), 0.5)
NOISE = Noise.of(0, range(len(X)))


class Threshold:
    """A classifier that predicts class 1 if the single pixel is above 0.6."""

    def __call__(self, x, noise):
        lead = 10 * (x.flatten(1)[:, 0] - 0.6)
        return torch.stack([-lead, lead], 1)


def test_votes_follow_the_binomial_distribution():
    """A copy with noise 0.2 is above 0.6 with the probability that a standard normal is above 0.5."""
    p = float(norm.sf(0.5))
    most = 3 * p**2 * (1 - p) + p**3
    chosen = LocalSmoothing(Threshold(), sigma=0.2, draws=3)(X, NOISE).argmax(1).float()
    assert float(chosen.mean()) == pytest.approx(most, abs=4 * 0.5 / len(X) ** 0.5)


def test_one_copy_without_votes_is_the_classifier_on_a_noisy_image():
    model = LocalSmoothing(Threshold(), sigma=0.2, draws=1, by="logits")
    noisy = X + 0.2 * NOISE.child("local", 0).normal(X)
    assert torch.allclose(model(X, NOISE), Threshold()(noisy, NOISE))


def test_output_does_not_depend_on_the_batch_and_has_a_gradient():
    model, x = LocalSmoothing(Threshold(), sigma=0.2), X[:8].clone().requires_grad_()
    whole = model(x, NOISE.take(range(8)))
    alone = torch.cat([model(x[i : i + 1], NOISE.take([i])) for i in range(8)])
    assert torch.equal(alone, whole)
    (slope,) = torch.autograd.grad(whole[:, 1].sum(), x)
    assert bool((slope > 0).all())
