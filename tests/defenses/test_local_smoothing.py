"""A classifier that takes a vote on noisy copies, alone and in a certification."""

import pytest
import torch
from scipy.stats import norm

from unfool.defenses.local_smoothing import LocalSmoothing
from unfool.noise import Noise

X = torch.full((2000, 1, 1, 1), 0.5)
NOISE = Noise.of(0, range(len(X)))


class Threshold:
    """Class 1 where the one pixel is above 0.6."""

    def __call__(self, x, noise):
        lead = 10 * (x.flatten(1)[:, 0] - 0.6)
        return torch.stack([-lead, lead], 1)


def test_votes_are_a_binomial_of_the_copies():
    """A copy of noise 0.2 is above 0.6 with the chance of a normal above 0.5."""
    p = float(norm.sf(0.5))
    most = 3 * p**2 * (1 - p) + p**3
    chosen = LocalSmoothing(Threshold(), sigma=0.2, draws=3)(X, NOISE).argmax(1).float()
    assert float(chosen.mean()) == pytest.approx(most, abs=4 * 0.5 / len(X) ** 0.5)


def test_one_copy_without_votes_is_the_classifier_with_noise():
    model = LocalSmoothing(Threshold(), sigma=0.2, draws=1, by="logits")
    noisy = X + 0.2 * NOISE.child("local", 0).normal(X)
    assert torch.allclose(model(X, NOISE), Threshold()(noisy, NOISE))


def test_an_answer_is_an_image_s_own_and_attacks_have_a_gradient():
    model, x = LocalSmoothing(Threshold(), sigma=0.2), X[:8].clone().requires_grad_()
    whole = model(x, NOISE.take(range(8)))
    alone = torch.cat([model(x[i : i + 1], NOISE.take([i])) for i in range(8)])
    assert torch.equal(alone, whole)
    (slope,) = torch.autograd.grad(whole[:, 1].sum(), x)
    assert bool((slope > 0).all())
