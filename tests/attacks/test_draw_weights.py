"""Weights of draws: by hand, and on a model with draws that cannot be fooled."""

import pytest
import torch
from analytic import NOISE, SIZE, THREATS, WEIGHT, Blurred, X, Y, progress
from torch import nn

from unfool.attacks.apgd import APGD
from unfool.attacks.draw_weights import em_weights
from unfool.attacks.pgd import PGD
from unfool.threat import Threat

THREAT = THREATS["l2"]


class Contrary(nn.Module):
    """Two of three draws break along -WEIGHT; the third has a steeper opposite slope, and never does."""

    def forward(self, x, noise):
        along = ((x - X.mean()) * WEIGHT).flatten(1).sum(1) / WEIGHT.norm()
        odd = noise.child("kind").uniform(x[:, 0, 0, 0]) < 1 / 3
        lead = torch.where(odd, 50 - 4 * along, 0.1 + along)
        return torch.stack([lead, -lead], 1)


def rates(attack, draws=200):
    x, y = X.mean() + 0 * X, torch.zeros(SIZE, dtype=torch.long)
    found = attack(Contrary(), x, y, THREAT, NOISE)
    assert THREAT.allows(x, found).all()
    copies = NOISE.child("held-out").for_query(0, draws)
    return Contrary()(found.repeat_interleave(draws, 0), copies).argmax(1).view(SIZE, draws)


@pytest.mark.parametrize("make", [PGD, APGD])
def test_draws_that_cannot_be_fooled_do_not_hold_the_attack_back(make):
    plain = rates(make(10, 12, loss="margin", selection_draws=1)).double().mean()
    weighed = rates(make(10, 12, loss="margin", weights="em")).double().mean()
    assert abs(float(weighed) - 2 / 3) < 0.05  # the share of draws that can be fooled
    assert float(plain) < float(weighed) - 0.1


def test_weights_change_nothing_when_draws_agree():
    """All draws of `Blurred` have the same gradient, so weights do not change the mean."""
    plain, weighed = (
        PGD(6, 4, loss="margin", weights=weights)(Blurred(), X, Y, THREAT, NOISE)
        for weights in ("mean", "em")
    )
    assert torch.allclose(plain, weighed, atol=1e-9)
    assert (progress(weighed, THREAT) > 0.95).all()


def test_em_weights_by_hand():
    """Draw 0 breaks along the first value, draw 1 nearly so, and draw 2 in reverse, but far off."""
    slopes = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]).view(1, 3, 1, 1, 2)
    found = em_weights(Threat("l2", 0.5), torch.tensor([[-0.2, -0.3, -9.0]]), slopes)
    assert found.shape == (1, 3)
    assert float(found[0, 2]) < 1e-2
    assert (found[0, :2] > 0.5).all()
    scaled = em_weights(Threat("l2", 0.5), torch.tensor([[-200, -300, -9000.0]]), 1000 * slopes)
    assert torch.allclose(found, scaled)  # whatever the scale of the logits
    assert em_weights(Threat("l2", 0.5), torch.full((1, 3), torch.nan), slopes).isfinite().all()


@pytest.mark.parametrize("make", [PGD, APGD])
def test_em_weights_refuse_the_loss_ce(make):
    with pytest.raises(ValueError, match=r"em .* the loss ce"):
        make(weights="em")
