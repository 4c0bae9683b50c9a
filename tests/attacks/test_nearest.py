"""Attacks that search for the nearest adversarial image, on models where it is known."""

import pytest
import torch
from analytic import NOISE, THREATS, Blurred, Linear, X, Y, accuracy, lead, progress, worst

from unfool.attacks.carlini_wagner import CarliniWagner
from unfool.attacks.deepfool import DeepFool
from unfool.noise import Noise
from unfool.threat import Threat
from unfool.toy.linear_models import SHAPE, MultiPlaneClassifier

WAGNER = CarliniWagner(60, searches=7, learning_rate=0.005, targets=4)
CASES = [("linf", DeepFool(20, targets=4)), ("l2", DeepFool(20, targets=4)), ("l2", WAGNER)]


@pytest.mark.parametrize(("norm", "attack"), CASES)
def test_nearest_image_of_another_class_is_found(norm, attack):
    model, noise, threat = MultiPlaneClassifier(), Noise.of(0, range(12)), Threat(norm, 0.1)
    x = 0.35 + 0.3 * noise.child("x").uniform(torch.zeros(12, *SHAPE))
    y = model(x, noise).argmax(1)
    found = attack.nearest(model, x, y, threat, noise)
    assert (model(found, noise).argmax(1) != y).all()
    times = threat.size(found - x) / model.distances(x, norm)
    assert float(times.min()) > 1 - 1e-4
    assert float(times.max()) < 1.05
    broken = model(attack(model, x, y, threat, noise), noise).argmax(1) != y
    reach = model.distances(x, norm)
    sure = (reach / threat.eps - 1).abs() > 0.05
    assert torch.equal(broken[sure], (reach < threat.eps)[sure])


@pytest.mark.parametrize(("norm", "attack"), [("linf", DeepFool(20, 20)), ("l2", DeepFool(20, 20))])
def test_deepfool_uses_the_whole_budget_on_a_random_model(norm, attack):
    threat = THREATS[norm]
    found = attack(Blurred(), X, Y, threat, NOISE)
    assert accuracy(found, Y) == pytest.approx(accuracy(worst(threat, X, Y), Y), abs=0.01)
    assert (progress(found, threat) > 0.95).all()


def test_carlini_wagner_uses_most_of_the_budget_on_a_random_model():
    found = CarliniWagner(40, 6, eot=20, learning_rate=0.03)(Blurred(), X, Y, THREATS["l2"], NOISE)
    assert (progress(found, THREATS["l2"]) > 0.8).all()
    assert progress(found, THREATS["l2"]).mean() > 0.9


@pytest.mark.parametrize("attack", [DeepFool(5), CarliniWagner(3, 2)])
def test_misclassified_image_is_returned_unchanged(attack):
    wrong = 1 - Y
    assert (lead(X, wrong) < 0).all()
    assert torch.allclose(attack.nearest(Linear(), X, wrong, THREATS["l2"], NOISE), X, atol=1e-6)


def test_carlini_wagner_attacks_images_that_rounding_puts_above_one():
    x, attack = X.clone(), CarliniWagner(20, 3, learning_rate=0.03)
    x[:, 0, 0, 0] = 1 + 5e-6
    found, of_one = (attack(Linear(), at, Y, THREATS["l2"], NOISE) for at in (x, x.clamp(max=1)))
    assert torch.allclose(found, of_one, atol=1e-4)


def test_carlini_wagner_keeps_its_confidence_as_a_margin():
    found = CarliniWagner(100, 5, confidence=0.5, learning_rate=0.03).nearest(
        Linear(), X, Y, THREATS["l2"], NOISE
    )
    assert ((-2 * lead(found, Y) >= 0.5) & (-2 * lead(found, Y) < 0.6)).all()
