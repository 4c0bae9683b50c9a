"""The main table reports what the folders of sweeps contain."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest

from unfool.cli.main import run
from unfool.statistics import percent_interval

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import main_table

ATTACKS = """attacks=[{name: pgd, label: transfer, view: classifier-only, steps: 2},
  {name: pgd, label: exact, view: exact, steps: 2, loss: margin},
  {name: pgd, label: DW-box, knows: both, steps: 2, loss: margin}]"""
SMALL = ["--set", "data.size=4", "--set", "evaluation.draws=2", "--set", ATTACKS, "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a sweep over two purifiers and two classifiers, on 4 images."""
    home = tmp_path_factory.mktemp("sweep")
    once = "{label: once, name: one-step, t: 0.2}"
    purifiers = f"[{{label: DiffPure, name: diffpure, t: 0.2, steps: 2}}, {once}]"
    classifiers = "[{label: Bayes, name: bayes}, {label: its copy, name: bayes}]"
    axes = f"sweep={{purifier: {purifiers}, classifier: {classifiers}}}"
    assert run(["sweep", "blobs", *SMALL, "--set", axes, "--out", str(home)]) == 0
    return home


def test_every_number_of_a_sweep_is_in_the_table_and_in_the_file(
    folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(main_table, "NUMBERS", tmp_path / "none.csv")
    main_table.main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split(" | ")[0].lstrip("| "): line for line in lines}
    rows = list(csv.DictReader(io.StringIO(main_table.to_csv(list(main_table.read_sweep(folder))))))
    entries = json.loads((folder / "sweep.json").read_text())["cells"]
    assert len(entries) == 4
    for entry in entries:
        summary, name = entry["summary"], ", ".join(entry["values"].values())
        shares = {"clean": summary["clean"]} | {
            row["name"]: row["robust"]["per_draw"]
            for row in [*summary["attacks"], *summary["known_noise"]]
        }
        assert set(shares) == {"clean", "transfer", "exact", "DW-box"}
        for condition, share in shares.items():
            assert percent_interval(share["accuracy"], share["low"], share["high"]) in cells[name]
            (row,) = {
                tuple(r.items())
                for r in rows
                if (r["defense"], r["condition"]) == (name, condition)
            }
            assert dict(row)["accuracy"] == f"{100 * share['accuracy']:.1f}"
        bare = summary["clean"]["undefended"]
        shown = percent_interval(bare["accuracy"], bare["low"], bare["high"])
        line = cells[f"no defense, {entry['values']['classifier']}"]
        assert shown in line
        assert line.endswith("| - | - |")  # only its clean and transfer accuracies are measured


def test_page_and_file_are_written_together(folder, tmp_path, monkeypatch):
    begin, end = main_table.MARKS
    page, numbers = tmp_path / "results.md", tmp_path / "numbers.csv"
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    monkeypatch.setattr(main_table, "PAGE", page)
    monkeypatch.setattr(main_table, "NUMBERS", numbers)
    main_table.main([str(folder), "--write"])
    text = page.read_text()
    assert re.match(r"above\n.*\nbelow\n$", text, re.DOTALL)
    assert "old" not in text
    rows = main_table.read_numbers(numbers)
    assert "\n".join(main_table.tables(rows)) in text
    assert {row["images"] for row in rows} == {"4"}


def test_found_rows_replace_kept_ones_in_their_places():
    def row(defense, condition, accuracy):
        values = ("linf", defense, "4", condition, accuracy, "0.0", "100.0")
        return dict(zip(main_table.HEADS, values, strict=True))

    kept = [row("A", "clean", "1.0"), row("A", "BPDA", "2.0"), row("B", "clean", "3.0")]
    found = [row("C", "clean", "5.0"), row("A", "clean", "4.0")]
    assert main_table.merge(kept, found) == [found[1], kept[2], found[0]]


def test_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="run `unfool sweep`"):
        main_table.main([str(tmp_path)])


def test_sweep_without_one_of_its_combinations_is_refused(folder, tmp_path):
    sweep = json.loads((folder / "sweep.json").read_text())
    del sweep["cells"][1]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(SystemExit, match="3 of 4 combinations"):
        main_table.main([str(tmp_path)])


def test_unfinished_sweep_is_refused(folder, tmp_path):
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["cells"][1]["summary"]["requested"] = 512
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(SystemExit, match="4 of 512 images"):
        main_table.main([str(tmp_path)])
