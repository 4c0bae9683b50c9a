"""The exact denoiser of a finite set, compared with explicit sums and with Bayes' rule."""

from typing import Any

import pytest
import torch

from unfool import spec as specs
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import VP
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.toy.blobs import Blobs
from unfool.toy.empirical_denoiser import Empirical, empirical

LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
POINTS = Noise.of(7, range(6)).normal(torch.empty(6, 1, 2, 2, dtype=torch.float64)) * 0.5
X_T = Noise.of(8, range(4)).normal(torch.empty(4, 1, 2, 2, dtype=torch.float64))


def summed(x, t, spread, label):
    """E[x_0 | x_t] and unnormalized p(x_t) of one image, summed point by point."""
    _, alpha, sigma, _ = VP()(t)
    variance = (alpha * spread) ** 2 + sigma**2
    mine = [p for p, c in zip(POINTS, LABELS, strict=True) if label is None or c == label]
    total, weights = torch.zeros_like(x), torch.tensor(0.0).double()
    for point in mine:
        gap = x - alpha * point
        weight = torch.exp(-gap.square().sum() / (2 * variance)) / len(mine)
        total = total + weight * (point + alpha * spread**2 / variance * gap)
        weights = weights + weight
    return total / weights, weights


@pytest.mark.parametrize("spread", [0.0, 0.4])
@pytest.mark.parametrize("time", [0.05, 0.5, 1.0])
def test_denoiser_is_the_posterior_mean(spread, time):
    model, t = Empirical(POINTS, LABELS, spread), torch.tensor(time).double()
    for label in (None, 2, 0):
        told = None if label is None else torch.full((4,), label)
        wanted = torch.stack([summed(x, t, spread, label)[0] for x in X_T])
        torch.testing.assert_close(model(X_T, t, told), wanted)
        torch.testing.assert_close(model(X_T, t.expand(4, 1, 1, 1), told), wanted)
    each = torch.stack([torch.stack([summed(x, t, spread, c)[1] for c in range(3)]) for x in X_T])
    found = model.evidence(X_T, t)
    torch.testing.assert_close(found.softmax(1), each / each.sum(1, keepdim=True))


def test_null_class_has_all_points():
    model, t = Empirical(POINTS, LABELS, 0.4), torch.tensor(0.5).double()
    torch.testing.assert_close(model(X_T, t, torch.full((4,), 3)), model(X_T, t))


def test_one_point_per_class_equals_a_mixture():
    model, mixture = Empirical(POINTS, torch.arange(6), 0.3), Mixture(POINTS, 0.3)
    for label in (None, torch.tensor([5, 0, 2, 2])):
        for time in (0.0, 0.4):
            t = torch.tensor(time).double()
            torch.testing.assert_close(model(X_T, t, label), mixture(X_T, t, label))


def test_nearest_point_is_returned_without_noise():
    model = Empirical(POINTS.float(), LABELS)
    near = POINTS.float() + 0.01
    torch.testing.assert_close(model(near, torch.tensor(0.0)), POINTS.float())


def test_gradient_matches_finite_differences():
    model, t = Empirical(POINTS, LABELS, 0.1), torch.tensor(0.3).double()
    assert torch.autograd.gradcheck(
        lambda x: model(x, t, torch.tensor([0, 1, 0, 2])), X_T.clone().requires_grad_()
    )


def agreement(model, truth, z):
    """The share of images on which the diffusion classifier agrees with Bayes' rule."""
    answer = model((z + 1) / 2, Noise.of(1, range(len(z)))).argmax(1)
    return float((answer == truth.argmax(1)).double().mean())


def test_diffusion_classifier_is_bayes_rule_over_a_gaussian_mixture():
    """Bayes' rule itself gets some of the 250 points of 5 classes wrong."""
    means = 0.5 * Noise.of(5, range(5)).normal(torch.empty(5, 1, 2, 2))
    y = torch.arange(250) % 5
    z = means[y] + 0.22 * Noise.of(6, range(250)).normal(torch.empty(250, 1, 2, 2))
    truth = -(z[:, None] - means).square().flatten(2).sum(2)
    assert 0.9 < float((truth.argmax(1) == y).double().mean()) < 1
    model = DiffusionClassifier(
        Mixture(means, 0.22), draws=120, weight="elbo", span=(0.05, 0.6), batch_size=10**5
    )
    assert agreement(model, truth, z) > 0.98


def test_diffusion_classifier_is_bayes_rule_over_a_finite_set():
    """Bayes' rule itself gets some of the 250 points around 6 centers, in 3 classes, wrong."""
    model = Empirical(POINTS.float(), LABELS, 0.2)
    which = torch.arange(250) % 6
    z = POINTS.float()[which] + 0.2 * Noise.of(9, range(250)).normal(torch.empty(250, 1, 2, 2))
    truth = model.evidence(z, torch.tensor(0.0))
    assert 0.9 < float((truth.argmax(1) == LABELS[which]).double().mean()) < 1
    found = DiffusionClassifier(model, draws=120, weight="elbo", span=(0.05, 0.6), batch_size=10**5)
    assert agreement(found, truth, z) > 0.98


def test_spec_builds_a_denoiser_from_a_data_set():
    part = {"name": "empirical", "data": {"name": "digits", "split": "train"}, "spread": 0.1}
    denoiser = specs.build("denoiser", specs.check("denoiser", part))
    assert denoiser.points.shape == (1297, 1, 8, 8)
    assert denoiser.spread == 0.2, "[-1, 1]"
    model = DiffusionClassifier(denoiser, draws=10, span=(0.1, 0.5))
    x, y = fetch(digits("test"), range(20))
    assert (model(x, Noise.of(0, range(20))).argmax(1) == y).double().mean() >= 0.9


def test_invalid_arguments_are_refused():
    data = Blobs(8)
    assert empirical(data, images=5).points.shape == (5, 1, 4, 4)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": 9}, "images must be from 1 to 8, not 9"),
        ({"spread": -1}, "spread must be 0 or more"),
    ]
    for options, said in cases:
        with pytest.raises(ValueError, match=said):
            empirical(data, **options)
    with pytest.raises(ValueError, match=r"every class needs at least one image, .* \[1\]"):
        Empirical(POINTS[:2], torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="6 images and 2 labels"):
        Empirical(POINTS, LABELS[:2])
    with pytest.raises(SpecError, match="the option 'data' is missing"):
        specs.check("denoiser", "empirical")
