"""A result: its numbers, its printed forms, and its exports."""

import sys
from typing import Any

import pytest
import torch
from rich.console import Console

import unfool
from unfool.attacks.pgd import PGD
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.networks.cnn import small_cnn
from unfool.report.evaluation import brief
from unfool.report.render_terminal import print_document
from unfool.results.report_json import share_entry
from unfool.results.run_folder import Run
from unfool.threat import Threat


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)  # noqa: TID251
    attacks = {"adaptive": PGD(steps=3), "weak": PGD(steps=1)}
    data = fetch(digits(), range(5))
    return unfool.evaluate(
        small_cnn(), data, attacks=attacks, threat=Threat("linf", 0.2), draws=2, quiet=True
    )


def test_numbers_match_the_report(result):
    told = result.to_dict()
    assert (result.n, result.requested) == (5, 5)
    for judged, readings in ((result.clean, told["clean"]), (result.robust, told["robust"])):
        for reading in ("per_draw", "majority", "all_draws"):
            assert share_entry(getattr(judged, reading)) == readings[reading]
    majority = result.robust.majority
    assert majority.low <= majority.value <= majority.high
    assert list(result.attacks) == ["adaptive", "weak"]
    assert result.attacks["weak"].name == "weak"
    assert result.robust.undefended is None
    assert result.random is not None
    assert result.cost["classifier_forward"] > 0
    assert len(result.doubts) == len(told["doubts"])


def test_print_shows_the_table_of_the_command(result, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    print(result)
    printed = capsys.readouterr().out
    console = Console(width=110, highlight=False, color_system=None)
    with console.capture() as kept:
        print_document(brief(result.to_dict()), console)
    assert printed.split() == kept.get().split()
    assert "\x1b" not in printed
    assert "report:" not in printed


def test_repr_is_one_short_line(result):
    assert len(repr(result)) < 120
    assert "\n" not in repr(result)
    assert "5 images" in repr(result)


def test_notebook_shows_a_table(result):
    page = result._repr_html_()
    assert page.count("<table>") == 1
    assert "adaptive" in page


def test_records_hold_every_answer(result):
    records = result.to_records()
    assert len(records) == 5 * 5 * 2  # images, conditions, draws
    assert list(records[0]) == ["index", "label", "condition", "draw", "answer", "correct"]
    right = [row["correct"] for row in records if row["condition"] == "robust"]
    assert sum(right) / len(right) == result.robust.per_draw.value
    assert all(row["correct"] == (row["answer"] == row["label"]) for row in records)


def test_missing_pandas_is_named_in_the_error(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_dataframe()


def test_data_frame_equals_the_records(result):
    table = result.to_dataframe()
    assert table.to_dict("records") == result.to_records()
    right = table[table.condition == "robust"].groupby("draw").correct.mean()
    assert right.mean() == pytest.approx(result.robust.per_draw.value)


def test_written_report_can_be_loaded_again(result, tmp_path):
    with pytest.raises(ValueError, match="name a folder"):
        result.write_report()
    assert result.write_report(tmp_path) == tmp_path
    assert (tmp_path / "report.html").is_file()
    again = unfool.load_run(tmp_path)
    assert again.to_records() == result.to_records()
    assert str(again) == str(result)
    assert again.folder == tmp_path


def test_temporary_folder_is_deleted_with_the_result():
    x, y = fetch(digits(), range(2))
    found = unfool.evaluate(
        small_cnn(), (x, y), attacks={}, threat=Threat("linf", 0.2), draws=1, quiet=True
    )
    folder = found.run.folder
    assert found.folder is None
    assert folder.is_dir()
    del found
    assert not folder.exists()


def test_unfinished_run_says_so(result, tmp_path):
    manifest: Any = {**result.run.manifest, "indices": list(range(9))}
    run = Run.begin(tmp_path, manifest)
    with pytest.raises(RuntimeError, match="no results yet"):
        unfool.load_run(tmp_path)
    run.add(result.run.outcomes(), {})
    found = unfool.load_run(tmp_path)
    assert (found.n, found.requested) == (5, 9)
    assert "5 of 9" in str(found)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="is not a run"):
        unfool.load_run(tmp_path)
