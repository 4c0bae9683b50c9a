"""A bound on robust accuracy decides the exit code of `evaluate`; mistakes are refused before it."""

from xml.etree import ElementTree

import pytest

from unfool.api.result import load_run
from unfool.cli.main import run
from unfool.results.gates import gate_of_run

SMALL = ("--set", "data.size=16", "--set", "purifier.steps=2", "--set", "evaluation.draws=4")
SMALL += ("--set", "evaluation.examples=0")


def evaluate(*options: str) -> int:
    return run(["evaluate", "blobs", *SMALL, "--quiet", "--out", "r", *options])


def test_bound_decides_exit_code_and_strict_uses_the_lower_end(elsewhere, capsys):
    assert evaluate("--min-robust", "0") == 0
    assert "pass: min-robust: robust accuracy is " in capsys.readouterr().out
    share = load_run("r").robust.per_draw
    between = (share.low + share.value) / 2
    assert share.low < between < share.value
    summary = load_run("r").to_dict()
    kept = [gate_of_run(summary, bound, strict=True).ok for bound in (share.low, between)]
    assert kept == [True, False]
    assert gate_of_run(summary, between).ok
    assert evaluate("--min-robust", str(between), "--strict") == 1
    said = capsys.readouterr().out
    assert "FAIL: min-robust: " in said
    assert "the bound lies inside the interval" in said


@pytest.mark.parametrize(("bound", "code"), [("0", 0), ("1", 1)])
def test_bound_is_a_test_case_of_the_junit_file(elsewhere, capsys, bound, code):
    assert (
        evaluate("--min-robust", bound, "--junit", "made/j.xml", "--set", "threat.eps=0.5") == code
    )
    said = capsys.readouterr().out
    root = ElementTree.parse(elsewhere / "made" / "j.xml").getroot()
    (suite,) = root
    (case,) = suite
    assert suite.get("name") == "unfool evaluate"
    assert case.get("name") == f"min-robust {bound} (robust)"
    assert [root.get(key) for key in ("tests", "failures")] == ["1", str(code)]
    (found,) = case
    assert found.tag == ("failure" if code else "system-out")
    assert f"{'FAIL' if code else 'pass'}: min-robust: {found.text}" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min-robust", "40"), "from 0 to 1"),
        (("--min-robust", "nan"), "from 0 to 1"),
        (("--strict",), "--min-robust"),
        (("--junit", "j.xml"), "--junit needs a bound"),
        (("--min-robust", "0.4", "--set", "attacks=[]"), "needs a spec with attacks"),
        (("--min-robust", "0.4", "--shard", "0/2"), "merge the shards"),
    ],
)
def test_invalid_options_are_refused_before_the_run(elsewhere, mistake, options, said):
    assert said in mistake("evaluate", "blobs", *SMALL, "--out", "r", *options)
    assert not (elsewhere / "r").exists()
