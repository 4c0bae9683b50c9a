"""PGD where the best attack is known."""

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
def test_the_optimum_of_a_linear_model_is_reached(norm, loss, start, schedule, eot: int):
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
    assert float(best.min()) > 0  # the box is not in the way
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
def test_the_default_steps_suffice(norm, loss, start, schedule):
    """At least 97 % of the way to the optimum (a default l2 run turns, and need not arrive)."""
    threat = THREATS[norm]
    found = PGD(loss=loss, start=start, step_schedule=schedule)(Linear(), X, Y, threat, NOISE)
    assert threat.allows(X, found).all()
    share = progress(found, threat)
    assert (share > 0.97).all()
    assert (share < 1 + 1e-6).all()


@pytest.mark.parametrize("start", ["random", "zero"])
def test_the_optimum_in_a_corner_of_the_box(start):
    """For linf the box cuts pixel by pixel, and the optimum is the clipped one."""
    threat = Threat("linf", 0.5)
    found = PGD(start=start, loss="margin")(Linear(), X, Y, threat, NOISE)
    assert torch.allclose(found, worst(threat, X, Y).clamp(0, 1), atol=1e-6)


def test_a_model_without_a_gradient_is_attacked_at_random_at_least():
    """Nowhere to go: the result is still allowed."""
    threat = THREATS["linf"]
    found = PGD(steps=3)(lambda x, noise: 0 * x.flatten(1)[:, :2], X, Y, threat, NOISE)
    assert threat.allows(X, found).all()


# ------------------------------------------------------------------------- against noise


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", THREATS)
def test_the_optimum_of_a_noisy_linear_model_is_reached(norm, loss):
    """Per-draw accuracy is Phi(lead / width), and the best attack brings it to a known number."""
    threat, (x, y, noise) = THREATS[norm], many(40)
    y = y ^ (lead(x, y).argsort().argsort() < 4)  # all are right, noise aside, but for some
    attack = PGD(steps=20, eot=8, loss=loss, step_size=0.25)
    found = attack(Blurred(), x, y, threat, noise.child("search"))
    best, before = accuracy(worst(threat, x, y), y), accuracy(x, y)
    assert before - best > 0.2  # there was something to win
    assert accuracy(found, y) == pytest.approx(best, abs=0.01)
    fresh = predict_draws(Blurred(), found, noise.child("verdict"), 100) == y[:, None]
    assert float(fresh.double().mean()) == pytest.approx(best, abs=0.01 + 3 * 0.5 / 4000**0.5)


class Rippled(Linear):
    """With ripples of random phase: their law is the same everywhere, so that they help nobody, but
    the slope of a single draw is mostly theirs."""

    height, length = 0.02, 0.02

    def score(self, x, noise):
        phase = 2 * math.pi * noise.child("phase").uniform(x)
        ripples = self.height * torch.cos(x / self.length + phase).flatten(1).sum(1)
        return super().score(x, noise) + ripples


def test_averaging_over_draws_finds_a_way_that_single_draws_do_not():
    threat = THREATS["linf"]

    def share(eot: int) -> float:
        attack = PGD(steps=20, eot=eot, loss="margin", selection_draws=50)
        found = attack(Rippled(), X, Y, threat, NOISE)
        return float(progress(found, threat).mean())

    shares = [share(1), share(8), share(64)]
    assert shares[0] < 0.75
    assert shares == sorted(shares)
    assert shares[2] > 0.95


def test_every_step_meets_new_draws():
    """A single draw per step still adds up over many small steps, unless the draws repeat."""
    threat = THREATS["linf"]
    patient = PGD(steps=300, loss="margin", step_size=0.05, start="zero", selection_draws=200)
    found = patient(Rippled(), X, Y, threat, NOISE)
    assert float(progress(found, threat).mean()) > 0.75


# -------------------------------------------------- what is searched on is not what is judged on


class Listening:
    """Remembers which noise it met, and whether it was asked for a gradient."""

    def __init__(self, model):
        self.model = model
        self.searched: list[tuple[int, ...]] = []
        self.compared: list[tuple[int, ...]] = []

    def __call__(self, x, noise):
        (self.searched if x.requires_grad else self.compared).append(noise.keys)
        return self.model(x, noise)


def test_candidates_are_compared_on_draws_of_their_own_the_same_for_all():
    model = Listening(Shaken())
    PGD(steps=5, eot=3, restarts=2, selection_draws=4)(model, X, Y, THREATS["linf"], NOISE)
    assert len(model.searched) == 5 * 2
    assert len(model.compared) == 2 * 2 + 1  # the image itself once
    searched = [key for keys in model.searched for key in keys]
    assert len(set(searched)) == len(searched) == 5 * 2 * 3 * SIZE  # no draw twice
    assert len(set(model.compared)) == 1
    assert len(set(model.compared[0])) == 4 * SIZE
    assert not set(searched) & set(model.compared[0])


def test_as_many_draws_to_compare_on_as_to_search_with():
    model = Listening(Shaken())
    PGD(steps=2, eot=5)(model, X, Y, THREATS["linf"], NOISE)
    assert {len(keys) for keys in model.compared} == {5 * SIZE}


class Coin(nn.Module):
    """Right with probability `p` in a fresh draw, whatever the image; but for a given draw, which
    images it is right on is a matter of their last digits."""

    p = 0.7

    def forward(self, x, noise):
        u = noise.child("coin").uniform(x[:, 0, 0, 0])
        digits = (x * 1e4).flatten(1).sum(1)
        right = torch.where((u + digits) % 1 < self.p, 1.0, -1.0).to(x)
        smooth = 0.01 * torch.sin(digits)  # a gradient, which leads nowhere
        return torch.stack([right + smooth, -right], 1)


def test_nothing_is_won_against_a_coin_but_by_who_knows_how_it_falls():
    """The share of right answers on fresh draws of what PGD returns is the coin's p, though it was
    the best of many candidates on the search's. Against who was told the draws, it is not."""
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
    assert float(1 - on_search.error_rate.mean()) < 0.2  # what he believes he won

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
def test_more_restarts_never_make_it_worse_by_its_own_lights(norm):
    threat, before = THREATS[norm], on_compare(X, 4)
    scores = []
    for restarts in (1, 2, 3, 6):
        found = PGD(steps=3, selection_draws=4, restarts=restarts)(Shaken(), X, Y, threat, NOISE)
        scores.append(on_compare(found, 4))
        assert (scores[-1] >= before - 1e-6).all()  # nor worse than nothing, up to rounding
        before = scores[-1]
    assert (scores[-1] > scores[0] + 1e-6).any()


def test_the_best_of_all_candidates_is_returned():
    """Wrong most often; of equals, of the higher loss. The candidates of a run are its last image,
    its peak and the image itself."""
    threat, attack = THREATS["linf"], PGD(steps=4, eot=2, restarts=3, selection_draws=4)
    model = Listening(Shaken())
    shown: list[torch.Tensor] = []

    def victim(x, noise):
        if not x.requires_grad:
            shown.append(x[::4].clone())  # each image of a candidate stands here four times
        return model(x, noise)

    found = attack(victim, X, Y, threat, NOISE)
    assert len(shown) == 7  # the image itself once
    scores = torch.stack([on_compare(candidate, 4) for candidate in shown])
    best = scores.argmax(0)
    assert torch.equal(found, torch.stack(shown)[best, torch.arange(SIZE)])
    assert len(set(best.tolist())) > 1
    assert any(torch.equal(candidate, X) for candidate in shown)


def test_a_peak_on_the_way_is_not_lost():
    """A narrow peak that a long step leaves again at once: the last image is worse than it."""

    class Peak(nn.Module):
        def forward(self, x, noise):
            gone = (x - X[:1]).flatten(1).mean(1) / 0.1  # from 0 at the image to 1 at the edge
            height = torch.where(gone < 0.5, gone, 2 * (0.5 - gone))
            return torch.stack([-height, height], 1)

    y, x = torch.zeros(1, dtype=torch.long), X[:1]
    attack = PGD(steps=2, step_size=0.45, start="zero", loss="margin")
    found = attack(Peak(), x, y, THREATS["linf"], NOISE.take([0]))
    assert torch.allclose(found, x + 0.045, atol=1e-9)


def test_being_wrong_more_often_counts_for_more_than_a_higher_loss():
    """At the image it is always just wrong; at the edge seldom, but then by far."""

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


def test_it_breaks_a_real_defense_more_than_chance_does():
    """DiffPure on blobs: PGD with EOT against the random edge, on held-out draws."""
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
