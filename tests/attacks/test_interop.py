"""Models of unfool in other libraries, and attacks of other libraries in unfool."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from analytic import NOISE, SIZE, Blurred, Linear, Shaken, X, Y
from torch.nn import functional as F

from unfool import NormalizedClassifier, as_module
from unfool.attacks.interop import ExternalAttack
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.noise import Noise
from unfool.threat import Knowledge, Threat

EPS, STEPS, STRIDE = 0.1, 10, 0.03
LINF, L2 = Threat("linf", EPS), Threat("l2", EPS)


class Bent(torch.nn.Module):
    """A smooth, nonlinear network of three classes without noise."""

    def __init__(self):
        super().__init__()
        weight = Noise.of(3, range(3)).normal(torch.zeros(3, X[0].numel(), dtype=torch.float64))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x, noise):
        return torch.tanh((4 * x).sin().flatten(1) @ self.weight.T / 4)


def ours(threat):
    pgd = PGD(steps=STEPS, step_size=STRIDE / EPS, start="zero")
    *_, (last, _) = pgd.path(Bent(), X, Y, threat, NOISE)
    return last


def test_fresh_noise_is_new_in_every_call():
    f = as_module(Shaken())
    assert not torch.equal(f(X), f(X))


def test_seeded_output_does_not_depend_on_the_position_in_the_batch():
    f = as_module(Blurred(), noise=3)
    whole = f(X)
    assert torch.equal(f(X), whole)
    assert torch.equal(f(X[[4, 1]]), whole[[4, 1]])
    assert torch.equal(f(X.flip(0)), whole.flip(0))
    assert not torch.equal(as_module(Blurred(), noise=4)(X), whole)


def test_noise_object_requires_the_whole_batch():
    f = as_module(Blurred(), noise=NOISE)
    assert torch.equal(f(X), Blurred()(X, NOISE))
    with pytest.raises(ValueError, match="all of them in order"):
        f(X[:2])


def test_votes_return_the_mean_probability_over_draws():
    found = as_module(Shaken(), noise=NOISE, votes=7)(X)
    copies = Shaken()(X.repeat_interleave(7, 0), NOISE.repeat(7)).softmax(1)
    mean = copies.view(SIZE, 7, -1).mean(1)
    assert torch.allclose(found.exp(), mean)
    assert torch.allclose(found.exp().sum(1), torch.ones(SIZE, dtype=X.dtype))


def test_gradients_equal_those_of_the_model():
    x = X.clone().requires_grad_()
    (through,) = torch.autograd.grad(as_module(Shaken(), noise=NOISE)(x)[:, 0].sum(), x)
    (direct,) = torch.autograd.grad(Shaken()(x, NOISE)[:, 0].sum(), x)
    assert torch.equal(through, direct)
    assert through.abs().max() > 0


def test_module_exposes_parameters_and_stays_in_eval_mode():
    model = Bent().eval()
    for f in (as_module(model), as_module(Batched(model, 2))):
        assert [p is model.weight for p in f.parameters()] == [True]
        assert not f.training
    assert not model.training


@pytest.mark.parametrize(
    ("noise", "votes"), [("frsh", 1), (None, 1), (True, 1), (1.0, 1), ("fresh", 0)]
)
def test_invalid_options_are_refused(noise, votes):
    with pytest.raises(ValueError, match=r"noise must|votes must"):
        as_module(Bent(), noise, votes)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_pgd_matches_torchattacks(threat):
    theirs = pytest.importorskip("torchattacks", exc_type=ImportError)
    f, options = as_module(Bent()), {"eps": EPS, "alpha": STRIDE, "steps": STEPS}
    attack = theirs.PGD if threat.norm == "linf" else theirs.PGDL2
    x_adv = attack(f, **options, random_start=False)(X, Y)
    assert torch.allclose(x_adv, ours(threat), atol=1e-7)
    assert (x_adv - X).abs().max() > EPS / 4


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_pgd_matches_foolbox(threat):
    theirs = pytest.importorskip("foolbox", exc_type=ImportError)
    f = theirs.PyTorchModel(as_module(Bent()), bounds=(0, 1), device="cpu")
    attack = theirs.attacks.LinfPGD if threat.norm == "linf" else theirs.attacks.L2PGD
    pgd = attack(abs_stepsize=STRIDE, steps=STEPS, random_start=False)
    x_adv = pgd.run(f, X, theirs.criteria.Misclassification(Y), epsilon=EPS)
    assert torch.allclose(x_adv, ours(threat), atol=1e-7)


def test_pgd_matches_art():
    theirs = pytest.importorskip("art.attacks.evasion", exc_type=ImportError)
    models = pytest.importorskip("art.estimators.classification", exc_type=ImportError)
    f = models.PyTorchClassifier(
        as_module(Bent().float()),
        torch.nn.CrossEntropyLoss(),
        tuple(X.shape[1:]),
        3,
        clip_values=(0, 1),
        device_type="cpu",
    )
    pgd = theirs.ProjectedGradientDescentPyTorch(
        f, norm=np.inf, eps=EPS, eps_step=STRIDE, max_iter=STEPS, num_random_init=0, verbose=False
    )
    x_adv = torch.from_numpy(pgd.generate(X.float().numpy(), Y.numpy()))
    assert (x_adv - ours(LINF)).abs().max() < 1e-5  # float32 precision


def test_external_attack_stays_within_the_threat_and_is_reproducible():
    theirs = pytest.importorskip("torchattacks", exc_type=ImportError)
    threat = Threat("linf", 0.1)
    attack = ExternalAttack(
        lambda model, x, y: theirs.PGD(model, eps=0.1, alpha=0.02, steps=3)(x, y)
    )
    x, model = X.float(), Batched(Blurred(), 4)
    found = attack(model, x, Y, threat, NOISE)
    assert bool(threat.allows(x, found).all())
    assert torch.equal(attack(model, x, Y, threat, NOISE), found)
    assert not torch.equal(attack(model, x, Y, threat, NOISE.child("other")), found)
    loss = (F.cross_entropy(Linear()(version, NOISE), Y) for version in (x, found))
    assert next(loss) < next(loss)


def test_external_attack_gets_fresh_noise_in_every_call():
    seen = []

    def look(model, x, y):
        seen.extend([model(x), model(x), model(x.repeat(2, 1, 1, 1)), model(x[:2])])
        return x

    same = X[:1].repeat(SIZE, 1, 1, 1)
    ExternalAttack(look)(Blurred(), same, Y, LINF, NOISE)
    logits = torch.cat(seen)[:, 0]
    assert len(logits.unique()) == len(logits) == 4 * SIZE + 2


def test_known_noise_is_the_defenses_own_and_requires_the_whole_batch():
    secret, found = Noise.of(5, range(SIZE)), []

    def look(model, x, y):
        found.append(model(x))
        return x

    told = Knowledge("both").reveal(NOISE, secret)
    ExternalAttack(look)(Blurred(), X, Y, LINF, told)
    assert torch.equal(found[0], Blurred()(X, secret))
    with pytest.raises(ValueError, match="all of them in order"):
        ExternalAttack(lambda model, x, y: model(x[:1]))(Blurred(), X, Y, LINF, told)


def test_global_random_generators_are_restored():
    def draw(model, x, y, noise):
        assert len(noise) == len(x)
        kept.append((float(torch.rand(1)), np.random.rand(), random.random()))  # noqa: NPY002, TID251
        return x

    kept: list[tuple[float, float, float]] = []

    def numpys() -> Any:
        return np.random.get_state()[1]  # noqa: NPY002  # pyright: ignore[reportArgumentType]

    states = torch.get_rng_state(), numpys().copy(), random.getstate()
    for noise in (NOISE, NOISE, NOISE.child("other")):
        ExternalAttack(draw)(Linear(), X, Y, LINF, noise)
    assert kept[0] == kept[1]
    assert all(not math.isclose(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(numpys(), states[1])
    assert random.getstate() == states[2]


def test_training_mode_is_refused_and_cannot_be_switched_on():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
    model = NormalizedClassifier(network)
    with pytest.raises(ValueError, match=r"training mode, .* Dropout"):
        as_module(model.train())
    f = as_module(model.eval())
    x = X[:2, :1, :2, :2].float()
    before = f(x)
    assert f.train() is f
    assert not any(part.training for part in f.modules())
    assert torch.equal(f(x), before)


@pytest.mark.parametrize("noise", ["fresh", 3, Noise.of(0, range(SIZE))])
@pytest.mark.parametrize("votes", [1, 4])
def test_logits_that_are_not_finite_are_refused(noise, votes):
    class Broken(Bent):
        def forward(self, x, noise):
            return super().forward(x, noise).log()

    with pytest.raises(RuntimeError, match="not finite"):
        as_module(Broken(), noise, votes)(X)
