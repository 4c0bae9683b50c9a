"""Tests of losses at every step: gradients as by plain autograd, and unchanged outputs."""

import pytest
import torch

from unfool.attacks.views import Batched, per_step
from unfool.defenses.coup import COUP
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.gdmp import GDMP
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.gradient import keep_graphs
from unfool.noise import Noise
from unfool.toy.blobs import Blobs, bayes, mixture

NOISE = Noise.of(0, range(4))
X = torch.stack([Blobs(4)[i][0] for i in range(4)]).double()
WEIGHT = 30.0


def slope(model, x=X):
    x = x.clone().requires_grad_()
    logits = model(x, NOISE)
    return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]


def by_hand(purifier, classifier, x=X):
    """Return the gradient of the logit plus the distances of all states, by plain autograd."""
    denoiser, x = purifier.denoiser, x.clone().requires_grad_()
    own, z = NOISE.child("purify"), denoiser.encode(x)
    start = denoiser.perturb(z, purifier.times[0], own.child("forward"))
    eps = own.child("forward").normal(z)
    states = list(purifier.walk(x, own))
    assert torch.allclose(denoiser.encode(states[0][1]), start)
    far = torch.zeros(len(x), dtype=x.dtype)
    for (_, pixels), t in zip(states[1:], purifier.times[1:], strict=True):
        at = denoiser.schedule(t)
        gap = denoiser.encode(pixels) - (at.alpha * z + at.sigma * eps)
        far = far + gap.square().flatten(1).mean(1) / (len(states) - 1)
    logits = classifier(states[-1][1], NOISE.child("classify"))
    total = (logits[:, 0] + WEIGHT * far).sum()
    return torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize("sampler", ["sde", "ddpm", "ddim", "heun"])
@pytest.mark.parametrize("kept", [0, 2, 99])
def test_gradient_is_that_of_the_loss_plus_the_distances(sampler, kept):
    purifier, classifier = DiffPure(mixture(), t=0.2, steps=5, sampler=sampler), bayes().double()
    model = Purified(classifier, purifier)
    plain, without = slope(model)
    with keep_graphs(kept):
        logits, found = slope(per_step(model, WEIGHT))
    assert torch.equal(logits, plain)
    assert torch.allclose(found, by_hand(purifier, classifier), rtol=1e-8, atol=1e-12)
    assert not torch.allclose(found, without, rtol=0.01)


def test_per_step_loss_needs_no_extra_calls():
    purify = DiffPure(mixture(), t=0.2, steps=5)
    model = Purified(bayes().double(), purify)
    calls = []
    purify.denoiser.register_forward_hook(lambda *_: calls.append(1))
    with keep_graphs(0):
        slope(model)
        before = len(calls)
        slope(per_step(model))
    assert len(calls) == 2 * before


def test_per_step_gradient_of_gdmp_does_not_depend_on_batch_size():
    model = Purified(bayes().double(), GDMP(mixture(), t=0.2, steps=5, passes=2))
    whole = slope(per_step(model, WEIGHT))[1]
    assert torch.allclose(slope(per_step(Batched(model, 3), WEIGHT))[1], whole, atol=1e-12)
    assert not torch.allclose(whole, slope(model)[1], rtol=0.01)


def test_unsupported_models_are_refused():
    with pytest.raises(ValueError, match="not a classifier behind a purifier"):
        per_step(bayes().double())
    model = Purified(bayes().double(), COUP(mixture(), bayes().double(), t=0.2, steps=3))
    with pytest.raises(ValueError, match="`per-step` needs a purifier"):
        slope(per_step(model))
    with torch.no_grad():
        assert torch.equal(per_step(model)(X, NOISE), model(X, NOISE))
