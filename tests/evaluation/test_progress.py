"""Tests of progress: the time left is shown from the start, and counts each step of an attack."""

import re

import pytest

from unfool.attacks.views import Batched
from unfool.cli.main import run
from unfool.data import fetch
from unfool.evaluation.attack_runner import AttackRunner
from unfool.evaluation.block_progress import BlockProgress, Expected
from unfool.evaluation.forecast import quick_forecast
from unfool.evaluation.prepare import prepare
from unfool.evaluation.spec import check
from unfool.runtime import progress
from unfool.runtime.progress import TimeLeft, ticking
from unfool.spec import load
from unfool.threat import Threat

STEPS, IMAGES = 6, 4
CHANGES = [
    f"attacks=[{{name: pgd, steps: {STEPS}, eot: 2, loss: margin}}]",
    f"evaluation.images={IMAGES}",
    "evaluation.draws=2",
    "purifier.steps=2",
    "machine.device=cpu",
]
LINE = re.compile(r"images: (\d+)/(\d+), (\d+) s left  (.*)")


def words(command, *changes):
    sets = [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    return [command, "blobs", "--out", "out", *sets]


@pytest.mark.parametrize("command", ["evaluate", "attack"])
def test_run_of_a_single_block_shows_the_time_left_before_it_is_done(
    elsewhere, capsys, monkeypatch, command
):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert run(words(command)) == 0
    lines = [LINE.search(line) for line in capsys.readouterr().err.splitlines()]
    assert all(lines), "each line says how many, and the time left"
    told = [(int(line[1]), line[4]) for line in lines if line]
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == IMAGES
    assert sum(what == "pgd-exact" for _, what in told) > STEPS
    assert len(told) - told.index((done[-1], told[-1][1])) == 1, (
        "all are done in the last line alone"
    )


def test_resumed_run_counts_the_images_that_are_done(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert run([*words("evaluate"), "--quiet", "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert run(words("evaluate")) == 0
    assert "images: 2/4, " in capsys.readouterr().err.splitlines()[0]


def test_quiet_runs_print_nothing(elsewhere, capsys):
    assert run([*words("evaluate"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_work_of_a_run_equals_the_forecast():
    """An attack that always takes all its steps makes exactly the forecast calls of the model."""
    spec = check(load("blobs", CHANGES))
    made = prepare(spec)
    told = quick_forecast(spec, made, 256)
    assert told is not None
    assert min(told.seconds["pgd-exact"], told.seconds["verdict"]) > 0
    x, y = fetch(made.data, made.indices)
    threat = Threat(**spec["threat"])
    search = AttackRunner(Batched(made.model, 3), made.attacks, threat, 0, 2, False)
    work: list[float] = []
    with ticking(work.append):
        for name, _ in search.versions(x, y, made.indices):
            assert sum(work) == IMAGES * told.ticks[name], name
            work.clear()
    assert told.ticks["pgd-exact"] > STEPS * 2 * 3


def test_progress_within_a_block_is_weighted_by_expected_time():
    shown: list[tuple[float, str]] = []
    told = Expected(
        {"clean": 0.0, "pgd": 3.0, "verdict": 1.0}, {"clean": 0, "pgd": 10, "verdict": 5}
    )
    block = BlockProgress(
        lambda now, words: shown.append((now, words)), 8, 2, ["clean", "pgd"], told
    )
    block.next()
    block.tick(10)  # half of the work of two images
    block.tick(100)  # more than was expected
    block.next()
    block.tick(5)
    assert shown == [
        (8, "pgd"),
        (8 + 2 * 3 / 8, "pgd"),
        (8 + 2 * 3 / 4, "pgd"),
        (8 + 2 * 3 / 4, "results"),
        (8 + 2 * 7 / 8, "results"),
    ]


@pytest.mark.parametrize(("each", "took"), [(2.0, 200.0), (200.0, 2.0), (0.001, 50.0)])
def test_time_left_starts_at_the_forecast_and_follows_the_measured_time(monkeypatch, each, took):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    left = TimeLeft(total=10, seconds_per_unit=each, began=0.0)
    assert left.after(0) == pytest.approx(10 * each)
    now[0] = 5 * took
    assert left.after(5) == pytest.approx(5 * took, rel=0.6)
    assert left.after(10) == 0


def test_time_left_is_unknown_until_work_was_measured(monkeypatch):
    left = TimeLeft(total=10, done=2)
    assert left.after(2) is None
    left.began -= 6
    assert left.after(4) == pytest.approx(18, rel=0.1)
