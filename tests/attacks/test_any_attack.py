"""Promises of every attack: it stays within the threat, and images do not affect each other."""

import pytest
import torch
from analytic import NOISE, SIZE, THREATS, Coin, Drifting, Linear, Shaken, X, Y

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.candidates import choose
from unfool.attacks.carlini_wagner import CarliniWagner
from unfool.attacks.deepfool import DeepFool
from unfool.attacks.fab import FAB
from unfool.attacks.losses import without_noise
from unfool.attacks.low_frequency import LowFrequency
from unfool.attacks.perceptual import PerceptualPGD
from unfool.attacks.pgd import PGD, fgsm
from unfool.attacks.random_search import RandomSearch
from unfool.attacks.square import Square
from unfool.attacks.stadv import StAdv
from unfool.attacks.views import Batched
from unfool.threat import Threat, per_image

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
def test_attack_does_not_depend_on_batch_size_or_other_images(name):
    attack, threat = ATTACKS[name], THREATS["l2"]  # without signs, rounding errors stay small
    whole = attack(Shaken(), X, Y, threat, NOISE)
    assert not torch.equal(whole, X)
    assert torch.allclose(attack(Batched(Shaken(), 4), X, Y, threat, NOISE), whole, atol=1e-9)
    order = [5, 0, 2]
    part = attack(Shaken(), X[order], Y[order], threat, NOISE.take(order))
    assert torch.allclose(part, whole[order], atol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", THREATS)
def test_attack_stays_within_the_threat(name, norm):
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
    """Finite logits whose gradient is NaN and infinite at black pixels."""

    def score(self, x, noise):
        return super().score(x, noise) + 1e-3 * (x.relu().sqrt() + 0 * (x * x).sqrt()).mean(
            (1, 2, 3)
        )


@pytest.mark.parametrize("name", sorted({*ATTACKS} - {"apgd"}))  # DLR needs 3 classes
def test_attack_handles_nan_gradients(name):
    attack = PGD(3, start="zero") if name == "pgd" else ATTACKS[name]
    x, threat = X.clone(), THREATS["l2"]
    x[:, 0, 0, :2] = 0
    found = attack(Rooted(), x, Y, threat, NOISE)
    assert threat.allows(x, found).all() or name in ("lf", "ppgd", "stadv")
    assert found.isfinite().all()
    if name == "pgd":
        assert ((found - x).flatten(1).norm(dim=1) > 0.9 * threat.eps).all()


def test_fgsm_is_one_signed_gradient_step():
    threat = THREATS["linf"]
    x = X.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(Linear()(x, NOISE), Y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    found = fgsm()(Linear(), X, Y, threat, NOISE)
    assert torch.allclose(found, X + threat.eps * gradient.sign())


def test_random_search_returns_the_worst_of_its_points():
    threat, model = THREATS["l2"], Linear()
    points = [X, *(threat.random_at_full_budget(X, NOISE.child("try", i)) for i in range(1, 9))]
    leads = torch.stack([model(p, NOISE).gather(1, Y[:, None])[:, 0] for p in points])
    found = RandomSearch(8)(model, X, Y, threat, NOISE)
    assert torch.equal(found, torch.stack(points)[leads.argmin(0), torch.arange(SIZE)])
    assert Threat("l0", 0.2).allows(X, RandomSearch(2)(model, X, Y, Threat("l0", 0.2), NOISE)).all()


def test_choose_prefers_the_first_of_equal_candidates_and_nan_last():
    def model(x, noise):
        level = torch.where(x[:, 0, 0, 0] > 0.9, torch.nan, 0.0)
        return torch.stack([1 + level, level], 1)

    y = torch.arange(SIZE) % 2  # the argmax of NaN logits is class 0
    first, second, broken = X, X + 0.01, per_image(torch.ones(SIZE)).to(X).expand_as(X)
    found = choose(model, y, [broken, first, second], "margin", NOISE, 2)
    assert torch.equal(found, first)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("right", [True, False])
def test_choose_prefers_the_higher_loss_of_logits_of_any_scale(scale, right):
    """Two draws, one of which is wrong if `right` is false, and both right otherwise."""

    def model(x, noise):
        lead = 2 - x.flatten(1).mean(1)
        if not right:
            lead = lead - 1.6 * (torch.arange(len(x)) % 2 * 2.0)
        return scale * torch.stack([lead, -lead], 1)

    y, low = torch.zeros(SIZE, dtype=torch.long), X.clamp(max=0.5).float()
    high = low + 0.1
    for candidates in ([low, high], [high, low]):
        assert torch.equal(choose(model, y, candidates, "margin", NOISE, 2), high)


class Counted(torch.nn.Module):
    """Four classes, without noise or with noise that changes no answer; counts the images it gets."""

    def __init__(self, drifting=False):
        super().__init__()
        self.model, self.asked = Linear(classes=4), 0
        if drifting:
            self.model = Drifting(self.model)

    def forward(self, x, noise):
        self.asked += len(x)
        return self.model(x, noise)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize(
    ("attack", "to_the_end", "beaten", "with_noise"),
    [  # calls per image: in full, if broken in the first run, and what noise adds
        (APGD(20, loss="margin", targets=3), 2 + 1 + 3 * 24 + 1, 2 + 1 + 24, 3 * 20),
        (APGD(20, restarts=3), 2 + 3 * 24 + 1, 2 + 24, 3 * 20),
        (APGD(20, 8, "margin", targets=3, steps_per_draw=21), 76, 27, None),
        (FAB(20, targets=3), 2 + 2 + 3 * 43, 2 + 2 + 43, 0),
        (FAB(20, 8, targets=3), 133, 47, None),
        (Square(200, steps_per_draw=200), 2 + 200 + 2, None, 0),
        (Square(200), 204, None, 199),
    ],
    ids=["apgd-t", "apgd-restarts", "apgd-eot", "fab", "fab-eot", "square", "square-fresh"],
)
def test_broken_images_are_skipped_if_the_model_has_no_noise(
    attack, to_the_end, beaten, with_noise, norm
):
    still, random = Counted(), Counted(drifting=True)
    for threat, reached in ((THREATS[norm], True), (Threat(norm, 1e-4), False)):
        found, images_of = {}, {}
        for model in (still, random):
            model.asked = 0
            images_of[model] = attack(model, X, Y, threat, NOISE)
            assert threat.allows(X, images_of[model]).all()
            found[model] = model.model(images_of[model], NOISE).argmax(1) != Y
        assert torch.equal(found[still], found[random])
        assert bool(found[still].any()) == reached
        if not reached:
            assert torch.allclose(images_of[still], images_of[random], atol=1e-9)
            assert still.asked == to_the_end * SIZE
            assert with_noise is None or random.asked == (to_the_end + with_noise) * SIZE
        elif beaten is not None:
            assert still.asked == beaten * SIZE
        else:
            assert still.asked < 0.6 * to_the_end * SIZE


class Partly(torch.nn.Module):
    """A model that draws noise only for bright images."""

    def forward(self, x, noise):
        logits, bright = Linear(classes=4)(x, noise), (x.mean((1, 2, 3)) > 0.5).nonzero()[:, 0]
        if len(bright):
            drift = 0.02 * noise.take(bright).child("drift").normal(logits[bright, :2])
            logits[bright] += torch.nn.functional.pad(drift, (0, 2))
        return logits


@pytest.mark.parametrize(
    "attack",
    [
        APGD(5, 2, "margin", targets=3),
        FAB(4, eot=2, targets=2),
        Square(20, eot=2),
        AutoAttack("standard", steps=4, queries=10, targets=2, draws=4),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_images_with_and_without_noise_do_not_affect_each_other(attack):
    threat = THREATS["l2"]
    bright = X.mean((1, 2, 3)) > 0.5
    assert bright.any()
    assert not bright.all()
    whole = attack(Partly(), X, Y, threat, NOISE)
    for i in range(SIZE):
        alone = attack(Partly(), X[i : i + 1], Y[i : i + 1], threat, NOISE.take([i]))
        assert torch.allclose(alone, whole[i : i + 1], atol=1e-9)


def test_noise_is_detected_even_if_all_votes_agree():
    still = without_noise(Linear(), X, NOISE)
    assert still.all()
    assert not without_noise(Drifting(Linear()), X, NOISE).any()
    assert not without_noise(Coin(1.0), X, NOISE).any()  # always right, although it draws noise
    bright = X.mean((1, 2, 3)) > 0.5
    assert torch.equal(without_noise(Partly(), X, NOISE), ~bright)
