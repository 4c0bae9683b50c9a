"""Pooling of cells that differ only in seeds: an image counts once, however many seeds chose it."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from unfool.results.outcome import Condition, Outcome
from unfool.results.report_json import share_entry
from unfool.results.run_folder import Run
from unfool.results.sweep.cell import Cell
from unfool.results.sweep.seed_pooling import Pooled, pool
from unfool.statistics import mean_rate_interval
from whole_run import manifest

ROWS = [
    {"name": "pgd", "view": "exact", "label": "a"},
    {"name": "pgd", "view": "exact", "label": "b"},
    {"name": "pgd", "view": "exact", "label": "DW-box", "knows": "both"},
]
SUBSET, SEED = "evaluation.subset_seed", "evaluation.seed"


def outcome(index: int, clean: list[int], chosen: str = "a") -> Outcome:
    """Return an outcome of class 1 with these clean answers; of the attacks, only `a` leaves it right."""
    k = len(clean)
    draws = {"clean": clean, "random": [0] * k, "a": [1] * k, "b": [0] * k, "DW-box": [0]}
    made = {name: Condition(row, None, 0.0, 0.0) for name, row in draws.items()}
    return Outcome(index, 1, made, chosen, 0.0, {})


def cell(folder: Path, values: dict[str, str], outcomes: list[Outcome]) -> tuple[Cell, Run]:
    spec: Any = {
        "attacks": ROWS,
        "evaluation": {"draws": len(outcomes[0].conditions["clean"].draws)},
    }
    told = manifest([o.index for o in outcomes], spec, identity=str(values))
    run = Run.begin(folder / "-".join(values.values()), told)
    run.add(outcomes, {})
    return Cell(values, run.spec), run


def both(folder: Path, path: str, first: dict[int, list[int]], second: dict[int, list[int]]):
    """Pool two cells that differ in one seed; each maps its images to their clean answers."""
    (found,) = pool(
        [
            cell(folder, {"purifier.t": "0.1", path: seed}, [outcome(*row) for row in rows.items()])
            for seed, rows in (("0", first), ("1", second))
        ]
    )
    return found


def interval(found: Pooled) -> tuple[float, float]:
    return found.shares["clean"]["low"], found.shares["clean"]["high"]


def test_image_in_two_subsets_counts_once(tmp_path):
    half, right, wrong = [1, 0], [1, 1], [0, 0]
    found = both(tmp_path, SUBSET, {0: right, 1: half, 2: wrong}, {1: half, 2: wrong, 3: right})
    assert (found.values, found.runs, found.images) == ({"purifier.t": "0.1"}, 2, 4)
    # The mean over images is (1 + 1/2 + 0 + 1) / 4, not (1 + 1/2 + 0 + 1/2 + 0 + 1) / 6.
    assert found.shares["clean"]["accuracy"] == pytest.approx(2.5 / 4)
    # The variance 11/64 is shrunk toward a coin's 15/64 as if by four more images, to 13/64. So each
    # image is worth 15/13 coins, and Wilson's interval is that of 60/13 trials.
    n, p, z = 60 / 13, 0.625, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = (middle - half_width, middle + half_width)
    assert interval(found) == pytest.approx(expected, abs=1e-6)


def test_repeated_images_do_not_narrow_the_interval(tmp_path):
    rows = {i: [i % 2, 1] for i in range(8)}
    once = mean_rate_interval([fmean(row) for row in rows.values()], 2)
    assert interval(both(tmp_path, SUBSET, rows, rows)) == (once.low, once.high)


def test_other_noise_on_the_same_images_counts_as_more_draws(tmp_path):
    found = both(tmp_path, SEED, {5: [1, 1], 6: [1, 0]}, {5: [0, 0], 6: [1, 1]})
    assert found.images == 2
    assert found.shares["clean"] == share_entry(mean_rate_interval([0.5, 0.75], 4))


def test_repeated_measurement_does_not_outweigh_other_noise(tmp_path):
    grid = {("0", "0"): [1, 1], ("1", "0"): [1, 1], ("0", "1"): [0, 0]}
    (found,) = pool(
        [
            cell(tmp_path, {SUBSET: subset, SEED: seed}, [outcome(7, draws)])
            for (subset, seed), draws in grid.items()
        ]
    )
    assert (found.values, found.runs, found.images) == ({}, 3, 1)
    assert found.shares["clean"]["accuracy"] == 0.5  # not 2/3, the mean over the runs


def test_images_from_another_data_seed_are_other_images(tmp_path):
    assert both(tmp_path, "data.seed", {0: [1]}, {0: [1]}).images == 2


def test_cells_that_differ_in_more_than_seeds_are_not_pooled(tmp_path):
    cells = [cell(tmp_path, {"t": t, SUBSET: "0"}, [outcome(0, [1, 1])]) for t in ("1", "2")]
    assert [each.values for each in pool(cells)] == [{"t": "1"}, {"t": "2"}]


def test_every_condition_is_pooled_and_robust_uses_the_chosen_attack(tmp_path):
    rows = [outcome(0, [1, 1], "a"), outcome(1, [1, 1], "b")]
    (found,) = pool([cell(tmp_path, {SUBSET: "0"}, rows)])
    accuracy = {name: share["accuracy"] for name, share in found.shares.items()}
    assert accuracy == {"clean": 1, "a": 1, "b": 0, "robust": 0.5, "DW-box": 0}
    assert list(accuracy) == ["clean", "a", "b", "robust", "DW-box"]
