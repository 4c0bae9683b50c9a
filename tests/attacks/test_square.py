"""Square needs no gradient, and gains nothing from lucky draws."""

import pytest
import torch
from analytic import (
    NOISE,
    THREATS,
    Bent,
    Blurred,
    Drifting,
    Linear,
    X,
    Y,
    accuracy,
    lead,
    many,
    progress,
    worst,
)

from unfool.attacks.apgd import APGD
from unfool.attacks.square import Square, bumps, odd_side
from unfool.threat import Threat


class Masked(Linear):
    """`Linear` on rounded inputs, whose gradient exists and is zero."""

    def forward(self, x, noise):
        coarse = (32 * x).round() / 32
        return super().forward(coarse + 0 * x, noise)


def test_masked_gradient_does_not_stop_square():
    threat = Threat("linf", 0.08)
    reach = lead(worst(threat, X, Y), Y) < 0
    assert reach.all()
    square = Square(150)(Masked(), X, Y, threat, NOISE)
    climbed = APGD(20, loss="margin")(Masked(), X, Y, threat, NOISE)
    assert (lead(square, Y) < 0).all()
    assert (lead(climbed, Y) > 0).any()


@pytest.mark.parametrize(("norm", "share"), [("linf", 0.88), ("l2", 0.4)])
def test_most_of_the_way_to_the_optimum_of_a_linear_model_is_covered(norm, share: float):
    """The share for l2 is lower, as bumps at least 3 wide fit 4 x 4 pixels of white noise poorly."""
    threat = THREATS[norm]
    found = Square(200, steps_per_draw=200)(Drifting(Linear()), X, Y, threat, NOISE)
    assert threat.allows(X, found).all()
    assert float(progress(found, threat).mean()) > share


def test_optimum_of_a_noisy_linear_model_is_nearly_reached():
    threat = Threat("linf", 0.05)
    x, y, noise = many(24)
    found = Square(120, eot=4)(Blurred(), x, y, threat, noise.child("search"))
    best = accuracy(worst(threat, x, y), y)
    assert accuracy(x, y) - best > 0.3
    assert accuracy(found, y) < best + 0.1


@pytest.mark.parametrize("hold", [1, 5])
def test_noise_shared_by_all_candidates_changes_nothing(hold: int):
    attack, threat = Square(40, steps_per_draw=hold), THREATS["linf"]
    still = attack(Drifting(Bent()), X, Y, threat, NOISE)
    shaken = attack(Bent(luck=1.0), X, Y, threat, NOISE)
    assert torch.allclose(shaken, still, atol=1e-9)


def test_square_needs_no_gradient_and_keeps_to_its_number_of_queries():
    calls = []

    def model(x, noise):
        calls.append((torch.is_grad_enabled(), x.requires_grad))
        return Drifting(Linear())(x, noise)

    for hold, looks in ((1, 19), (10, 10)):  # the start and 9 proposals, with or without the best
        calls.clear()
        Square(10, steps_per_draw=hold)(model, X, Y, THREATS["l2"], NOISE)
        assert set(calls) == {(False, False)}
        assert len(calls) == looks + 3  # two draws of the image; at the end the best and the image


def test_sides_of_bumps_are_odd():
    assert [odd_side(side, 32) for side in (3, 4, 31)] == [3, 5, 31]
    assert odd_side(32, 32) == 31


def test_bumps_match_the_paper():
    for side in (2, 4, 5, 8):
        pattern, upper = bumps(side), side // 2
        assert float(pattern.norm()) == pytest.approx(1)
        assert (pattern[:upper] > 0).all()
        assert (pattern[upper:] < 0).all()
        assert float(pattern[:upper].norm()) == pytest.approx(float(pattern[upper:].norm()))
    # side 4: two rows, the far ones with 1/4 + 1/9, then 1/9 at distance 2; the middle 1 + 1/4 + 1/9
    near, middle, far = 1 / 4 + 1 / 9, 1 + 1 / 4 + 1 / 9, 1 / 9
    row = torch.tensor([[far, near, near, near], [far, near, middle, near]], dtype=torch.float64)
    assert torch.allclose(bumps(4)[:2], row / row.norm() / 2**0.5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (9, 3)])
@pytest.mark.parametrize("norm", THREATS)
def test_images_of_any_shape_are_supported(norm, shape):
    x = NOISE.uniform(torch.zeros(6, 1, *shape))

    def model(x, noise):
        total = x.flatten(1).sum(1)
        return torch.stack([total, -total], 1)

    found = Square(30)(model, x, torch.zeros(6, dtype=torch.long), THREATS[norm], NOISE)
    assert THREATS[norm].allows(x, found).all()


def test_squares_shrink_during_the_search():
    sides = [Square(10_000).side(torch.zeros(1, 3, 32, 32), i, 1) for i in (0, 11, 51, 201, 9000)]
    assert sides == [29, 20, 14, 10, 1]


def test_unsupported_norm_is_refused():
    with pytest.raises(ValueError, match=r"Square .*linf and l2"):
        Square(1)(Linear(), X, Y, Threat("l0", 0.1), NOISE)
