"""APGD on models whose best attack is known."""

import pytest
import torch
from analytic import NOISE, THREATS, Bent, Blurred, Linear, X, Y, accuracy, many, progress, worst

from unfool.attacks.apgd import APGD, checkpoints
from unfool.attacks.losses import LOSSES
from unfool.threat import Threat


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targets", [0, 1])
def test_optimum_of_a_linear_model_is_reached(norm, loss, targets: int):
    threat = THREATS[norm]
    attack = APGD(25, loss=loss, targets=targets)
    found = attack(Linear(classes=4), X, Y, threat, NOISE)
    assert threat.allows(X, found).all()
    assert (progress(found, threat) > 0.99).all()


def test_checkpoints_match_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert checkpoints(5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("norm", THREATS)
def test_step_size_shrinks_toward_an_interior_peak(norm):
    """The loss has a single peak halfway to the edge, which steps of a fixed length overshoot."""
    threat = THREATS[norm]
    peak = (X + worst(threat, X, Y)) / 2

    def model(x, noise):
        aim = peak.repeat_interleave(len(x) // len(peak), 0)  # once per draw
        near = -(x - aim).square().flatten(1).sum(1)
        return torch.stack([-near, near], 1)

    found = APGD(100, loss="margin")(model, X, torch.zeros_like(Y), threat, NOISE)
    assert (threat.size(found - peak) < 0.02 * threat.eps).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_optimum_of_a_noisy_linear_model_is_reached(loss):
    threat = Threat("l2", 0.15)
    x, y, noise = many(24)
    found = APGD(16, 4, loss)(Blurred(), x, y, threat, noise.child("search"))
    best = accuracy(worst(threat, x, y), y)
    assert accuracy(x, y) - best > 0.2
    assert accuracy(found, y) < best + 0.01


@pytest.mark.parametrize("hold", [1, 4])
def test_noise_shared_by_all_candidates_changes_nothing(hold: int):
    """Candidates are compared on the same draws, so a lucky draw favors none of them."""
    threat, attack = THREATS["linf"], APGD(20, loss="margin", steps_per_draw=hold)
    still = attack(Bent(), X, Y, threat, NOISE)
    shaken = attack(Bent(luck=1.0), X, Y, threat, NOISE)
    assert torch.allclose(shaken, still, atol=1e-9)


def test_model_without_noise_is_queried_with_a_single_draw():
    threat, calls = THREATS["l2"], []

    def model(x, noise):
        calls.append((torch.is_grad_enabled(), len(x)))
        return Bent()(x, noise)

    found = []
    for attack in (APGD(12, steps_per_draw=13), APGD(12), APGD(12, eot=4, selection_draws=8)):
        calls.clear()
        found.append(attack(model, X, Y, threat, NOISE))
        assert calls.count((True, len(X))) == 13
        assert calls.count((False, len(X))) == 3  # candidates, but not the image: all broke
        assert calls.count((False, 2 * len(X))) == 1  # checks whether it draws noise
        assert len(calls) == 17
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_target_classes_are_tried_in_order():
    """Class 1 leads class 2 and attracts the margin, but only class 2 can ever pass class 0."""

    def model(x, noise):
        up = (x - X[:1]).flatten(1).sum(1)
        return torch.stack([0 * up, -0.5 - 0.2 * up, -2 + 1.2 * up], 1)

    x, y, threat = X[:1], torch.zeros(1, dtype=torch.long), Threat("linf", 0.04)  # up to 1.92
    noise = NOISE.take([0])
    for targets, reached in ((1, 0), (2, 2)):
        found = APGD(20, loss="margin", targets=targets)(model, x, y, threat, noise)
        assert int(model(found, noise).argmax(1)) == reached


def test_too_few_classes_are_refused():
    for attack, classes in ((APGD(1, loss="dlr"), 3), (APGD(1, loss="dlr", targets=1), 4)):
        with pytest.raises(ValueError, match=f"{classes} classes, and the model has 2"):
            attack(Linear(), X, Y, THREATS["linf"], NOISE)
