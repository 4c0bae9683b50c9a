"""Closed forms of the toy models hold by sampling, by hand, and against random images."""

import pytest
import torch
from scipy import stats

from unfool.data import fetch
from unfool.defenses.purified_classifier import predict_draws
from unfool.noise import Noise
from unfool.threat import Threat
from unfool.toy import linear_models

SIZE = 24
X, Y = fetch(linear_models.Points(SIZE), range(SIZE))
NOISE = Noise.of(0, range(SIZE))
THREATS = [Threat("linf", 0.05), Threat("l2", 0.3)]


def test_points_lie_at_their_stated_distances():
    assert torch.allclose(
        linear_models.signed_distances(X, Y), torch.linspace(0.02, 0.5, SIZE), atol=1e-5
    )
    assert Y.tolist() == [0, 1] * (SIZE // 2)
    assert fetch(linear_models.Points(4, one_class=True), range(4))[1].tolist() == [0] * 4
    assert ((X > 0.15) & (X < 0.85)).all()


def test_random_guess_depends_only_on_its_noise():
    chosen = predict_draws(linear_models.RandomGuess(0.7), X, NOISE, 400)
    assert torch.equal(chosen, predict_draws(linear_models.RandomGuess(0.7), 1 - X, NOISE, 400))
    share = float((chosen == 0).double().mean())
    assert stats.binomtest(round(share * chosen.numel()), chosen.numel(), 0.7).pvalue > 0.01
    for p, share in ((0.0, 0), (1.0, 1)):
        assert (
            predict_draws(linear_models.RandomGuess(p), X, NOISE, 8) == 0
        ).double().mean() == share


def test_accuracy_of_a_noisy_plane_matches_random_draws():
    right = (
        (predict_draws(linear_models.noisy_plane(), X, NOISE, 500) == Y[:, None]).double().mean(1)
    )
    truth = linear_models.accuracy(X, Y)
    assert ((right - truth).abs() < 4.5 * (truth * (1 - truth) / 500).sqrt() + 1e-9).all()
    assert truth[0] < 0.55
    assert truth[-1] > 0.99


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_no_allowed_image_is_worse_than_the_worst_case(threat):
    worst = linear_models.worst_case(X, Y, threat)
    assert threat.allows(X, worst).all()
    least = linear_models.signed_distances(worst, Y)
    fall = threat.eps * (linear_models.normal_vector().abs().sum() if threat.norm == "linf" else 1)
    assert torch.allclose(least, linear_models.signed_distances(X, Y) - fall, atol=1e-5)
    for i in range(50):
        assert (
            linear_models.signed_distances(threat.random_at_full_budget(X, NOISE.child(i)), Y)
            > least
        ).all()


def test_no_allowed_image_is_worse_than_the_rounded_worst_case():
    threat, model = THREATS[0], linear_models.rounded_plane()
    least = linear_models.worst_case_rounded(X, Y, threat.eps)
    assert (linear_models.worst_case_rounded(X, Y, 0.0) > least).all()
    reached = model.purifier(linear_models.worst_case(X, Y, threat), NOISE)
    assert torch.allclose(linear_models.signed_distances(reached, Y), least)
    for i in range(50):
        tried = model.purifier(threat.random_at_full_budget(X, NOISE.child(i)), NOISE)
        assert (linear_models.signed_distances(tried, Y) > least).all()


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_distances_of_planes_are_to_the_nearest_other_class(threat):
    model = linear_models.MultiPlaneClassifier(4)
    x = 0.35 + 0.3 * NOISE.child("x").uniform(X)
    far, logits = model.distances(x, threat.norm), model(x, NOISE)
    own = logits.argmax(1)
    nearest = torch.full_like(far, torch.inf)
    for other in range(4):  # step along the steepest direction, by hand
        way = Threat(threat.norm, 1).steepest(model.weights[other] - model.weights[own])
        gain = ((model.weights[other] - model.weights[own]) * way).flatten(1).sum(1)
        gap = logits.gather(1, own[:, None])[:, 0] - logits[:, other]
        reach = torch.where(own == other, torch.inf, gap / gain)
        over = model(x + 1.001 * reach.nan_to_num(posinf=0)[:, None, None, None] * way, NOISE)
        passed = over[:, other] > over.gather(1, own[:, None])[:, 0]
        assert (passed | (own == other)).all()
        nearest = nearest.minimum(reach)
    assert torch.allclose(far, nearest, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: linear_models.RandomGuess(1.5), "p must be a probability"),
        (lambda: linear_models.AddGaussianNoise(0.0), "sigma must be above 0"),
        (lambda: linear_models.Quantize(0), "levels must be 1 or more"),
        (lambda: linear_models.MultiPlaneClassifier(1), "classes must be 2 or more"),
        (lambda: linear_models.Points(1), "size must be 2 or more"),
    ],
)
def test_invalid_arguments_are_refused(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()
