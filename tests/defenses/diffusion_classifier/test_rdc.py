"""Tests of the robust diffusion classifier: likelihood maximization, then a diffusion classifier."""

import pytest
import torch
from torch.nn import functional as F

from unfool import spec as specs
from unfool.attacks import views
from unfool.attacks.pgd import PGD
from unfool.data import fetch
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.defenses.likelihood import LikelihoodMaximization
from unfool.defenses.purified_classifier import Purified
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.threat import Threat
from unfool.toy.blobs import Blobs, mixture

NOISE = Noise.of(0, range(3))


def rdc(**options) -> Purified:
    world = mixture(side=3)
    classifier = DiffusionClassifier(world, weight="edm", times="sigma", span=(0.1, 3), **options)
    return Purified(classifier, LikelihoodMaximization(world, steps=3))


def images(size=3):
    x, y = fetch(Blobs(size, side=3), range(size))
    return x.double(), y


def test_gradient_through_both_parts_matches_finite_differences():
    """Both parts use the same draws at each evaluation, so finite differences apply."""
    model, (x, y) = rdc(draws=6, batch_size=5), images()

    def loss(at):
        return F.cross_entropy(model(at, NOISE), y)

    x_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x_), x_)
    way = NOISE.child("way").normal(x)
    with torch.no_grad():
        slope = float((loss(x + 1e-6 * way) - loss(x - 1e-6 * way)) / 2e-6)
    assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-4)


def test_model_is_the_purifier_followed_by_the_classifier():
    model, (x, _) = rdc(draws=4), images()
    pure = model.purifier(x, NOISE.child("purify"))
    assert torch.equal(model(x, NOISE), model.classifier(pure, NOISE.child("classify")))


def test_elimination_views_apply_behind_the_purifier():
    x, _ = images()
    model = rdc(elimination="staged", samples=(2, 6), classes_per_stage=(2, 1))
    pure, inner = model.purifier(x, NOISE.child("purify")), NOISE.child("classify")
    for view, wanted in (
        (views.no_elimination, "without_elimination"),
        (views.first_stage, "stage"),
    ):
        seen = getattr(model.classifier, wanted)(*([1] if wanted == "stage" else []))
        assert torch.equal(view(model)(x, NOISE), seen(pure, inner))
    assert not torch.equal(
        views.first_stage(model)(x, NOISE), views.no_elimination(model)(x, NOISE)
    )
    plain = Purified(lambda x, noise: x.flatten(1), model.purifier)
    with pytest.raises(ValueError, match="classifier `diffusion`"):
        views.no_elimination(plain)


def test_model_can_be_built_from_a_spec_and_attacked():
    spec = specs.load(
        {
            "classifier": {"name": "diffusion", "denoiser": {"name": "mixture"}, "draws": 3},
            "denoiser": "mixture",
            "purifier": {"name": "likelihood", "steps": 2},
        }
    )
    model = build_model(check_model(spec), "cpu")
    x, y = fetch(Blobs(4), range(4))
    threat, noise = Threat("linf", 0.2), Noise.of(0, range(4))
    made = PGD(steps=4, loss="margin")(model, x, y, threat, noise)
    assert float((made - x).abs().max()) <= 0.2 + 1e-6

    def margin(at):
        logits = model(at, noise.child("held out"))
        return (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).mean()

    assert margin(made) < margin(x)
