"""Tests of the forecast: the calls that a run will make, and the images that fit a budget."""

import json
import time
from typing import Any

import pytest
import torch

from unfool.cli.main import run
from unfool.diffusion.gradient import keep_graphs
from unfool.evaluation.call_cost import CALLS, TimedCalls
from unfool.evaluation.dry_run import Call, dry_run
from unfool.evaluation.forecast import forecast, plan, quick_forecast, seconds_of
from unfool.evaluation.prepare import prepare
from unfool.evaluation.spec import check
from unfool.results.run_folder import Run
from unfool.spec import load
from whole_run import CERTIFICATION, manifest

SMALL = ["purifier.steps=3", "evaluation.draws=3", "evaluation.images=4", "evaluation.examples=1"]
ATTACKS = [
    "{name: pgd, view: classifier-only, steps: 3}",
    "{name: pgd, label: restarts, steps: 2, eot: 2, restarts: 2}",
    "{name: pgd, view: bpda, steps: 2}",
    "{name: pgd, view: {name: surrogate, steps: 2}, steps: 2}",
    "{name: apgd, steps: 4, eot: 2, loss: margin}",
    "{name: pgd, knows: both, steps: 2}",
    "{name: pgd, view: per-step, steps: 2}",
    "{name: square, queries: 5}",
    "{name: random-search, tries: 2}",
    "{name: transfer, source: bayes, attack: {name: pgd, steps: 3}}",
]
EXACT = {
    "attacks": [f"attacks=[{', '.join(ATTACKS)}]"],
    "no attack": ["attacks=[]"],
    "no defense": ["purifier=null", "attacks=[{name: fab, steps: 2}]"],
    "paths": ["paths={count: 2, by: softmax}"],
    "guided": ["purifier={name: coup, t: 0.1, steps: 3}"],
}


def command(*changes: str, out: str = "run") -> list[str]:
    sets = [word for change in [*SMALL, *changes] for word in ("--set", change)]
    return ["evaluate", "blobs", "--out", out, "--quiet", *sets]


def took(folder) -> dict[str, float]:
    outcomes = Run.open(folder).outcomes()
    return {key: sum(o.cost.get(key, 0) for o in outcomes) for key in CALLS}


@pytest.mark.parametrize("changes", EXACT.values(), ids=EXACT)
def test_forecast_calls_equal_those_of_the_run(elsewhere, changes):
    with keep_graphs(0):  # kept graphs would save an unpredictable number of calls
        told = forecast(check(load("blobs", [*SMALL, *changes])))
        assert run(command(*changes)) == 0
    assert not told.is_upper_bound
    found = took(elsewhere / "run")
    assert sum(found.values()) > 0
    assert {key: told.total.calls.get(key, 0) for key in CALLS} == pytest.approx(found)


def test_forecast_includes_the_time_of_the_source_of_a_transfer_attack():
    source = "{name: transfer, label: t, source: bayes, attack: {name: pgd, steps: 3, eot: 2}}"
    spec = check(load("blobs", [*SMALL, f"attacks=[{source}]"]))
    told = forecast(spec, prepared=(prepared := prepare(spec)))
    assert told.per_image["t"].seconds > 0
    assert not any(told.per_image["t"].calls.values()), "these are calls of the model"
    dry = dry_run(spec, prepared, 256)
    assert dry.calls["t"][Call("source of t: classifier", "gradient")] == 3 * 2


@pytest.mark.parametrize(
    ("attack", "near"),
    [
        ("{name: pgd, steps: 4, eot: 2, loss: margin, early_stop: 4}", 0.1),
        # on 12 images each, the attack of a cascade that breaks an image varies more
        ("{name: autoattack, steps: 2, eot: 1, draws: 4, queries: 10}", 0.2),
    ],
)
def test_forecast_of_early_stops_is_an_upper_bound_that_partial_runs_tighten(
    elsewhere, attack, near
):
    changes = [
        f"attacks=[{{name: pgd, view: classifier-only, steps: 3}}, {attack}]",
        "evaluation.skip_broken=true",
        "purifier.steps=2",
        "threat.eps=0.2",
        "evaluation.images=24",
        "machine.images_per_block=12",
    ]
    with keep_graphs(0):
        told = forecast(check(load("blobs", [*SMALL, *changes])))
        assert run([*command(*changes), "--shard", "0/2"]) == 0
        again = plan(check(load("blobs", [*SMALL, *changes])), elsewhere / "run", None)[1]
        assert run(command(*changes)) == 0
    all_calls = sum(took(elsewhere / "run").values())
    assert told.is_upper_bound
    assert again is not None
    assert all_calls < sum(told.total.calls.values())
    assert sum(again.total.calls.values()) == pytest.approx(all_calls, rel=near)


def test_dry_run_reports_the_cost_and_runs_nothing(elsewhere, capsys):
    assert run([*command(), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 images: " in said
    assert "network calls" in said
    assert "pgd-exact" in said
    assert not (elsewhere / "run" / "outcomes").exists()
    assert run(command()) == 0
    report = json.loads((elsewhere / "run" / "report.json").read_text())
    assert report["forecast"]["images"] == 4
    assert "forecast, calls" in (elsewhere / "run" / "report.md").read_text()


def test_run_keeps_the_forecast_from_before_it_began(elsewhere, capsys):
    """Otherwise a run would be compared with a forecast made from its own images."""
    falls = command("attacks=[{name: pgd, steps: 1, early_stop: 2}]", "threat.eps=0.2")
    assert run([*falls, "--dry-run"]) == 0
    first = (elsewhere / "run" / "forecast.json").read_text()
    assert run([*falls, "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert run([*falls, "--dry-run"]) == 0
    assert "by the 2 done" in capsys.readouterr().out
    assert (elsewhere / "run" / "forecast.json").read_text() == first


def test_no_trial_is_larger_than_the_largest_call_of_the_run():
    spec = check(
        load("blobs", [*SMALL, "machine.images_per_block=2", "attacks=[{name: pgd, eot: 5}]"])
    )
    assert forecast(spec).batch_size == 2 * 5
    assert forecast({**spec, "machine": {**spec["machine"], "batch_size": 8}}).batch_size == 8


def test_forecast_uses_a_smaller_trial_if_memory_runs_out(monkeypatch):
    spec = check(load("blobs", SMALL))
    made = prepare(spec)
    plain = forecast(spec, prepared=made)
    defended: Any = made.model
    purify, classify = defended.purifier.forward, defended.classifier.forward

    def crowded(inner):
        def call(x, *others):
            if len(x) > 5:
                raise torch.OutOfMemoryError("there is no room")
            return inner(x, *others)

        return call

    monkeypatch.setattr(defended.purifier, "forward", crowded(purify))
    monkeypatch.setattr(defended.classifier, "forward", crowded(classify))
    told = forecast(spec, prepared=made)
    assert told.batch_size == 4 < plain.batch_size
    assert told.total.calls == plain.total.calls


def test_initial_time_estimate_ignores_a_slow_first_call(monkeypatch):
    spec = check(load("blobs", [*SMALL, "attacks=[]"]))
    made = prepare(spec)
    defended: Any = made.model
    purify, calls = defended.purifier.forward, []

    def slow_at_first(*given):
        calls.append(given)
        time.sleep(0.2 if len(calls) < 3 else 0)  # the first call is the rehearsal
        return purify(*given)

    monkeypatch.setattr(defended.purifier, "forward", slow_at_first)
    told = quick_forecast(spec, made, 8)
    assert told is not None
    assert told.seconds["verdict"] < 0.2


def test_initial_time_estimate_applies_to_large_calls_and_is_quick(monkeypatch):
    """A call with one image takes ten times as long as an image in a large call."""
    spec = check(load("blobs", [*SMALL, "attacks=[]", "evaluation.draws=8"]))
    made = prepare(spec)
    defended: Any = made.model
    slept = []

    def slow(x, noise):
        slept.append(0.05 + 0.005 * len(x))
        time.sleep(slept[-1])
        return (x + 0.01 * noise.normal(x)).clamp(0, 1)

    monkeypatch.setattr(defended.purifier, "forward", slow)
    told = quick_forecast(spec, made, 256)
    assert told is not None
    call = 0.05 + 0.005 * 256  # 32 images at 8 draws each
    assert call / 32 / 2 < told.seconds["verdict"] < call / 32 * 2
    assert sum(slept) < 1


def test_time_of_a_large_call_is_extrapolated_from_two_smaller_ones():
    def timed(seconds, most, **options):
        made: list[int] = []

        def make(size):
            made.append(size)
            return seconds(size), {"nfe_forward": 1.0}

        return TimedCalls(make, most, **options, patience=7.0), made

    calls, made = timed(lambda n: 0.1 + 0.01 * n, 256)
    assert calls.seconds_per_image == pytest.approx(0.11)
    assert calls.fits(0.22), "of few images, four take far less than four times as long"
    assert not calls.fits(0.21)
    calls.grow()
    assert made == [1, 1, 4], "the first call makes things ready"
    assert calls.seconds_per_image == pytest.approx((0.1 + 0.01 * 256) / 256)
    assert calls.fits(0.27)
    assert not calls.fits(0.25)

    none, made = timed(lambda n: 8.0, 256)
    assert made == [1], "what takes longer than patience is not repeated"
    assert not none.fits(1000)

    held = iter([0.1, 0.1, 5.0, 0.2])
    calls, made = timed(lambda n: next(held), 4)
    calls.grow()
    assert calls.seconds(4) == 0.2, "a call that was held up is repeated"
    assert not calls.fits(1000), "no call of the run is larger"


def test_dry_run_reports_how_much_of_a_begun_run_is_done(elsewhere, capsys):
    assert run([*command(), "--shard", "0/2"]) == 0
    for more in ([], ["--budget", "1h"]):
        capsys.readouterr()
        assert run([*command(), "--dry-run", *more]) == 0
        said = capsys.readouterr().out
        assert "with 4 images, of which 2 are done" in said


@pytest.mark.parametrize(
    "changes",
    [
        ["evaluation.images=null", "data.size=4"],
        ["classifier={name: diffusion, denoiser: mixture, draws: 2, span: [0.1, 0.9]}"],
    ],
    ids=["all images", "an option that is a tuple"],
)
def test_begun_run_is_recognized_by_its_spec(elsewhere, capsys, changes):
    asked = [*command(*changes, "attacks=[]"), "--shard", "0/2"]
    assert run(asked) == 0
    assert run([*command(*changes, "attacks=[]"), "--dry-run"]) == 0
    assert "with 4 images, of which 2 are done" in capsys.readouterr().out


def test_folder_of_another_kind_is_not_a_begun_run(elsewhere, capsys):
    Run.begin(elsewhere / "run", manifest([0]) | {"kind": "certification", "spec": CERTIFICATION})
    assert run([*command("attacks=[]"), "--dry-run"]) == 0
    assert "was begun" not in capsys.readouterr().out


def test_budget_chooses_the_images_and_a_begun_run_keeps_them(elsewhere, capsys):
    least = ["evaluation.images=9", "machine.images_per_block=2"]
    assert run([*command(*least), "--budget", "0.001s"]) == 0
    assert Run.open(elsewhere / "run").spec["evaluation"]["images"] == 2
    assert "2 images (as many as fit into 0.001s" in capsys.readouterr().out
    assert run([*command(*least), "--budget", "9h"]) == 0
    assert len(Run.open(elsewhere / "run").outcomes()) == 2, "it goes on as it was begun"
    assert run([*command(*least, out="other"), "--budget", "9h"]) == 0
    assert len(Run.open(elsewhere / "other").outcomes()) == 9


def test_forecast_uses_auto_batch_size_and_the_execution_mode(monkeypatch):
    monkeypatch.setattr("unfool.evaluation.forecast.DRY_RUN", 0.01)
    quick = ["purifier.steps=1", "attacks=[{name: pgd, steps: 1}]", "evaluation.images=2"]
    spec = check(
        load("demo", [*quick, "machine.batch_size=auto", "machine.execution=channels_last"])
    )
    made = prepare(spec)
    told = forecast(spec, prepared=made)
    assert 1 <= told.batch_size <= 256
    defended: Any = made.model
    weights = [p for p in defended.purifier.denoiser.network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_budget_must_be_a_time_and_excludes_shards(mistake):
    assert [seconds_of(word) for word in ("2h", "30m", "45s", "1h30m")] == [7200, 1800, 45, 5400]
    assert "2h, 30m, or 45s" in mistake("evaluate", "blobs", "--budget", "soon")
    assert "--set evaluation.images=" in mistake(
        "evaluate", "blobs", "--budget", "1h", "--shard", "0/2"
    )
