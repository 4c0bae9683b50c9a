"""Tests of chains with fewer steps, on matched or independent noise, against the full chain."""

import pytest
import torch
from torch.nn import functional as F

from unfool.attacks.losses import query_model
from unfool.attacks.views import Batched, surrogate, surrogate_same_noise
from unfool.defenses.aggregate import Aggregated
from unfool.defenses.coup import COUP
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.distribution_transfer import DistributionTransfer
from unfool.defenses.gdmp import GDMP
from unfool.defenses.gradual import Gradual
from unfool.defenses.langevin import Langevin
from unfool.defenses.purified_classifier import Purified
from unfool.defenses.resized import Resized
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.matched_noise import coarse_times
from unfool.noise import Noise
from unfool.toy.blobs import Blobs, bayes, mixture

SIZE = 8
X = torch.stack([Blobs(SIZE)[i][0] for i in range(SIZE)]).double()
NOISE = Noise.of(0, range(SIZE))
PURIFIERS = {
    "sde": lambda n: DiffPure(mixture(), t=0.1, steps=n),
    "ddpm": lambda n: DiffPure(mixture(), t=0.1, steps=n, sampler="ddpm"),
    "large": lambda n: DiffPure(mixture(), t=0.1, steps=n, sampler="ddpm", variance="large"),
    "ddim": lambda n: DiffPure(mixture(), t=0.1, steps=n, sampler="ddim", eta=0.5),
    "coup": lambda n: COUP(mixture(), bayes().double(), t=0.1, steps=n),
    "transfer": lambda n: DistributionTransfer(
        mixture(), bayes().double(), t=0.1, steps=n, sampler="sde"
    ),
    "gdmp": lambda n: GDMP(mixture(), t=0.1, steps=n, passes=2, scale=100.0),
    "langevin": lambda n: Langevin(mixture(), steps=n),
    "resized": lambda n: Resized(DiffPure(mixture(side=8), t=0.1, steps=n)),
}


def distance(one, other):
    return (one - other).flatten(1).norm(dim=1)


def gradient(purifier, noise=NOISE):
    weigh = NOISE.child("weigh").normal(X)
    x = X.clone().requires_grad_()
    quarters = (weigh * purifier(x, noise)).view(SIZE, 4, -1).sum(2)
    return torch.autograd.grad((8 * quarters).logsumexp(1).sum(), x)[0]


@pytest.mark.parametrize("name", PURIFIERS)
def test_matched_noise_output_approaches_the_full_chain_with_more_steps(name):
    fine = PURIFIERS[name](40)
    whole = fine(X, NOISE)
    errors = [distance(fine.with_fewer_steps(n)(X, NOISE), whole).mean() for n in (5, 10, 20, 40)]
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2] > 0
    assert errors[3] == 0


@pytest.mark.parametrize("name", PURIFIERS)
def test_matched_noise_is_closer_than_independent_noise_for_each_image(name):
    fine = PURIFIERS[name](40)
    whole = fine(X, NOISE)
    near = distance(fine.with_fewer_steps(10)(X, NOISE), whole)
    far = distance(fine.with_fewer_steps(10, matched=False)(X, NOISE), whole)
    assert (near < 0.6 * far).all()


CURVED = {
    "sde": lambda: DiffPure(mixture(), t=0.4, steps=80),
    "ddpm": lambda: DiffPure(mixture(), t=0.4, steps=40, sampler="ddpm"),
    "coup": lambda: COUP(mixture(), bayes().double(), t=0.4, steps=80, weight=0.1),
}


@pytest.mark.parametrize("name", CURVED)
def test_matched_noise_gradients_align_with_exact_gradients(name):
    fine = CURVED[name]()
    exact = gradient(fine).flatten(1)
    near = F.cosine_similarity(gradient(fine.with_fewer_steps(20)).flatten(1), exact)
    far = F.cosine_similarity(gradient(fine.with_fewer_steps(20, matched=False)).flatten(1), exact)
    assert near.median() > 0.97
    assert near.mean() > far.mean() + 0.03


@pytest.mark.parametrize("name", PURIFIERS)
def test_matched_noise_with_all_steps_equals_the_purifier_exactly(name):
    fine = PURIFIERS[name](10)
    same = fine.with_fewer_steps(10)
    assert torch.equal(same(X, NOISE), fine(X, NOISE))
    assert torch.equal(gradient(same), gradient(fine))
    assert not torch.equal(fine.with_fewer_steps(10, matched=False)(X, NOISE), fine(X, NOISE))


def test_with_fewer_steps_does_not_modify_the_purifier():
    fine = PURIFIERS["sde"](10)
    before, times = fine(X, NOISE), fine.times
    fine.with_fewer_steps(2)(X, NOISE)
    assert fine.times is times
    assert fine.steps == 10
    assert torch.equal(fine(X, NOISE), before)


@pytest.mark.parametrize("name", ["sde", "ddpm"])
def test_matched_and_independent_noise_have_the_same_distribution(name):
    """For one Gaussian of 40,000 pixels, matched noise is still standard normal."""
    model = Mixture(torch.full((1, 1, 200, 200), 0.2, dtype=torch.float64), 0.5)
    fine = DiffPure(model, t=0.3, steps=12, sampler=name)
    x, noise = torch.full((1, 1, 200, 200), 0.9).double(), Noise.of(3, [0])
    near, far = (fine.with_fewer_steps(4, matched)(x, noise) for matched in (True, False))
    assert float(near.mean()) == pytest.approx(float(far.mean()), abs=4 * 0.3 / 200 * 2**0.5)
    assert float(near.std()) == pytest.approx(float(far.std()), rel=4 / 200)
    correlation = torch.corrcoef(torch.stack([near.flatten(), far.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / 200  # they share no noise


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("name", ["sde", "coup", "gdmp", "langevin"])
def test_output_does_not_depend_on_the_batch(name, matched):
    purify = PURIFIERS[name](20).with_fewer_steps(5, matched)
    whole, order = purify(X, NOISE), [5, 0, 3]
    part = purify(X[order], NOISE.take(order))
    assert torch.allclose(part, whole[order], atol=1e-12)


@pytest.mark.parametrize("view", [surrogate_same_noise, surrogate])
def test_view_costs_one_call_per_step(view):
    purify = DiffPure(mixture(), t=0.1, steps=30)
    model = Purified(bayes(), purify)
    calls = []
    purify.denoiser.register_forward_hook(lambda *_: calls.append(1))
    for steps, expected in ((None, 5), (7, 7), (1, 1)):
        calls.clear()
        view(model, steps)(X.float(), NOISE)
        assert len(calls) == expected


def test_view_keeps_classifier_noise_paths_and_batch_size():
    plain = Purified(bayes().double(), DiffPure(mixture(), t=0.1, steps=6))
    model = Aggregated(plain, paths=3, by="logits")
    assert torch.equal(surrogate_same_noise(model, 6)(X, NOISE), model(X, NOISE))
    seen = surrogate_same_noise(Batched(plain, 3), 2)
    assert getattr(seen, "batch_size", None) == 3
    y = torch.arange(SIZE) % 2
    one = query_model(seen, X, y, "ce", NOISE, 0, 2).gradient
    assert torch.allclose(
        one, query_model(surrogate_same_noise(plain, 2), X, y, "ce", NOISE, 0, 2).gradient
    )


def test_attacker_who_knows_the_noise_comes_close_with_few_steps():
    model = Purified(lambda x, noise: x.flatten(1), DiffPure(mixture(), t=0.1, steps=40))
    secret = Noise.of(9, range(SIZE))
    told = NOISE.with_known_noise(secret, ["forward", "reverse"]).for_query(0)
    whole = model(X, secret)
    assert torch.allclose(model(X, told), whole, atol=1e-12)
    near = (surrogate_same_noise(model, 10)(X, told) - whole).norm(dim=1)
    far = (surrogate(model, 10)(X, told) - whole).norm(dim=1)
    assert (near < 0.4 * far).all()


def test_coarse_times_are_evenly_spaced():
    assert coarse_times(10, 4) == [0, 2, 5, 8, 10]
    assert coarse_times(100, None) == list(range(0, 101, 10))
    assert coarse_times(20, None) == [0, 4, 8, 12, 16, 20]
    assert coarse_times(3, None) == [0, 1, 2, 3]


@pytest.mark.parametrize("steps", [0, 11])
def test_too_many_or_zero_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"from 1 to 10, .*not {steps}"):
        PURIFIERS["sde"](10).with_fewer_steps(steps)


def test_unsupported_models_and_step_counts_are_refused():
    with pytest.raises(ValueError, match=r"5 steps .* 2 does not"):
        Langevin(mixture(), steps=5).with_fewer_steps(2)
    with pytest.raises(ValueError, match="inside does not support fewer steps"):
        Resized(lambda x, noise: x, size=4).with_fewer_steps()
    with pytest.raises(ValueError, match="`bpda` or `exact`"):
        surrogate_same_noise(Purified(bayes(), Gradual(mixture())))
    with pytest.raises(ValueError, match="not a classifier behind a purifier"):
        surrogate(bayes())
