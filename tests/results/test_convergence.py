"""Verdicts on the convergence of sweeps, from outcomes with known accuracy."""

from typing import Any

import numpy as np
import pytest

from unfool.results.outcome import Condition, Outcome
from unfool.results.report_json import share_entry
from unfool.results.run_folder import Run
from unfool.results.summary import judge
from unfool.results.sweep.cell import Cell
from unfool.results.sweep.convergence import describe, sweep_doubts, verdicts
from unfool.statistics import paired_difference_interval
from whole_run import manifest

K = 4


def a_cell(folder, right, clean=None, **changed):
    """Make a cell of a sweep in which image i has `right[i]` of 4 draws right under attack."""
    attack = {"name": "pgd", "label": "pgd", "steps": 10, "eot": 1, "view": "exact"}
    spec: Any = {
        "attacks": [attack | {k: v for k, v in changed.items() if k in attack}],
        "threat": {"norm": changed.get("norm", "linf"), "eps": changed.get("eps", 0.1)},
        "purifier": {"name": "diffpure", "steps": changed.get("own", 5)},
    }
    paths = {"own": "purifier.steps", "eps": "threat.eps"}
    values = {paths.get(k, f"attacks.0.{k}"): str(v) for k, v in changed.items() if k != "norm"}
    told = {"shape": [1, 2, 2], "identity": str(values)}
    run = Run.begin(folder, manifest(range(len(right)), spec, **told))
    clean = clean or [K] * len(right)

    def condition(hits):
        return Condition([0] * hits + [1] * (K - hits), None, 0.1, 0.0)

    outcomes = [
        Outcome(
            i,
            0,
            dict.fromkeys(("clean", "random"), condition(c)) | {"pgd": condition(r)},
            "pgd",
            0,
            {},
        )
        for i, (r, c) in enumerate(zip(right, clean, strict=True))
    ]
    run.add(outcomes, {})
    shares = share_entry(judge("robust", outcomes, lambda o: o.conditions["pgd"]).per_draw)
    summary: Any = {
        "attacks": [1],
        "clean": {"k": K},
        "robust": {"per_draw": shares},
        "number_of_classes": 10,
    }
    return Cell(values, spec), run, summary


@pytest.fixture
def sweep(tmp_path):
    def make(*cells):
        return [a_cell(tmp_path / str(i), **cell) for i, cell in enumerate(cells)]

    return make


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ([2] * 100, "plateau"),
        ([1] * 50 + [2] * 50, "falling"),
        ([3] * 50 + [2] * 50, "rising"),
        ([1] * 20 + [2] * 60 + [3] * 20, "undecided"),
    ],
)
def test_verdict_on_steps_compares_the_two_largest_values(sweep, late, said):
    done = sweep(
        {"right": [4] * 100, "steps": 5},
        {"right": late, "steps": 40},
        {"right": [2] * 100, "steps": 20},
    )
    (found,) = verdicts(done)
    assert (found.values, found.accuracy, found.verdict) == (("20", "40"), "robust", said)
    assert found.change.mean == pytest.approx(np.mean(late) / K - 0.5)
    doubts = list(sweep_doubts([found]))
    assert [doubt.name for doubt in doubts] == (
        ["not-converged"] if said in ("falling", "rising") else []
    )


def test_few_images_are_undecided_even_if_none_changes(sweep):
    done = sweep({"right": [2] * 8, "steps": 5}, {"right": [2] * 8, "steps": 10})
    assert verdicts(done)[0].verdict == "undecided"


def test_only_the_strongest_rows_of_a_grid_are_judged(sweep):
    cells = [
        {"right": [hits] * 100, "steps": steps, "eot": eot}
        for (steps, eot), hits in {(5, 1): 4, (10, 1): 2, (5, 8): 2, (10, 8): 2}.items()
    ]
    found = verdicts(sweep(*cells))
    assert [(v.path, v.at, v.verdict) for v in found] == [
        ("attacks.0.steps", {"attacks.0.eot": "8"}, "plateau"),
        ("attacks.0.eot", {"attacks.0.steps": "10"}, "plateau"),
    ]


def test_purifier_steps_are_judged_by_clean_and_robust_accuracy(sweep):
    done = sweep(
        {"right": [2] * 100, "own": 5}, {"right": [2] * 100, "clean": [3] * 100, "own": 10}
    )
    assert [(v.accuracy, v.verdict) for v in verdicts(done)] == [
        ("clean", "falling"),
        ("robust", "plateau"),
    ]


@pytest.mark.parametrize(
    ("hits", "norm", "eps", "said"),
    [
        (1, "linf", 0.5, "stays above"),
        (0, "linf", 0.5, "reaches guessing"),
        (1, "linf", 0.4, "budget too small"),
        (1, "l2", 1.0, "stays above"),  # 0.5 * sqrt(4), as an image has 4 values
        (1, "l2", 0.9, "budget too small"),
    ],
)
def test_verdict_on_eps_compares_accuracy_with_guessing(sweep, hits, norm, eps, said):
    done = sweep(
        {"right": [2] * 60, "eps": 0.1, "norm": norm},
        {"right": [hits] * 60, "eps": eps, "norm": norm},
    )
    (found,) = verdicts(done)
    assert found.verdict == said
    doubts = list(sweep_doubts([found]))
    assert [d.name for d in doubts] == ["accuracy-does-not-reach-zero"] * (said == "stays above")
    assert all(describe(found) in doubt.why for doubt in doubts)


def test_paired_interval_covers_the_true_change():
    """Each image has 4 draws and a random success rate, which falls by a tenth: by 0.05 on average."""
    source = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        rate = source.uniform(0, 1, 40)
        shared = source.uniform(0, 1, (40, K))  # both conditions share the draws
        gaps = ((shared < rate[:, None] * 0.9).mean(1)) - ((shared < rate[:, None]).mean(1))
        found = paired_difference_interval(list(gaps), K)
        covered += found.low <= -0.05 <= found.high
    assert covered / 400 > 0.93
