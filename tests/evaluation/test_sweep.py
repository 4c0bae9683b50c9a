"""Tests of sweeps: every combination is a separate run, done once, and all are reported together."""

import json

import pytest
import yaml

from unfool import spec as specs
from unfool.cli.main import run
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.evaluation import sweep as sweeps
from unfool.report.document import Document, Table
from unfool.report.figures.sweep import Point, figure
from unfool.report.formatting import cell as share_of
from unfool.report.render_markdown import to_markdown
from unfool.report.sweep import write_report
from unfool.results.run_folder import Run
from unfool.results.sweep.seed_pooling import pool

SPEC = {
    "data": {"name": "blobs", "size": 40},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": {"name": "diffpure", "sampler": "ddpm", "t": 0.05, "steps": 5},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [],
    "evaluation": {"images": 6, "draws": 2, "examples": 0},
    "sweep": {"purifier.t": [0.005, 0.01], "purifier.steps": [2, 10]},
}


def test_every_combination_becomes_a_checked_spec():
    cells = sweeps.check(specs.load(SPEC))
    assert [cell.values for cell in cells] == [
        {"purifier.t": t, "purifier.steps": n} for t in ("0.005", "0.01") for n in ("2", "10")
    ]
    assert [cell.spec.get("purifier", {}).get("t") for cell in cells] == [0.005, 0.005, 0.01, 0.01]
    assert "sweep" not in cells[0].spec


def test_parts_are_labeled_by_their_name_or_weights():
    assert sweeps.name_of({"name": "trained", "weights": "a/cifar10-wrn"}) == "cifar10-wrn"
    assert sweeps.name_of({"name": "cifar-resnet", "depth": 56}) == "cifar-resnet"
    assert sweeps.name_of(0.1) == "0.1"
    named = {"label": "slow", "name": "diffpure", "steps": 20}
    (cell,) = sweeps.check(specs.load(SPEC | {"sweep": {"purifier": [named]}}))
    assert cell.values == {"purifier": "slow"}
    assert cell.spec.get("purifier", {}).get("steps") == 20


def test_command_writes_the_report_and_lists_refused_runs(elsewhere, capsys):
    (elsewhere / "s.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    assert run(["sweep", "s.yaml", "--out", "made", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert (
        "2/4  purifier.t 0.005, purifier.steps 10: purifier diffpure: steps must be at most 5"
        in said
    )
    why = "not run: purifier.t 0.005, purifier.steps 10: purifier diffpure: steps must be at most 5"
    assert f"- {why}" in said
    assert f"- {why}" in (elsewhere / "made" / "sweep.md").read_text()
    told = json.loads((elsewhere / "made" / "sweep.json").read_text())
    assert [cell["values"]["purifier.steps"] for cell in told["cells"]] == ["2", "2", "10"]
    assert [each[:9] for each in told["failed"]] == ["purifier."]
    for cell in told["cells"]:
        summary, steps = cell["summary"], int(cell["values"]["purifier.steps"])
        assert summary["n"] == 6
        # only two draws of clean images: without an attack, there is no control and no probe
        assert summary["cost"]["nfe_forward"] == 6 * 2 * steps
        assert "random" not in summary
    page = (elsewhere / "made" / "sweep.html").read_text()
    assert "<svg" in page
    for name in ("sweep.md", "sweep.png"):
        assert (elsewhere / "made" / name).stat().st_size


def test_reports_are_rewritten_only_if_their_runs_change(elsewhere, capsys):
    (elsewhere / "s.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    again = ["sweep", "s.yaml", "--out", "made", "--quiet"]
    assert run(again) == 0
    said = capsys.readouterr().out
    pages = sorted((elsewhere / "made" / "cells").glob("*/report.html"))
    then = [page.stat().st_mtime_ns for page in pages]
    assert run(again) == 0
    assert capsys.readouterr().out == said
    assert [page.stat().st_mtime_ns for page in pages] == then
    pages[0].unlink()
    assert run([*again, "--set", "evaluation.images=7"]) == 0
    assert all(page.stat().st_mtime_ns > old for page, old in zip(pages, then, strict=True))


def test_dry_run_shows_the_remaining_work_of_each_run(elsewhere, capsys):
    (elsewhere / "s.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    cells = sweeps.check(specs.load(SPEC))
    before = [left for _, left in sweeps.forecasts(cells, elsewhere / "made")]
    refused = [isinstance(left, ValueError) for left in before]
    assert refused == [False, True, False, False]  # 10 steps are too many for the smaller t
    assert [left.images for left in before if not isinstance(left, ValueError)] == [6, 6, 6]
    assert all(left.total.seconds > 0 for left in before if not isinstance(left, ValueError))
    command = ["sweep", "s.yaml", "--out", "made", "--quiet"]
    assert run([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4/4  purifier.t 0.01, purifier.steps 10: 6 images, " in said
    assert "3 runs: 18 images, " in said
    assert "steps must be at most 5" in said
    assert not (elsewhere / "made").exists()
    assert run(command) == 0
    after = [left for _, left in sweeps.forecasts(cells, elsewhere / "made")]
    assert [left.images for left in after if not isinstance(left, ValueError)] == [0, 0, 0]


def test_finished_runs_are_not_repeated(elsewhere, monkeypatch):
    cells = sweeps.check(specs.load(SPEC | {"sweep": {"purifier.t": [0.05, 0.06]}}))
    runs = sweeps.run(cells, elsewhere, quiet=True)
    next(runs)  # then the sweep stops
    assert len(sweeps.cells_with_outcomes(cells, elsewhere)) == 1
    kept = (
        next((sweeps.run_folder_of(elsewhere, cells[0]) / "outcomes").iterdir()).stat().st_mtime_ns
    )
    assert len(list(sweeps.run(cells, elsewhere, quiet=True))) == 2
    assert len(sweeps.cells_with_outcomes(cells, elsewhere)) == 2
    again = (
        next((sweeps.run_folder_of(elsewhere, cells[0]) / "outcomes").iterdir()).stat().st_mtime_ns
    )
    assert again == kept


def tables(document: Document) -> list[Table]:
    return [block for block in document.blocks if isinstance(block, Table)]


ATTACKERS = [
    {"name": "pgd", "label": "white box", "steps": 2, "eot": 2},
    {"name": "pgd", "label": "transfer", "view": "classifier-only", "steps": 2},
    {"name": "pgd", "label": "DW-box", "knows": "both", "steps": 2},
]


def test_every_attack_has_a_column_and_partial_runs_are_marked(elsewhere):
    table = SPEC | {"attacks": ATTACKERS, "sweep": {"purifier.t": [0.05, 0.06]}}
    cells = sweeps.check(specs.load(table))
    evaluation.run(cells[0].spec, sweeps.run_folder_of(elsewhere, cells[0]), quiet=True)
    evaluation.run(
        cells[1].spec, sweeps.run_folder_of(elsewhere, cells[1]), shard=(0, 3), quiet=True
    )
    done = sweeps.cells_with_outcomes(cells, elsewhere)
    (table,) = tables(write_report(elsewhere, done, 2, "unfool sweep s.yaml"))
    heads, (whole, half) = table.heads, table.rows
    names = ["clean", "white box", "transfer", "robust", "DW-box"]
    assert heads[:6] == ["purifier.t", *names]
    assert (whole[0], half[0]) == ("0.05", "0.06 (2 of 6 images)")
    summary = done[0][1]
    found = {
        row["name"]: row["robust"]["per_draw"]
        for row in summary["attacks"] + summary["known_noise"]
    }
    found |= {name: summary[name]["per_draw"] for name in ("clean", "robust")}
    assert whole[1:6] == [share_of(found[name]) for name in names]
    page = (elsewhere / "sweep.html").read_text()
    assert '<th scope="col">DW-box</th>' in page
    assert "2 of 2 combinations; 6 images and 2 held-out draws each." in page
    assert "know some of the noise" in page


def test_seeds_are_pooled_in_table_figure_and_json(elsewhere):
    axes = {"purifier.t": [0.05], "evaluation.subset_seed": [0, 1]}
    table = SPEC | {"attacks": ATTACKERS, "sweep": axes}
    table |= {"data": {"name": "blobs", "size": 8}, "purifier": SPEC["purifier"] | {"steps": 1}}
    cells = sweeps.check(specs.load(table))
    runs = [each for _, each in sweeps.run(cells, elsewhere, quiet=True) if isinstance(each, Run)]
    done = sweeps.cells_with_outcomes(cells, elsewhere)
    for (cell, summary), made in zip(
        done, runs, strict=True
    ):  # pooling a single run changes nothing
        (alone,) = pool([(cell, made)])
        found = {row["name"]: row["robust"]["per_draw"] for row in summary["attacks"]}
        found |= {row["name"]: row["robust"]["per_draw"] for row in summary["known_noise"]}
        found |= {name: summary[name]["per_draw"] for name in ("clean", "robust")}
        assert alone.shares == found
    pooled, _ = tables(write_report(elsewhere, done, 2, ""))
    told = json.loads((elsewhere / "sweep.json").read_text())["pooled"]
    places = [{o.index for o in made.outcomes()} for made in runs]
    distinct = len(places[0] | places[1])
    assert 6 < distinct <= 8  # each run takes 6 of 8 images, so at least 4 are shared
    (row,) = told
    assert (row["values"], row["runs"], row["images"]) == ({"purifier.t": "0.05"}, 2, distinct)
    names = ["clean", "white box", "transfer", "robust", "DW-box"]
    drawn = figure([Point(row["values"], row["shares"])], names, names[1:3]).png
    assert (elsewhere / "sweep.png").read_bytes() == drawn
    assert pooled.heads == ["purifier.t", *names, "runs", "distinct images"]
    shares = [share_of(row["shares"][name]) for name in names]
    assert pooled.rows == [["0.05", *shares, "2", str(distinct)]]
    page = (elsewhere / "sweep.html").read_text()
    assert "Accuracy over purifier.t, pooled over evaluation.subset_seed" in page
    assert f"2 runs and {distinct} distinct images in each row" in page


def test_report_says_that_intervals_exclude_the_seed_of_the_model(elsewhere):
    defense = {"name": "diffusion", "policy": "fixed", "draws": 2}
    table = {key: value for key, value in SPEC.items() if key not in ("denoiser", "purifier")}
    table |= {"classifier": defense | {"denoiser": "mixture"}, "sweep": {"classifier.seed": [0, 1]}}
    cells = sweeps.check(specs.load(table))
    assert len(list(sweeps.run(cells, elsewhere, quiet=True))) == 2
    text = to_markdown(write_report(elsewhere, sweeps.cells_with_outcomes(cells, elsewhere), 2, ""))
    assert "between other values of classifier.seed" in text
    assert "2 runs and 6 distinct images" in text
    assert (
        (elsewhere / "sweep.md").read_text().startswith("# Accuracy, pooled over classifier.seed")
    )


def test_single_attack_is_shown_in_the_robust_column_only(elsewhere):
    table = SPEC | {"attacks": ATTACKERS[:1], "sweep": {"purifier.t": [0.05]}}
    cells = sweeps.check(specs.load(table))
    evaluation.run(cells[0].spec, sweeps.run_folder_of(elsewhere, cells[0]), quiet=True)
    (table,) = tables(write_report(elsewhere, sweeps.cells_with_outcomes(cells, elsewhere), 1, ""))
    assert table.heads[:4] == ["purifier.t", "clean", "robust", "network calls an image"]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (None, "a sweep needs a section `sweep`"),
        ({"purifier.t": 0.1}, "purifier.t needs a list of values"),
        ({"purifier.t": [0.1, 0.1]}, "two values of purifier.t"),
        ({"purifier.tt": [0.1]}, "did you mean 't'"),
        ({"attacks.7.eot": [1]}, "sweep: attacks.7.eot"),
        ({"purifier.t": [0.01, 0.02], "purifier": ["diffpure"]}, "purifier .*replace.* purifier.t"),
        ({"machine.batch_size": [1, 8]}, "machine.batch_size cannot be swept"),
    ],
)
def test_invalid_axes_are_refused(axes, said):
    with pytest.raises(SpecError, match=said):
        sweeps.check(specs.load(SPEC | {"sweep": axes}))


def test_part_may_be_swept_before_its_options():
    axes = {"purifier": [SPEC["purifier"]], "purifier.t": [0.005, 0.01]}
    cells = sweeps.check(specs.load(SPEC | {"sweep": axes}))
    assert [cell.spec.get("purifier", {}).get("t") for cell in cells] == [0.005, 0.01]


def test_sweep_without_a_valid_combination_is_refused(elsewhere):
    cells = sweeps.check(specs.load(SPEC | {"sweep": {"purifier.steps": [60, 70]}}))
    with pytest.raises(SpecError, match="at most 50"):
        list(sweeps.run(cells, elsewhere, quiet=True))


def test_evaluate_refuses_a_sweep_and_names_the_command(mistake, elsewhere):
    (elsewhere / "s.yaml").write_text(yaml.safe_dump(SPEC))
    assert "run it by `unfool sweep`" in mistake("evaluate", "s.yaml")


def test_sweep_set_to_null_is_an_evaluation():
    spec = specs.load(SPEC, ["sweep=null"])
    assert "sweep" in spec
    plain = {key: value for key, value in SPEC.items() if key != "sweep"}
    assert evaluation.check(spec) == evaluation.check(specs.load(plain))


def test_attack_that_refuses_the_model_does_not_stop_the_sweep(elsewhere):
    pgd = {"attacks": [{"name": "pgd", "steps": 1}], "purifier": None, "denoiser": None}
    axes = {"sweep": {"attacks.0.loss": ["dlr", "margin"]}}
    cells = sweeps.check(specs.load(SPEC | pgd | axes))
    (_, refused), (_, done) = sweeps.run(cells, elsewhere, quiet=True)
    assert "the loss dlr needs at least 3 classes" in str(refused)
    assert isinstance(done, Run)
