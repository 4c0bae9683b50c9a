"""Views: the models that an attacker may use in place of the defended one."""

import pytest
import torch
from torch import nn

from unfool.attacks import views
from unfool.attacks.losses import query_model
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched, bpda, classifier_only, exact, straight_through
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch
from unfool.threat import Threat
from unfool.toy.blobs import Blobs, bayes, mixture

NOISE = Noise.of(0, range(4))
X = torch.stack([Blobs(4)[i][0] for i in range(4)]).double()
Y = torch.tensor([0, 1, 0, 1])


class Curved(nn.Module):
    """A nonlinear classifier that draws noise of its own."""

    def __init__(self):
        super().__init__()
        seed_torch(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
        self.double()

    def forward(self, x, noise):
        return self.layers(x + 0.1 * noise.child("blur").normal(x))


def defended() -> Purified:
    return Purified(Curved(), DiffPure(mixture(), t=0.2, steps=5))


def gradient(model, x, noise=NOISE):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x, noise)[:, 0].sum(), x)[0]


def test_exact_view_is_the_model():
    model = defended()
    assert exact(model) is model


def test_bpda_gradient_is_the_classifiers_at_the_purified_image():
    model = defended()
    pure = model.purifier(X, NOISE.child("purify")).detach()
    at_pure = gradient(model.classifier, pure, NOISE.child("classify"))
    mine = gradient(bpda(model), X)
    assert torch.allclose(mine, at_pure, rtol=1e-9, atol=1e-12)
    # it is neither the model's own gradient nor the classifier's at the image
    assert not torch.allclose(mine, gradient(model, X), rtol=0.05)
    assert not torch.allclose(
        mine, gradient(model.classifier, X, NOISE.child("classify")), rtol=0.05
    )


def test_bpda_has_the_logits_of_the_model():
    model = defended()
    assert torch.allclose(bpda(model)(X, NOISE), model(X, NOISE), atol=1e-12)


def test_bpda_does_not_differentiate_the_purifier():
    calls = []

    def purifier(x, noise):
        calls.append(torch.is_grad_enabled())
        return (x * 8).round() / 8  # no gradient at all

    model = Purified(Curved(), purifier)
    assert (gradient(model, X) == 0).all()
    assert (gradient(bpda(model), X).flatten(1).norm(dim=1) > 0).all()
    assert calls == [True, False]


def test_straight_through_passes_gradients_unchanged():
    purify = straight_through(lambda x, noise: x.square() + noise.normal(x))
    x = X.clone().requires_grad_()
    out = purify(x, NOISE)
    assert torch.allclose(out, X.square() + NOISE.normal(X), atol=1e-14)
    weigh = NOISE.child("weigh").normal(X)
    (found,) = torch.autograd.grad((weigh * out).sum(), x)
    assert torch.equal(found, weigh)


def test_classifier_only_ignores_the_purifier():
    def purifier(x, noise):
        raise AssertionError("the attacker does not know of the purifier")

    model = Purified(Curved(), purifier)
    assert torch.equal(classifier_only(model)(X, NOISE), model.classifier(X, NOISE))
    assert torch.equal(gradient(classifier_only(model), X), gradient(model.classifier, X))


@pytest.mark.parametrize("view", [bpda, classifier_only])
def test_model_without_a_purifier_is_refused(view):
    for model in (bayes(), Batched(bayes(), 3), lambda x, noise: x):
        with pytest.raises(ValueError, match=r"purifier.* `exact"):
            view(model)


@pytest.mark.parametrize("view", [bpda, classifier_only])
def test_view_keeps_the_batch_size_of_the_model(view):
    sizes = []

    def purifier(x, noise):
        sizes.append(len(x))
        return x

    classifier = Curved()
    whole = Purified(classifier, purifier)
    classifier.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    seen = view(Batched(whole, 3))
    assert seen.batch_size == 3
    limited = query_model(seen, X, Y, "ce", NOISE, 0, 2)
    assert max(sizes) == 3
    at_once = query_model(view(whole), X, Y, "ce", NOISE, 0, 2)
    assert max(sizes) == 8
    assert torch.allclose(limited.gradient, at_once.gradient, atol=1e-13)


def test_batched_model_equals_the_model():
    model = defended()
    assert torch.allclose(Batched(model, 2)(X, NOISE), model(X, NOISE), atol=1e-12)


def test_decide_refuses_nan_logits():
    def model(x, noise):
        level = torch.where(x[:, 0, 0, 0] > 0.9, torch.nan, 0.0)
        return torch.stack([level, 1 + level], 1)

    x = X.clamp(0, 0.9)
    assert Batched(model, 2).decide(x, NOISE).tolist() == [1] * 4
    x[2] = 1
    with pytest.raises(RuntimeError, match="not finite on 1 of 4 images"):
        Batched(model, 2).decide(x, NOISE)


def test_bpda_works_on_any_defense_with_parts():
    """The defense of a user, which is not a `Purified`, is supported."""

    class Mine:
        def __init__(self, purifier):
            self.classifier, self.purifier = Curved(), purifier

        def __call__(self, x, noise):
            return self.classifier(self.purifier(x, noise), noise)

        def with_purifier(self, purifier):
            other = Mine(purifier)
            other.classifier = self.classifier
            return other

    model = Mine(lambda x, noise: x.square())
    mine = gradient(bpda(model), X)
    assert torch.allclose(mine, gradient(model.classifier, X.square()), atol=1e-13)


def test_bfloat16_view_approximates_the_model(monkeypatch):
    """It serves the search alone, and is refused where bfloat16 is slower."""
    seed_torch(0, "rough")
    model = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    x = Noise.of(1, range(4)).uniform(torch.empty(4, 3, 2, 2))
    monkeypatch.setattr(views, "bfloat16_costs", lambda device: 2.0)
    with pytest.raises(ValueError, match="slower here"):
        views.bfloat16(model)
    monkeypatch.setattr(views, "bfloat16_costs", lambda device: 0.5)
    y, threat, noise = torch.arange(4) % 3, Threat("linf", 0.1), Noise.of(0, range(4))
    rough, fine = views.bfloat16(Batched(model, 3)), model(x, noise)
    assert getattr(rough, "batch_size", None) == 3
    said = rough(x, noise).detach()
    assert said.dtype == torch.float32
    assert 0 < float((said - fine.detach()).abs().max()) < 0.05
    x_adv = PGD(steps=3)(rough, x, y, threat, noise)
    assert bool(threat.allows(x, x_adv).all())
    before, after = (query_model(model, at, y, "margin", noise, 0, 1).loss for at in (x, x_adv))
    assert bool((after > before).all())
