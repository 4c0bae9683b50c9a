"""Doubts about the model and the search: a model made for each raises it, a sound one does not."""

from typing import Any

import pytest
import torch
from raised import SOUND

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.losses import LossRecord, query_model, recording_losses
from unfool.attacks.pgd import PGD
from unfool.attacks.square import Square
from unfool.evaluation.evaluate import Machine, evaluate_into
from unfool.noise import Noise
from unfool.results.doubts.model import model_doubts
from unfool.results.loss_curves import curves, summarize
from unfool.results.outcome import Condition, Outcome, SanityCheck
from unfool.results.run_folder import Run
from unfool.results.spec import AttackEntry
from unfool.results.summary import summarize_run
from unfool.threat import Threat
from unfool.toy.blobs import Blobs

FULL = {"view": "exact", "loss": "margin"}


def two(margin):
    return torch.stack([-margin, margin], 1)


def mean(x, noise):
    """A linear classifier of bright and dark images."""
    return two((x.mean((1, 2, 3)) - 0.5) * 20)


def shaken(by):
    def model(x, noise):
        """A linear classifier whose weights get random noise in every draw."""
        tilt = 20 / 16 + by * noise.child("tilt").normal(x)
        return two((tilt * (x - 0.5)).sum((1, 2, 3)))

    return model


def steep(x, noise):
    """A linear classifier behind a contrast so high that most pixels are clipped."""
    return mean((10 * (x - 0.5) + 0.5).clamp(0, 1), noise)


def misled(x, noise):
    """A linear classifier whose gradient has the wrong sign."""
    return mean(2 * x.detach() - x, noise)


def coin(x, noise):
    """A classifier that is right with probability 1/2 on any image; its gradient is not zero."""
    label = torch.where(x.mean((1, 2, 3)) > 0.5, 1.0, -1.0)
    lucky = torch.where(noise.child("coin").uniform(x[:, 0, 0, 0]) < 0.5, 1.0, -1.0)
    return two(label * lucky + 1e-3 * x.mean((1, 2, 3)))


@pytest.fixture
def told(tmp_path):
    """A function that attacks a model and returns the doubts about it, by name."""

    def judge(model, attacks, images=24, draws=2, eps=0.02):
        rows = [
            FULL | {"label": name, "name": name, "eot": attack.eot}
            for name, attack in attacks.items()
        ]
        spec = {
            "data": {"name": "blobs"},
            "classifier": {"name": "mine:model"},
            "threat": {"norm": "linf", "eps": eps},
            "attacks": rows,
            "evaluation": {"images": images, "draws": draws, "seed": 0, "subset_seed": 0},
        }
        asked: Any = {"identity": "1", "spec": spec, "versions": {}, "classes": ["dark", "bright"]}
        asked |= {"images": "0" * 64, "code": "0" * 64}
        run = Run.begin(
            tmp_path / str(len(list(tmp_path.iterdir()))), asked | {"indices": [*range(images)]}
        )
        threat, quiet = Threat("linf", eps), Machine(quiet=True)
        evaluate_into(model, Blobs(images), attacks, threat, run, draws=draws, machine=quiet)
        return {doubt["name"]: doubt for doubt in summarize_run(run)["doubts"]}

    return judge


def test_disagreeing_eot_gradients_raise_doubt(told):
    pgd = {"pgd": PGD(4, 4, loss="margin")}
    # a tilt of 5 against a slope of 1.25: the mean of 4 has a cosine of 1 / sqrt(1 + 16 / 4) = 0.45
    raised = told(shaken(5), pgd)["eot-gradients-disagree"]
    assert raised["severity"] == "yellow"
    assert "is 0.4" in raised["why"]
    needed = int(raised["why"].split("about ")[1].split(",")[0])
    assert 4 < needed < 8  # (16 / 3 = 5.3)
    assert "eot-gradients-disagree" not in told(shaken(1), pgd)
    assert "eot-gradients-disagree" not in told(shaken(5), {"pgd": PGD(2, 40, loss="margin")})
    assert "eot-gradients-disagree" not in told(mean, pgd)


def test_clipped_pixels_raise_doubt(told):
    pgd = {"pgd": PGD(4, loss="margin")}
    raised = told(steep, pgd)["clamped"]
    assert "of 16 images" in raised["why"]
    assert "clamped" not in told(mean, pgd)


def test_black_box_attack_that_beats_a_gradient_attack_raises_doubt(told):
    attacks = {"pgd": PGD(10, loss="margin"), "square": Square(30)}
    raised = told(misled, attacks, images=40, eps=0.3)["blind-beats-gradient"]
    assert raised["severity"] == "red"
    assert raised["why"].startswith("square, which uses no gradient")
    assert "blind-beats-gradient" not in told(mean, attacks, images=40, eps=0.3)


def test_still_rising_loss_raises_doubt(told):
    short = {"pgd": PGD(12, step_size=0.02, start="zero", loss="margin")}
    raised = told(mean, short)["still-rising"]
    assert "24 images that pgd left right" in raised["why"]
    assert "9 % of the whole rise came in the last 8 % of its steps" in raised["why"]
    long = {"pgd": PGD(12, loss="margin"), "apgd": APGD(20, loss="margin")}
    assert "still-rising" not in told(mean, long)


def test_wide_interval_from_few_draws_raises_doubt(told):
    pgd = {"pgd": PGD(1, 2, loss="margin")}
    raised = told(coin, pgd, images=60)["few-draws"]
    needed = int(raised["why"].split("about ")[1].split()[0])
    assert 8 <= needed <= 12  # only the draws vary, so four times as many are needed
    assert "one draw per image" in told(coin, pgd, draws=1)["few-draws"]["why"]
    sound = told(dark, pgd)
    assert "few-images" in sound
    assert "few-draws" not in sound


def test_loss_curves_average_runs_of_equal_length_in_equal_bins():
    def steps(values, run=1):
        return [LossRecord(((run,), "ce"), torch.tensor([float(v), 0.0])) for v in values]

    assert curves(steps(range(5)), 2)[0] == [0, 1, 2, 3, 4]
    assert curves(steps(range(20)), 2)[0] == [0.5 + 2 * i for i in range(10)]
    assert len(curves(steps(range(101)), 2)[0]) == 14
    assert curves(steps(range(4)) + steps(range(2, 6), run=2), 2) == [[1, 2, 3, 4], [0, 0, 0, 0]]
    assert curves(steps(range(4)) + steps(range(3), run=2), 2) == [[], []]
    assert curves(steps(range(4)), 3) == [[], [], []]
    assert curves([], 1) == [[]]
    assert curves(steps([0, float("nan")]), 2) == [[], [0, 0]]


def test_recording_losses_changes_no_result_and_ends_with_its_block():
    x, y, noise = torch.full((2, 1, 4, 4), 0.3), torch.tensor([0, 1]), Noise.of(0, [0, 1])
    attack, threat = APGD(6, loss="margin", restarts=2), Threat("linf", 0.1)
    with recording_losses() as steps:
        seen = attack(mean, x, y, threat, noise)
    assert torch.equal(seen, attack(mean, x, y, threat, noise))
    assert len(steps) == 14  # two restarts of 6 steps, each after a first query
    assert len(curves(steps, 2)[0]) == 7
    with recording_losses() as outer:
        with recording_losses() as inner:
            query_model(mean, x, y, "ce", noise, 0, 1)
        AutoAttack("rand", eot=1, steps=2, draws=4)(three, x, y, threat, noise)
        query_model(mean, x, y, "ce", noise, 0, 1, gradient=False)
    assert len(inner) == 1
    assert outer == []


def dark(x, noise):
    """A classifier that answers dark for every image, so half of the images are right in all draws."""
    return mean(x - 0.6, noise)


def three(x, noise):
    return torch.cat([mean(x, noise), torch.zeros(len(x), 1)], 1)


def test_loss_curve_summary_skips_searches_that_ended_early():
    def made(index, curve, right):
        draws = [0] if right else [1]
        conditions = {"pgd": Condition(draws, None, 0.1, 0.0)}
        return Outcome(index, 0, conditions, "pgd", 0.0, {}, loss_curves={"pgd": curve})

    whole = [made(0, [0.0, 1.0, 2.0], True), made(1, [1.0, 2.0, 3.0], True)]
    ended = [made(2, [5.0, 6.0], False), made(3, [], False)]
    (told,) = summarize([*whole, *ended], ["pgd"])
    assert told["right"]["n"] == 2
    assert told["right"]["mean"] == [0.5, 1.5, 2.5]
    assert told["wrong"]["n"] == 0
    assert summarize(ended[1:], ["pgd"]) == []


@pytest.mark.parametrize(("loss", "gradient"), [("dlr", 0.0), ("ce", float("inf"))])
def test_zero_or_infinite_gradient_raises_doubt(loss, gradient):
    seen = {"ce": 1.0, "margin": 1.0} | {"margin" if loss == "dlr" else loss: gradient}
    row: AttackEntry = {"name": "pgd", "label": "pgd", "view": "exact", "loss": loss}
    probe: SanityCheck = {**SOUND, "gradients": seen}
    assert [doubt.name for doubt in model_doubts([probe], {"pgd": row})] == ["zero-gradient"]
    assert not list(model_doubts([SOUND], {"pgd": row}))
