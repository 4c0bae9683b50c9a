"""PGD on models whose best attack is known."""

import math

import pytest
import torch
from analytic import (
    NOISE,
    SIZE,
    THREATS,
    Blurred,
    Linear,
    Shaken,
    X,
    Y,
    accuracy,
    lead,
    many,
    progress,
    worst,
)
from torch import nn

from unfool.attacks.losses import query_model
from unfool.attacks.pgd import PGD
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified, predict_draws
from unfool.noise import Noise
from unfool.statistics import wilson
from unfool.threat import Threat
from unfool.toy.blobs import Blobs, bayes, mixture


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("start", ["random", "zero"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("eot", [1, 2])
def test_optimum_of_a_linear_model_is_reached(norm, loss, start, schedule, eot: int):
    threat = THREATS[norm]
    attack = PGD(
        steps=40,
        eot=eot,
        start=start,
        step_schedule=schedule,
        loss=loss,
        step_size=1.0,
        restarts=2,
    )
    found = attack(Linear(), X, Y, threat, NOISE)
    assert threat.allows(X, found).all()
    best = worst(threat, X, Y)
    assert float(best.min()) > 0  # the box does not interfere
    assert float(best.max()) < 1
    assert torch.allclose(found, best, atol=1e-6)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(
    ("start", "schedule"),
    [
        ("random", "constant"),
        ("zero", "constant"),
        ("zero", "cosine"),
        ("random", "cosine"),
    ],
)
def test_default_steps_nearly_reach_the_optimum(norm, loss, start, schedule):
    """At least 97 % of the way (a default l2 run turns toward the optimum, and need not arrive)."""
    threat = THREATS[norm]
    found = PGD(loss=loss, start=start, step_schedule=schedule)(Linear(), X, Y, threat, NOISE)
    assert threat.allows(X, found).all()
    share = progress(found, threat)
    assert (share > 0.97).all()
    assert (share < 1 + 1e-6).all()


@pytest.mark.parametrize("start", ["random", "zero"])
def test_optimum_in_a_corner_of_the_box_is_reached(start):
    """For linf, the box clips each pixel separately, so the optimum is the clipped image."""
    threat = Threat("linf", 0.5)
    found = PGD(start=start, loss="margin")(Linear(), X, Y, threat, NOISE)
    assert torch.allclose(found, worst(threat, X, Y).clamp(0, 1), atol=1e-6)


def test_model_without_a_gradient_yields_an_allowed_image():
    """The gradient is zero everywhere, and the result is still allowed."""
    threat = THREATS["linf"]
    found = PGD(steps=3)(lambda x, noise: 0 * x.flatten(1)[:, :2], X, Y, threat, NOISE)
    assert threat.allows(X, found).all()


# ------------------------------------------------------------------------- against noise


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", THREATS)
def test_optimum_of_a_noisy_linear_model_is_reached(norm, loss):
    """Per-draw accuracy is Phi(lead / width), and the best attack lowers it to a known value."""
    threat, (x, y, noise) = THREATS[norm], many(40)
    y = y ^ (lead(x, y).argsort().argsort() < 4)  # without noise, all but four are right
    attack = PGD(steps=20, eot=8, loss=loss, step_size=0.25)
    found = attack(Blurred(), x, y, threat, noise.child("search"))
    best, before = accuracy(worst(threat, x, y), y), accuracy(x, y)
    assert before - best > 0.2  # the attack can achieve something
    assert accuracy(found, y) == pytest.approx(best, abs=0.01)
    fresh = predict_draws(Blurred(), found, noise.child("verdict"), 100) == y[:, None]
    assert float(fresh.double().mean()) == pytest.approx(best, abs=0.01 + 3 * 0.5 / 4000**0.5)


class Rippled(Linear):
    """`Linear` with ripples of random phase.

    Their distribution is the same at every image, so they do not help an attack, but they dominate
    the gradient of a single draw.
    """

    height, length = 0.02, 0.02

    def score(self, x, noise):
        phase = 2 * math.pi * noise.child("phase").uniform(x)
        ripples = self.height * torch.cos(x / self.length + phase).flatten(1).sum(1)
        return super().score(x, noise) + ripples


def test_averaging_over_draws_succeeds_where_single_draws_fail():
    threat = THREATS["linf"]

    def share(eot: int) -> float:
        attack = PGD(steps=20, eot=eot, loss="margin", selection_draws=50)
        found = attack(Rippled(), X, Y, threat, NOISE)
        return float(progress(found, threat).mean())

    shares = [share(1), share(8), share(64)]
    assert shares[0] < 0.75
    assert shares == sorted(shares)
    assert shares[2] > 0.95


def test_every_step_uses_new_draws():
    """One draw per step averages out over many small steps, unless the draws repeat."""
    threat = THREATS["linf"]
    patient = PGD(steps=300, loss="margin", step_size=0.05, start="zero", selection_draws=200)
    found = patient(Rippled(), X, Y, threat, NOISE)
    assert float(progress(found, threat).mean()) > 0.75


# -------------------------------------------------- search and verdict have separate draws


class Listening:
    """Records the noise of each call, separately for calls with and without a gradient."""

    def __init__(self, model):
        self.model = model
        self.searched: list[tuple[int, ...]] = []
        self.compared: list[tuple[int, ...]] = []

    def __call__(self, x, noise):
        (self.searched if x.requires_grad else self.compared).append(noise.keys)
        return self.model(x, noise)


def test_candidates_are_compared_on_the_same_separate_draws():
    model = Listening(Shaken())
    PGD(steps=5, eot=3, restarts=2, selection_draws=4)(model, X, Y, THREATS["linf"], NOISE)
    assert len(model.searched) == 5 * 2
    assert len(model.compared) == 2 * 2 + 1  # the image itself only once
    searched = [key for keys in model.searched for key in keys]
    assert len(set(searched)) == len(searched) == 5 * 2 * 3 * SIZE  # no draw is used twice
    assert len(set(model.compared)) == 1
    assert len(set(model.compared[0])) == 4 * SIZE
    assert not set(searched) & set(model.compared[0])


def test_candidates_are_compared_on_eot_draws_by_default():
    model = Listening(Shaken())
    PGD(steps=2, eot=5)(model, X, Y, THREATS["linf"], NOISE)
    assert {len(keys) for keys in model.compared} == {5 * SIZE}


class Coin(nn.Module):
    """Right with probability `p` in a fresh draw, whatever the image.

    For a given draw, the last digits of an image decide whether the model is right.
    """

    p = 0.7

    def forward(self, x, noise):
        u = noise.child("coin").uniform(x[:, 0, 0, 0])
        digits = (x * 1e4).flatten(1).sum(1)
        right = torch.where((u + digits) % 1 < self.p, 1.0, -1.0).to(x)
        smooth = 0.01 * torch.sin(digits)  # a gradient that leads nowhere
        return torch.stack([right + smooth, -right], 1)


def test_random_model_is_broken_only_by_an_attacker_who_knows_the_noise():
    """Success on the draws of the search does not carry over to fresh draws.

    On fresh draws, the accuracy on PGD's images is the coin's `p`, although they were the best of
    many candidates on the draws of the search. An attacker who knows the draws lowers it.
    """
    size, draws = 200, 20
    x, _, noise = many(size)
    y = torch.zeros(size, dtype=torch.long)
    attack, threat = PGD(steps=4, restarts=4, selection_draws=1, loss="margin"), THREATS["linf"]

    def right(found, secret, count: int) -> int:
        return int((predict_draws(Coin(), found, secret, count) == 0).sum())

    found = attack(Coin(), x, y, threat, noise.child("search"))
    share = wilson(right(found, noise.child("verdict"), draws), size * draws)
    assert share.low - 0.01 < Coin.p < share.high + 0.01
    on_search = query_model(
        Coin(), found, y, "margin", noise.child("search", "compare"), 0, 1, False
    )
    assert float(1 - on_search.error_rate.mean()) < 0.2  # the attacker's apparent success

    verdict = noise.child("verdict")
    told = noise.child("search").with_known_noise(verdict.child("vote", 0))
    found = attack(Coin(), x, y, threat, told)
    assert right(found, verdict, 1) / size < 0.2
    share = wilson(right(found, noise.child("other"), draws), size * draws)
    assert share.low - 0.01 < Coin.p < share.high + 0.01


# ------------------------------------------------------------------------ the best is kept


def on_compare(x: torch.Tensor, draws: int) -> torch.Tensor:
    seen = query_model(Shaken(), x, Y, "ce", NOISE.child("compare"), 0, draws, gradient=False)
    return seen.error_rate + 1e-3 * torch.tanh(seen.loss / 10)


@pytest.mark.parametrize("norm", THREATS)
def test_more_restarts_never_lower_the_attacks_own_score(norm):
    threat, before = THREATS[norm], on_compare(X, 4)
    scores = []
    for restarts in (1, 2, 3, 6):
        found = PGD(steps=3, selection_draws=4, restarts=restarts)(Shaken(), X, Y, threat, NOISE)
        scores.append(on_compare(found, 4))
        assert (scores[-1] >= before - 1e-6).all()  # nor below the image itself, up to rounding
        before = scores[-1]
    assert (scores[-1] > scores[0] + 1e-6).any()


def test_best_of_all_candidates_is_returned():
    """The best candidate is wrong most often, and has the highest loss among equals.

    The candidates of a run are its last image, its peak, and the image itself.
    """
    threat, attack = THREATS["linf"], PGD(steps=4, eot=2, restarts=3, selection_draws=4)
    model = Listening(Shaken())
    shown: list[torch.Tensor] = []

    def victim(x, noise):
        if not x.requires_grad:
            shown.append(x[::4].clone())  # each image of a candidate is repeated four times
        return model(x, noise)

    found = attack(victim, X, Y, threat, NOISE)
    assert len(shown) == 7  # the image itself only once
    scores = torch.stack([on_compare(candidate, 4) for candidate in shown])
    best = scores.argmax(0)
    assert torch.equal(found, torch.stack(shown)[best, torch.arange(SIZE)])
    assert len(set(best.tolist())) > 1
    assert any(torch.equal(candidate, X) for candidate in shown)


def test_peak_along_the_path_is_kept():
    """A long step leaves a narrow peak at once, so the last image is worse than the peak."""

    class Peak(nn.Module):
        def forward(self, x, noise):
            gone = (x - X[:1]).flatten(1).mean(1) / 0.1  # from 0 at the image to 1 at the edge
            height = torch.where(gone < 0.5, gone, 2 * (0.5 - gone))
            return torch.stack([-height, height], 1)

    y, x = torch.zeros(1, dtype=torch.long), X[:1]
    attack = PGD(steps=2, step_size=0.45, start="zero", loss="margin")
    found = attack(Peak(), x, y, THREATS["linf"], NOISE.take([0]))
    assert torch.allclose(found, x + 0.045, atol=1e-9)


def test_error_rate_counts_more_than_loss():
    """The model is always slightly wrong at the image, and rarely but far more wrong at the edge."""

    class Tempting(nn.Module):
        def forward(self, x, noise):
            gone = (x - X[:1]).flatten(1).mean(1) / 0.1  # from 0 at the image to 1 at the edge
            seldom = noise.child("luck").uniform(x[:, 0, 0, 0]) < 0.25
            half = (1 - gone) * 0.05 + gone * torch.where(seldom, 50.0, -0.5).to(x)
            return torch.stack([-half, half], 1)

    y, x = torch.zeros(1, dtype=torch.long), X[:1]
    attack = PGD(steps=1, step_size=1, start="zero", loss="margin", eot=40)
    found = attack(Tempting(), x, y, THREATS["linf"], NOISE.take([0]))
    assert torch.equal(found, x)


def test_pgd_breaks_diffpure_more_often_than_random_noise():
    """On blobs and held-out draws, PGD with EOT is compared with random noise at full budget."""
    size, threat = 48, Threat("l2", 0.8)
    data, noise = Blobs(size), Noise.of(0, range(size))
    x = torch.stack([data[i][0] for i in range(size)])
    y = torch.tensor([data[i][1] for i in range(size)])
    model = Purified(bayes(), DiffPure(mixture(), t=0.3, steps=5))
    found = PGD(steps=10, eot=4)(model, x, y, threat, noise.child("search"))
    control = threat.random_at_full_budget(x, noise.child("control"))

    def accuracy(at):
        chosen = predict_draws(model, at, noise.child("verdict"), 8)
        return float((chosen == y[:, None]).double().mean())

    assert accuracy(found) < accuracy(control) - 0.15
