"""Exports have the numbers of the run, in the form that each foreign format requires."""

import hashlib
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pandas
import pytest

from unfool.api.result import load_run
from unfool.cli.main import run
from unfool.results.export.badge import BLUE, GRAY, Badge
from unfool.results.export.records import to_csv, to_parquet
from unfool.results.outcome import Condition, Outcome
from unfool.results.run_folder import Run
from whole_run import CERTIFICATION, manifest

SCHEMAS = Path(__file__).parents[1] / "fixtures" / "every_eval_ever"
K = 4
ATTACKS = [
    {"name": "pgd", "view": "exact", "label": "PGD, 10 steps", "steps": 10},
    {"name": "autoattack", "view": "exact", "label": "auto"},
]


def a_run(folder, right, asked=None, size=0.03, **changed):
    """Make a run in which image i has `right[i]` of 4 draws right under attack, and all when clean."""
    spec = {"attacks": ATTACKS, "threat": {"norm": "linf", "eps": 8 / 255}} | changed
    made = Run.begin(folder, manifest(range(len(right) + (asked or 0)), spec=spec))

    def condition(hits):
        return Condition([0] * hits + [1] * (K - hits), None, size, 1 - hits / K)

    names = [row["label"] for row in spec["attacks"]]
    outcomes = [
        Outcome(
            i,
            0,
            {"clean": condition(K)}
            | ({"random": condition(K)} if names else {})
            | dict.fromkeys(names, condition(hits)),
            names[-1] if names else "clean",
            0.0,
            {},
        )
        for i, hits in enumerate(right)
    ]
    made.add(outcomes, {})
    return made


@pytest.fixture
def done(elsewhere):
    """A run in the folder `r`, whose attacks leave 4, 3, 2, and 0 of 4 draws right."""
    return a_run(elsewhere / "r", [4, 3, 2, 0])


def test_csv_table_has_every_answer(done, capsys):
    assert run(["export", "r", "--to", "csv"]) == 0
    assert capsys.readouterr().out == "r/answers.csv\n"
    read = pandas.read_csv("r/answers.csv")
    assert [*read.columns] == ["index", "label", "condition", "draw", "answer", "correct"]
    assert read.equals(load_run("r").to_dataframe())
    assert len(read) == 4 * 5 * K  # images x conditions (with `robust`) x draws
    assert read[read.condition == "robust"].correct.sum() == 9


def test_labels_with_commas_and_quotes_survive():
    records = [{"condition": 'a, "b"\nc', "draw": 0}, {"condition": "é", "draw": 1}]
    assert pandas.read_csv(io.BytesIO(to_csv(records))).to_dict("records") == records


def test_parquet_file_equals_the_data_frame(done):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    assert run(["export", "r", "--to", "parquet", "--out", "o"]) == 0
    assert pandas.read_parquet("o/answers.parquet").equals(load_run("r").to_dataframe())


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_missing_library_is_named_in_the_error(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"{library}.*unfool\[parquet\]"):
        to_parquet([{"a": 1}])


def test_unfinished_run_is_exported_only_as_a_table(elsewhere, mistake):
    a_run(elsewhere / "r", [4, 0], asked=3)
    assert run(["export", "r", "--to", "csv"]) == 0
    for form in ("eee", "robustbench", "badge"):
        said = mistake("export", "r", "--to", form, "--model", "me/mine")
        assert "2 of 5 images" in said


@pytest.fixture
def records(done):
    """The files for Every Eval Ever: the log of the run, and its lines."""
    assert (
        run(["export", "r", "--to", "eee", "--model", "me/mine", "--by", "us", "--out", "o"]) == 0
    )
    (log,) = Path("o").rglob("*.json")
    return log, log.with_name(f"{log.stem}_samples.jsonl")


def test_every_eval_ever_export_matches_its_schema(records):
    log, lines = (path.read_text() for path in records)
    for name, tables in (("log", [log]), ("instance", lines.splitlines())):
        check = jsonschema.Draft7Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))
        for table in tables:
            check.validate(json.loads(table))


def test_schema_rejects_invalid_logs(records):
    log = json.loads(records[0].read_text())
    check = jsonschema.Draft7Validator(json.loads((SCHEMAS / "log.json").read_text()))
    for change in (
        {"model_info": {"name": "a", "id": "b"}},
        {"evaluation_results": []},
        {"more": 1},
    ):
        assert not check.is_valid(log | change)


def test_every_eval_ever_export_has_the_numbers_of_the_run(records, done):
    log = json.loads(records[0].read_text())
    found = {row["evaluation_result_id"]: row for row in log["evaluation_results"]}
    result = load_run("r")
    assert len(found) == len(log["evaluation_results"]) == 3 * (3 + len(result.attacks))
    for name, judged in {"clean": result.clean, "robust": result.robust, **result.attacks}.items():
        for reading in ("per_draw", "majority", "all_draws"):
            told = found[f"mine.Data.{name}.{reading}"]["score_details"]
            share, ends = getattr(judged, reading), told["uncertainty"]["confidence_interval"]
            assert (told["score"], ends["lower"], ends["upper"]) == (
                share.value,
                share.low,
                share.high,
            )
    assert log["source_metadata"]["source_organization_name"] == "us"


def test_every_eval_ever_lines_add_up_to_its_results(records):
    log, content = json.loads(records[0].read_text()), records[1].read_bytes()
    told = log["detailed_evaluation_results"]
    lines = [json.loads(line) for line in content.splitlines()]
    assert told["file_path"] == str(records[1].relative_to("o"))
    assert told["checksum"] == hashlib.sha256(content).hexdigest()
    assert told["total_rows"] == len(lines) == 4 * 5 * 3
    scores = Counter[str]()
    for line in lines:
        assert (line["evaluation_id"], line["model_id"]) == (log["evaluation_id"], "me/mine")
        scores[line["evaluation_result_id"]] += line["evaluation"]["score"]
    for row in log["evaluation_results"]:
        mean = scores[row["evaluation_result_id"]] / 4
        assert mean == pytest.approx(row["score_details"]["score"]), row["evaluation_result_id"]
    robust = [line for line in lines if line["evaluation_result_id"].endswith("robust.majority")]
    assert [line["answer_attribution"][0]["extracted_value"] for line in robust] == [
        "a",
        "a",
        "tie",
        "b",
    ]
    assert [line["evaluation"]["is_correct"] for line in robust] == [True, True, False, False]


def test_repeated_export_has_the_same_file_names(records):
    before = sorted(Path("o").rglob("*.json*"))
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-\w{12}", records[0].stem
    )
    assert run(["export", "r", "--to", "eee", "--model", "me/mine", "--out", "o"]) == 0
    assert sorted(Path("o").rglob("*.json*")) == before
    assert run(["export", "r", "--to", "eee", "--model", "me/other", "--out", "o"]) == 0
    assert {path.stem for path in before}.isdisjoint(
        path.stem for path in Path("o/data/mine.Data/me/other").iterdir()
    )


def robustbench():
    assert run(["export", "r", "--to", "robustbench", "--model", "me/mine"]) == 0
    return json.loads(Path("r/robustbench.json").read_text())


def test_robustbench_export_has_autoattack_and_worst_case_accuracy(done):
    told = robustbench()
    assert (told["clean_acc"], told["autoattack_acc"], told["external"]) == (
        "100.00",
        "56.25",
        "56.25",
    )
    assert (told["eps"], told["number_forward_passes"], told["name"]) == ("8/255", 1, "me/mine")
    assert isinstance(told["unreliable"], bool)


@pytest.mark.parametrize(
    "attacks", [ATTACKS[:1], [*ATTACKS[:1], ATTACKS[1] | {"view": "classifier-only"}]]
)
def test_robustbench_autoattack_accuracy_needs_autoattack_on_the_model(elsewhere, attacks):
    a_run(elsewhere / "r", [4, 0], attacks=attacks)
    told = robustbench()
    assert (told["autoattack_acc"], told["external"]) == (None, "50.00")


@pytest.mark.parametrize(("size", "suffix"), [(0.03, ""), (0.0, ", doubted")])
def test_badge_states_the_interval_and_whether_a_doubt_is_red(elsewhere, size, suffix):
    """Attacks that leave images unchanged raise the red doubt `images-unchanged`."""
    a_run(elsewhere / "r", [4, 3, 2, 0], size=size)
    assert run(["export", "r", "--to", "badge"]) == 0
    told = json.loads(Path("r/badge.json").read_text())
    assert told["schemaVersion"] == 1
    assert told["label"] == "robust accuracy, linf 8/255"
    assert re.fullmatch(rf"56\.2 % \[\d+\.\d, \d+\.\d\]{suffix}", told["message"])
    picture = ElementTree.parse("r/badge.svg").getroot()
    assert picture.get("aria-label") == f"{told['label']}: {told['message']}"


def test_doubted_badge_is_gray_and_shows_its_message():
    plain, doubted = Badge("a <b>", "1 %", False), Badge("a <b>", "1 %, doubted", True)
    assert (plain.to_shields()["color"], doubted.to_shields()["color"]) == (BLUE, GRAY)
    texts = [text.text for text in ElementTree.fromstring(doubted.to_svg()).iter() if text.text]
    assert texts == ["a <b>: 1 %, doubted", "a <b>", "1 %, doubted"]


@pytest.mark.parametrize(
    ("changed", "arguments", "said"),
    [
        ({}, ["--to", "xlsx"], "'xlsx'"),
        ({}, ["--to", "eee"], "--model OWNER/NAME"),
        ({}, ["--to", "eee", "--model", "mine"], "'mine'"),
        ({}, ["--to", "eee", "--model", "../mine"], "'../mine'"),
        ({"attacks": []}, ["--to", "badge"], "no attack"),
        ({"attacks": []}, ["--to", "robustbench"], "no attack"),
        ({"threat": {"norm": "l1", "eps": 1.0}}, ["--to", "robustbench"], "l1"),
    ],
)
def test_impossible_exports_are_refused(elsewhere, mistake, changed, arguments, said):
    a_run(elsewhere / "r", [4], **changed)
    assert said in mistake("export", "r", *arguments)


def test_certification_is_refused(elsewhere, mistake):
    Run.begin(elsewhere / "r", manifest([0]) | {"kind": "certification", "spec": CERTIFICATION})
    assert "certification" in mistake("export", "r", "--to", "csv")
