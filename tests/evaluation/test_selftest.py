"""Tests of the self-test: it passes, and each fault fails the check that is made for it."""

import json
from dataclasses import replace

import pytest
import torch

from unfool.attacks.apgd import APGD
from unfool.attacks.carlini_wagner import CarliniWagner
from unfool.attacks.deepfool import DeepFool
from unfool.attacks.fab import FAB
from unfool.attacks.low_frequency import LowFrequency
from unfool.attacks.perceptual import PerceptualPGD
from unfool.attacks.pgd import PGD
from unfool.cli.main import run
from unfool.evaluation import draw_caller, selftest, selftest_attacks
from unfool.report.selftest import headline
from unfool.results import summary
from unfool.spec import Part
from unfool.statistics import Share, wilson

QUICK = {"steps": 3, "queries": 4000}
FEW: list[Part] = [{"name": "pgd", "steps": 1, "eot": 1}]


def oks(checks) -> list[bool]:
    return [check.ok for check in checks]


def unmoved(model, x, y, threat, noise):
    return x


def downhill(model, x, y, threat, noise):
    """PGD with the wrong sign, which makes predictions more correct."""
    return PGD(10, 4)(lambda at, own: -model(at, own), x, y, threat, noise)


def lucky(model, x, y, threat, noise):
    """PGD that stops on an image as soon as one draw is wrong."""
    found, done = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    for i in range(10):
        fell = model(found, noise.child("try", i)).argmax(1) != y
        done |= fell
        step = PGD(1, 4, step_size=0.25, start="zero", selection_draws=1)
        moved = step(model, found, y, threat, noise.child("step", i))
        moved = threat.project(x, moved)
        found = torch.where(done[:, None, None, None], found, moved)
    return found


def beyond(model, x, y, threat, noise):
    return PGD(4, 4)(model, x, y, replace(threat, eps=2 * threat.eps), noise)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [unmoved, downhill, lucky, beyond])
def test_broken_attack_fails_the_noisy_plane_check(norm, attack):
    right = {"right": PGD(20, 8)}
    assert oks(selftest.noisy_plane(norm, right | {"broken": attack})) == [True, False]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_that_stop_short_fail_the_plane_checks(norm):
    assert oks(selftest.nearest(norm)) == [True, True]
    assert oks(selftest.nearest(norm, fab=FAB(1, targets=4))) == [False, True]
    assert oks(selftest.nearest(norm, fab=FAB(20, targets=1))) == [False, True]
    for broken in (unmoved, beyond, APGD(2), APGD(20, loss="ce")):
        assert oks(selftest.nearest(norm, apgd=broken)) == [True, False]


class Loose:
    """A perceptual attack with a bound that allows too much."""

    def __call__(self, model, x, y, threat, noise):
        return PerceptualPGD(5, distance="mse", bound=0.1)(model, x, y, threat, noise)


def test_broken_attacks_with_other_bounds_fail_their_checks():
    short = {"unmoved": unmoved, "downhill": downhill, "beyond": beyond}
    assert oks(selftest_attacks.sparse(attacks=short)) == [False] * 3
    assert oks(selftest_attacks.perceptual()) == [True]
    for broken in (unmoved, Loose(), PerceptualPGD(2, distance="mse", bound=1e-5)):
        assert oks(selftest_attacks.perceptual(attack=broken)) == [False]
    few = {"deepfool": DeepFool(1, targets=1, overshoot=0.5), "wagner": CarliniWagner(5, 1)}
    assert oks(selftest_attacks.boundaries(**few)) == [False] * 3
    tight = LowFrequency(60, distance="mse", bound=1e-5)
    for broken in (unmoved, tight):
        assert oks(selftest_attacks.low_frequency(attack=broken)) == [False]
    assert oks(selftest_attacks.per_step_gradient()) == [True]


def test_wrong_per_step_gradient_fails_its_check(monkeypatch):
    monkeypatch.setattr(selftest_attacks, "per_step", lambda model, weight: model)
    assert oks(selftest_attacks.per_step_gradient()) == [False]


def as_coins(rates, draws):
    """A wrong interval that treats each draw as a separate image."""
    return wilson(round(sum(rates) * draws), len(rates) * draws)


def wide(rates, draws):
    return Share(sum(rates) / len(rates), 0.0, 1.0)


def test_wrong_interval_of_a_mean_rate_fails_the_coverage_checks(monkeypatch):
    monkeypatch.setattr(selftest, "RUNS", 100)
    assert oks(selftest.images_cover()) == [True]
    assert oks(selftest.coin_covers(0.7)) == [True, True, True]
    monkeypatch.setattr(summary, "mean_rate_interval", as_coins)
    assert oks(selftest.images_cover()) == [False]
    monkeypatch.setattr(summary, "mean_rate_interval", wide)
    assert oks(selftest.coin_covers(0.7)) == [False, True, True]


def test_wrong_interval_of_one_share_fails_the_coverage_checks(monkeypatch):
    def wald(hits, total):
        half = 1.96 * (hits / total * (1 - hits / total) / total) ** 0.5
        return Share(hits / total, hits / total - half, hits / total + half)

    assert oks(selftest.wilson_covers()) == [True]
    monkeypatch.setattr(selftest, "wilson", wald)
    assert oks(selftest.wilson_covers()) == [False]
    monkeypatch.setattr(selftest, "RUNS", 100)
    monkeypatch.setattr(summary, "wilson", lambda hits, total: Share(hits / total, 0.4, 0.5))
    assert oks(selftest.coin_covers(0.7)) == [True, False, False]


def test_verdict_by_one_wrong_draw_fails_the_coin_check(monkeypatch):
    """A common rule counts an image as broken as soon as one of several draws is wrong."""
    assert oks(selftest.coin_holds(0.9, attacks=FEW)) == [True, True, True]
    real = draw_caller.predict_draws

    def unlucky(model, x, noise, draws, first=0):
        tried = torch.stack([real(model, x, noise.child(i), draws, first) for i in range(3)])
        return tried.amax(0)  # the correct class is 0

    monkeypatch.setattr(draw_caller, "predict_draws", unlucky)
    assert oks(selftest.coin_holds(0.9, attacks=FEW)) == [False, False, False]


def test_missing_doubt_about_a_saturated_gradient_fails_its_check(monkeypatch):
    monkeypatch.setattr(selftest, "IMAGES", 16)
    monkeypatch.setattr(selftest, "EFFORT", QUICK)
    assert oks(selftest.saturated()) == [True] * 4
    monkeypatch.setattr(summary, "all_doubts", lambda *_, **__: [])
    assert oks(selftest.saturated()) == [True, True, True, False]


def test_masked_gradient_is_bypassed_by_other_attacks_and_doubted(monkeypatch):
    monkeypatch.setattr(selftest, "IMAGES", 16)
    monkeypatch.setattr(selftest, "EFFORT", QUICK)
    checks = list(selftest.rounded())
    assert oks(checks) == [True] * 5
    assert checks[0].truth < 0.5


def quick(device: str):
    return [
        selftest.wilson_covers,
        lambda: selftest.noisy_plane("linf", {"PGD": PGD(5, 4)}, device),
    ]


def test_command_prints_a_table_and_writes_only_to_the_given_folder(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "jobs", quick)
    assert run(["selftest", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "All 2 checks passed" in told
    assert "plane behind noise" in told
    assert not list(elsewhere.iterdir())
    assert run(["selftest", "--quiet", "--out", "made"]) == 0
    made = elsewhere / "made"
    assert {path.name for path in made.iterdir()} == {
        "selftest.json",
        "selftest.md",
        "selftest.html",
        "selftest.png",
    }
    table = json.loads((made / "selftest.json").read_text())
    assert table["ok"] is True
    assert [check["ok"] for check in table["checks"]] == [True, True]
    assert "| plane behind noise | PGD, linf | 59.5 % |" in (made / "selftest.md").read_text()
    assert (made / "selftest.png").read_bytes().startswith(b"\x89PNG")


def test_command_fails_if_a_check_fails(elsewhere, monkeypatch, capsys):
    broken = [lambda: selftest.noisy_plane("linf", {"mine": unmoved})]
    monkeypatch.setattr(selftest, "jobs", lambda device: broken)
    assert run(["selftest", "--quiet"]) == 1
    told = capsys.readouterr().out
    assert "FAILED" in told
    assert "1 of 1 checks FAILED: do not believe" in " ".join(told.split())


def test_nan_does_not_pass_a_check():
    check = selftest.Check("a", "b", "accuracy", 0.5, float("nan"), 0.4, 0.6)
    assert not check.ok
    assert "FAILED" in headline([check])


def test_invalid_options_are_refused_in_one_line(elsewhere, capsys):
    assert run(["selftest", "--device", "abacus"]) == 2
    assert "'abacus' is not available" in capsys.readouterr().err
    (elsewhere / "file").write_text("")
    assert run(["selftest", "--out", "file"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_number_of_jobs_covers_every_attack_and_norm():
    against_noise = 2 * len(selftest.AGAINST_NOISE) - 1  # Square is not run under l2
    assert len(selftest.jobs("cpu")) == 2 + 2 * len(selftest.COINS) + against_noise + 4 + 5


@pytest.mark.slow
def test_full_selftest_passes(elsewhere):
    assert run(["selftest", "--device", "cpu", "--quiet"]) == 0
