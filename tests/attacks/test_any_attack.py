"""What every attack promises: it stays within the threat, and no image depends on its company."""

import pytest
import torch
from analytic import NOISE, SIZE, THREATS, Drifting, Linear, Shaken, X, Y

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.candidates import choose
from unfool.attacks.carlini_wagner import CarliniWagner
from unfool.attacks.deepfool import DeepFool
from unfool.attacks.fab import FAB
from unfool.attacks.low_frequency import LowFrequency
from unfool.attacks.perceptual import PerceptualPGD
from unfool.attacks.pgd import PGD, fgsm
from unfool.attacks.random_search import RandomSearch
from unfool.attacks.square import Square
from unfool.attacks.stadv import StAdv
from unfool.attacks.views import Batched
from unfool.threat import Threat, images

ATTACKS = {
    "apgd": APGD(4, eot=2, loss="dlr"),
    "apgd-t": APGD(3, eot=2, loss="margin", targets=2, steps_per_draw=2),
    "carlini-wagner": CarliniWagner(4, searches=2, eot=2, learning_rate=0.1),
    "deepfool": DeepFool(3, eot=2),
    "fab": FAB(3, eot=2, restarts=2, targets=1),
    "lf": LowFrequency(3, eot=2, width=3),
    "ppgd": PerceptualPGD(3, eot=2),
    "square": Square(6, eot=2),
    "pgd": PGD(4, eot=2, restarts=2, step_size=3.0),
    "fgsm": fgsm(eot=2),
    "random-search": RandomSearch(3, eot=2),
    "autoattack": AutoAttack(steps=4, queries=20, targets=1, eot=2, draws=4),
    "stadv": StAdv(3, eot=2),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_does_not_depend_on_rows_nor_on_the_batch(name):
    attack, threat = ATTACKS[name], THREATS["l2"]  # no sign turns a rounding error into a step
    whole = attack(Shaken(), X, Y, threat, NOISE)
    assert not torch.equal(whole, X)
    assert torch.allclose(attack(Batched(Shaken(), 4), X, Y, threat, NOISE), whole, atol=1e-9)
    order = [5, 0, 2]
    part = attack(Shaken(), X[order], Y[order], threat, NOISE.take(order))
    assert torch.allclose(part, whole[order], atol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", THREATS)
def test_it_stays_within_the_threat(name, norm):
    attack = ATTACKS[name]
    if (name, norm) == ("carlini-wagner", "linf"):
        with pytest.raises(ValueError, match=r"Carlini-Wagner .*l2.* linf"):
            attack(Shaken(), X, Y, THREATS[norm], NOISE)
        return
    for eps in (0.0, 0.02, 1.0):
        found = attack(Shaken(), X.float(), Y, Threat(norm, eps), NOISE)
        assert found.shape == X.shape
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert eps or torch.equal(found, X.float()) or name in ("lf", "ppgd", "stadv")
        if getattr(attack, "bounded", True):
            assert Threat(norm, eps).allows(X.float(), found).all()


class Rooted(Linear):
    """Finite logits, whose gradient is NaN and infinite at the black pixels."""

    def score(self, x, noise):
        return super().score(x, noise) + 1e-3 * (x.relu().sqrt() + 0 * (x * x).sqrt()).mean(
            (1, 2, 3)
        )


@pytest.mark.parametrize("name", sorted({*ATTACKS} - {"apgd"}))  # DLR needs 3 classes
def test_a_gradient_that_is_no_number_stops_nothing(name):
    attack = PGD(3, start="zero") if name == "pgd" else ATTACKS[name]
    x, threat = X.clone(), THREATS["l2"]
    x[:, 0, 0, :2] = 0
    found = attack(Rooted(), x, Y, threat, NOISE)
    assert threat.allows(x, found).all() or name in ("lf", "ppgd", "stadv")
    assert found.isfinite().all()
    if name == "pgd":
        assert ((found - x).flatten(1).norm(dim=1) > 0.9 * threat.eps).all()


def test_fgsm_is_one_step_of_signs():
    threat = THREATS["linf"]
    x = X.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(Linear()(x, NOISE), Y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    found = fgsm()(Linear(), X, Y, threat, NOISE)
    assert torch.allclose(found, X + threat.eps * gradient.sign())


def test_random_search_returns_the_worst_of_its_points():
    threat, model = THREATS["l2"], Linear()
    points = [X, *(threat.edge(X, NOISE.child("try", i)) for i in range(1, 9))]
    leads = torch.stack([model(p, NOISE).gather(1, Y[:, None])[:, 0] for p in points])
    found = RandomSearch(8)(model, X, Y, threat, NOISE)
    assert torch.equal(found, torch.stack(points)[leads.argmin(0), torch.arange(SIZE)])
    assert Threat("l0", 0.2).allows(X, RandomSearch(2)(model, X, Y, Threat("l0", 0.2), NOISE)).all()


def test_of_equals_the_first_is_chosen_and_what_is_no_number_last():
    def model(x, noise):
        level = torch.where(x[:, 0, 0, 0] > 0.9, torch.nan, 0.0)
        return torch.stack([1 + level, level], 1)

    y = torch.arange(SIZE) % 2  # of what is no number, the highest is said to be class 0
    first, second, broken = X, X + 0.01, images(torch.ones(SIZE)).to(X).expand_as(X)
    found = choose(model, y, [broken, first, second], "margin", NOISE, 2)
    assert torch.equal(found, first)


class Counted(torch.nn.Module):
    """Four classes without noise, or with noise that moves no answer; counts what it is asked."""

    def __init__(self, drifting=False):
        super().__init__()
        self.model, self.asked = Linear(classes=4), 0
        if drifting:
            self.model = Drifting(self.model)

    def forward(self, x, noise):
        self.asked += len(x)
        return self.model(x, noise)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(20, loss="margin", targets=3),
        APGD(20, restarts=3),
        FAB(20, targets=3),
        Square(200, steps_per_draw=200),
    ],
    ids=["apgd-t", "apgd-restarts", "fab", "square"],
)
@pytest.mark.parametrize("norm", THREATS)
def test_images_that_are_beaten_are_left_alone_where_no_draw_can_be_luck(attack, norm):
    still, random = Counted(), Counted(drifting=True)
    for threat, reached in ((THREATS[norm], True), (Threat(norm, 1e-4), False)):
        found = {}
        for model in (still, random):
            model.asked = 0
            x_adv = attack(model, X, Y, threat, NOISE)
            assert threat.allows(X, x_adv).all()
            found[model] = model(x_adv, NOISE).argmax(1) != Y
        assert torch.equal(found[still], found[random])
        assert bool(found[still].any()) == reached
        if reached:
            assert still.asked < 0.6 * random.asked
        else:
            assert still.asked == random.asked
