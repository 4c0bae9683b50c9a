"""Comparison of two runs: known counts, coverage of intervals, bounds, and exit codes."""

import json
from math import comb
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from unfool.cli.main import run
from unfool.report.comparison import brief, junit
from unfool.report.document import Paragraph
from unfool.results.compare import Comparison, bootstrap, compare, differences
from unfool.results.gates import Gate, gates
from unfool.results.outcome import Condition, Outcome
from unfool.results.run_folder import Run
from unfool.statistics import Mean, mcnemar, wilson
from whole_run import CERTIFICATION, manifest

K = 4
SPEC = {
    "data": {"name": "mine:Data", "folder": "a"},
    "classifier": {"name": "mine:Net"},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [{"name": "pgd", "view": "exact", "label": "pgd", "steps": 10}],
    "evaluation": {"images": 10, "subset_seed": 0, "seed": 0, "draws": K, "examples": 0},
    "machine": {"batch_size": 4},
}
ASKED = {"images": "abc", "code": "c", "classes": ["a", "b"], "versions": {"torch": "2"}}


def a_run(folder, right, clean=K, asked=None, done=None, **changed):
    """Make a run in which image i has `right[i]` of 4 draws right under attack, `clean` without."""
    spec = SPEC | changed
    identity = str(sorted((k, str(v)) for k, v in changed.items() if k != "machine"))
    indices = list(range(len(right)))
    told = ASKED | {"identity": identity} | (asked or {})
    made = Run.begin(folder, manifest(indices, **{"spec": spec} | told))

    def condition(hits):
        wrong = spec["evaluation"]["draws"] - hits
        return Condition([0] * hits + [1] * wrong, None, 0.1, wrong / (hits + wrong))

    outcomes = []
    for i in indices if done is None else done:
        found = {"clean": condition(clean)}
        if spec["attacks"]:
            found |= {"random": condition(clean)}
            found |= {row["label"]: condition(right[i]) for row in spec["attacks"]}
        outcomes.append(Outcome(i, 0, found, list(found)[-1], 0.0, {}))
    made.add(outcomes, {})
    return made


def test_equal_runs_agree_on_every_image_and_draw(tmp_path):
    a = a_run(tmp_path / "a", [4, 3, 0])
    same = brief_of(compare(a, a, resamples=50))
    assert "agree on every image and draw under every condition" in same
    other = brief_of(compare(a, a_run(tmp_path / "b", [3, 4, 0]), resamples=50))
    assert "agree on every image and draw under clean, random" in other, (
        "the others differ by 0, too"
    )
    assert "by bootstrap" in other
    assert "by bootstrap" not in same
    third = compare(a, a_run(tmp_path / "c", [0] * 3, clean=3), resamples=50)
    assert "agree on" not in brief_of(third)


def brief_of(found):
    return " ".join(block.text for block in brief(found).blocks if isinstance(block, Paragraph))


def test_mcnemar_p_value_is_a_two_sided_binomial_tail():
    for one, other in ((0, 0), (0, 5), (3, 3), (9, 2), (2, 9), (40, 22)):
        n, least = one + other, min(one, other)
        tails = 2 * sum(comb(n, i) for i in range(least + 1)) / 2**n
        assert mcnemar(one, other) == pytest.approx(min(1, tails))


def test_counts_by_hand(tmp_path):
    """Of 10 images, 4 are right in A alone and one in B alone. Two of four draws are no majority."""
    a = a_run(tmp_path / "a", [4, 4, 3, 3, 2, 2, 0, 4, 4, 4])
    b = a_run(tmp_path / "b", [2, 1, 0, 2, 3, 2, 0, 4, 4, 4], clean=3)
    found = compare(a, b, resamples=500)
    assert [row.name for row in found.rows] == ["clean", "random", "pgd", "robust"]
    clean, _, pgd, robust = found.rows
    assert (pgd.only_a, pgd.only_b) == (4, 1)
    assert pgd.p == pytest.approx(2 * (1 + 5) / 2**5)
    assert pgd.change.mean == pytest.approx((22 - 30) / 40)
    assert (pgd.a.value, pgd.b.value) == pytest.approx((30 / 40, 22 / 40))
    assert robust.change == pgd.change
    assert clean.change.mean == pytest.approx(-0.25)
    assert (clean.only_a, clean.only_b, clean.p) == (0, 0, 1.0)
    assert pgd.change.low < pgd.change.mean < pgd.change.high


def test_robust_uses_the_attack_chosen_by_each_run(tmp_path):
    """Each run names the attack that counts for an image; the two need not be the same."""
    two = [{**SPEC["attacks"][0], "label": label} for label in ("weak", "strong")]
    a = a_run(tmp_path / "a", [4, 0, 2], attacks=SPEC["attacks"])
    b = a_run(tmp_path / "b", [2, 0, 0], attacks=two)
    found = compare(a, b, resamples=100)
    assert [row.name for row in found.rows] == ["clean", "random", "robust"]
    assert found.rows[-1].change.mean == pytest.approx(-4 / 12)


def test_run_compared_with_itself_shows_no_difference(tmp_path):
    a = a_run(tmp_path, [4, 2, 0, 3])
    found = compare(a, a)
    for row in found.rows:
        assert row.change.mean == 0
        assert row.p == 1
        assert row.change.low < 0 < row.change.high  # four images cannot prove equality
    assert found.differs == {}
    assert found == compare(a, a)
    assert all(gate.ok for gate in gates(found, 0.5, 0.0))


def test_only_images_in_both_runs_are_compared(tmp_path):
    a = a_run(tmp_path / "a", [4, 4, 0, 0], done=[0, 1, 2])
    b = a_run(tmp_path / "b", [4, 0, 0, 4], done=[1, 2, 3])
    found = compare(a, b, resamples=100)
    assert (found.n, found.requested) == (2, 4)
    assert found.rows[-1].change.mean == -0.5


def discordant(source, n):
    u = source.uniform(size=n)
    return (u < 0.2).astype(float) - (u > 0.95), 1, 0.15


def scattered(source, n):
    rate, shared = source.beta(0.5, 0.5, n)[:, None], source.uniform(size=(n, 8))
    return (shared < 0.8 * rate).mean(1) - (shared < rate).mean(1), 8, -0.1


def ruined(source, n):
    return source.binomial(8, 0.1, n) / 8 - source.binomial(8, 0.95, n) / 8, 8, -0.85


def unlike_in_few(source, n):
    return (source.uniform(size=n) < 0.03).astype(float), 1, 0.03


@pytest.mark.parametrize("world", [discordant, scattered, ruined, unlike_in_few])
def test_bootstrap_interval_covers_the_true_difference(world):
    source, size, repeats = np.random.default_rng(0), 40, 300
    gaps, draws, truth = zip(*(world(source, size) for _ in range(repeats)), strict=True)
    found = bootstrap(np.stack(gaps, 1), draws, seed=0, resamples=600)
    held = [low <= t <= high for (_, low, high), t in zip(found, truth, strict=True)]
    assert wilson(sum(held), repeats).high > 0.95
    assert all(-1 <= low <= mean <= high <= 1 for mean, low, high in found)


def test_bootstrap_interval_matches_its_normal_limit():
    source, n = np.random.default_rng(1), 2000
    gaps = source.integers(-4, 5, n) / 4
    ((mean, low, high),) = bootstrap(gaps[:, None], [4], seed=3, resamples=4000)
    half = 1.96 * gaps.std() / n**0.5
    assert mean == pytest.approx(gaps.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_differences_are_listed_field_by_field():
    def asked(**changed):
        return ASKED | {"identity": str(changed), "spec": SPEC | changed}

    pgd = SPEC["attacks"][0]
    found = differences(
        asked(machine={"batch_size": 9}, data={"name": "mine:Data", "folder": "b"}),
        asked(
            purifier={"name": "diffpure", "t": 0.1},
            attacks=[{**pgd, "label": "new"}, {**pgd, "steps": 40}],
            classifier={"name": "other:Net"},
        ),
    )
    assert found == {
        "classifier": ({"name": "mine:Net"}, {"name": "other:Net"}),
        "attacks.pgd.steps": (10, 40),
        "attacks.new": (None, {**pgd, "label": "new"}),
        "purifier": (None, {"name": "diffpure", "t": 0.1}),
    }
    other = asked() | {"identity": "other", "code": "d", "versions": {"torch": "3"}}
    assert differences(asked(), other) == {
        "contents of a file that both name:": ("{}", "other"),
        "your own code:": ("c", "d"),
        "versions.torch": ("2", "3"),
    }
    brought = asked() | {"images": "abc".rjust(64, "0") + "def"}
    plain = asked() | {"images": "abc".rjust(64, "0")}
    assert differences(plain, brought) == {"images that were made before:": (None, "def")}
    moved = asked(classifier={"name": "mine:Net", "weights": "b.pt"}) | {"identity": "{}"}
    assert differences(asked(classifier={"name": "mine:Net"}) | {"identity": "{}"}, moved) == {}


@pytest.mark.parametrize(
    ("name", "found", "ok", "sure"),
    [
        ("min-robust", (0.40, 0.3, 0.5), True, False),
        ("min-robust", (0.39, 0.3, 0.5), False, False),
        ("min-robust", (0.6, 0.5, 0.7), True, True),
        ("min-robust", (0.2, 0.1, 0.3), False, True),
        ("max-drop", (1.1 - 0.7, 0.3, 0.5), True, False),  # slightly above 0.4, by rounding
        ("max-drop", (0.41, 0.3, 0.5), False, False),
        ("max-drop", (-0.1, -0.2, 0.0), True, True),
        ("max-drop", (0.6, 0.5, 0.7), False, True),
    ],
)
def test_bounds_apply_to_the_point_estimate(name, found, ok, sure):
    gate = Gate(name, "robust", 0.4, Mean(*found))
    assert (gate.ok, gate.decided) == (ok, sure)


@pytest.mark.parametrize(
    ("name", "found", "ok", "sure"),
    [
        ("min-robust", (0.5, 0.3, 0.7), False, False),
        ("min-robust", (0.5, 0.4, 0.7), True, True),
        ("min-robust", (0.3, 0.2, 0.39), False, True),
        ("max-drop", (0.3, 0.2, 0.5), False, False),
        ("max-drop", (0.3, 0.2, 0.4), True, True),
    ],
)
def test_strict_bounds_apply_to_the_worse_end_of_the_interval(name, found, ok, sure):
    gate = Gate(name, "robust", 0.4, Mean(*found), strict=True)
    assert (gate.ok, gate.decided) == (ok, sure)


@pytest.fixture
def two(elsewhere):
    """Run A with 60 % robust and 100 % clean accuracy, and run B with 40 % and 75 %."""
    a_run(elsewhere / "a", [4] * 6 + [0] * 4)
    a_run(elsewhere / "b", [4] * 4 + [0] * 6, clean=3, purifier={"name": "mine:Blur"})
    return elsewhere


@pytest.mark.parametrize(
    ("bounds", "code", "failed"),
    [
        ([], 0, []),
        (["--min-robust", "0.4"], 0, []),
        (["--min-robust", "0.41"], 1, ["min-robust 0.41 (robust)"]),
        (["--max-drop", "0.25"], 0, []),
        (["--max-drop", "0.22"], 1, ["max-drop 0.22 (clean)"]),
        (["--max-drop", "0"], 1, ["max-drop 0 (clean)", "max-drop 0 (robust)"]),
        (["--min-robust", "0.4", "--strict"], 1, ["min-robust 0.4 (robust)"]),
        (["--min-robust", "0.1", "--strict"], 0, []),
        (
            ["--max-drop", "0.25", "--strict"],
            1,
            ["max-drop 0.25 (clean)", "max-drop 0.25 (robust)"],
        ),
        (["--max-drop", "0.9", "--strict"], 0, []),
    ],
)
def test_bounds_decide_the_exit_code(two, capsys, bounds, code, failed):
    junit_too = ["--junit", "made/j.xml"] if bounds else []
    assert run(["compare", "a", "b", *bounds, *junit_too]) == code
    said = " ".join(capsys.readouterr().out.split())
    assert "robust accuracy per draw changes by -20.0 [" in said
    assert "What differs: purifier none in A, mine:Blur in B." in said
    assert said.count("FAIL: ") == len(failed)
    if bounds:
        (suite,) = ElementTree.parse(two / "made" / "j.xml").getroot()
        cases = {case.get("name"): case.find("failure") for case in suite}
        assert [name for name, failure in cases.items() if failure is not None] == failed
        assert (suite.get("tests"), suite.get("failures")) == (str(len(cases)), str(len(failed)))


def test_bounds_on_unfinished_runs_are_refused():
    unknown: Any = {}
    found = Comparison(("a", "b"), 5, 80, 8, [], {}, ([], []), [], (unknown, unknown), [])
    assert gates(found, None, None) == []
    with pytest.raises(ValueError, match="5 of 80 images"):
        gates(found, None, 0.02)


def test_max_drop_between_runs_with_different_attacks_is_refused(two, mistake):
    weaker = [SPEC["attacks"][0] | {"steps": 1}]
    a_run(two / "weaker", [4] * 8 + [0] * 2, attacks=weaker)
    told = mistake("compare", "a", "weaker", "--max-drop", "0.5")
    assert "--max-drop" in told
    assert "attacks." in told
    assert run(["compare", "a", "weaker", "--min-robust", "0.1"]) == 0


def test_junit_failure_message_states_its_numbers():
    gate = Gate("min-robust", "robust", 0.5, Mean(0.4, 0.3, 0.52))
    failure = ElementTree.fromstring(junit([gate])).find("testsuite/testcase/failure")
    assert failure is not None
    message = failure.get("message") or ""
    for said in ("robust accuracy of B", "40.0 % [30.0, 52.0]", "50.0 %", "the bound lies inside"):
        assert said in message


def test_comparison_report_files_are_written(two, capsys):
    assert run(["compare", "a", "b", "--max-drop", "0.1", "--out", "my report"]) == 1
    told = json.loads((two / "my report" / "compare.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["clean", "random", "pgd", "robust"]
    assert told["rows"][-1]["change"]["mean"] == pytest.approx(-0.2)
    assert [(gate["condition"], gate["ok"]) for gate in told["gates"]] == [
        ("clean", False),
        ("robust", False),
    ]
    assert told["command"] == "unfool compare a b --max-drop 0.1 --out 'my report'"
    assert told["differs"] == {"purifier": [None, {"name": "mine:Blur"}]}
    assert (two / "my report" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (two / "my report" / "compare.html").read_text()
    assert "| robust | 60.0 % " in (two / "my report" / "compare.md").read_text()


def changed(section, **values):
    return {section: SPEC[section] | values}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"right": [4] * 5} | changed("evaluation", images=5),
            "same evaluation.images and evaluation.subset_seed",
        ),
        ({"right": [4] * 5}, "the contents or labels of the data sets differ"),
        (
            {"right": [4] * 5, "data": {"name": "mnist", "folder": "a"}},
            "different data sets (mine:Data and mnist)",
        ),
        (
            {"asked": {"images": "xyz"}} | changed("data", split="train"),
            "different data sets (mine:Data with split None and mine:Data with split train)",
        ),
        ({"asked": {"images": "xyz"}}, "evaluate both on the same data"),
        (changed("evaluation", seed=1), "evaluation.seed 0 and 1"),
        (changed("evaluation", draws=8), "evaluation.draws 4 and 8"),
        (changed("threat", eps=0.2), "different threats (linf 0.1 and linf 0.2)"),
        ({"done": [3]}, "no image in common yet"),
        ({"done": [3]} | changed("data", split="of the same images"), "no image in common yet"),
        ({"asked": {"kind": "certification", "spec": CERTIFICATION}}, "holds a certification"),
    ],
)
def test_incomparable_runs_are_refused(elsewhere, mistake, other, said):
    a_run(elsewhere / "a", [4] * 4, done=[0, 1, 2])
    a_run(elsewhere / "b", **{"right": [4] * 4} | other)
    assert said in mistake("compare", "a", "b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "nowhere"], "nowhere is not a run"),
        (["a", "b", "--min-robust", "40"], "a share from 0 to 1"),
        (["a", "b", "--max-drop", "nan"], "a share from 0 to 1"),
        (["a", "b", "--junit", "j.xml"], "add --min-robust or --max-drop"),
        (["a"], "Missing argument"),
    ],
)
def test_invalid_arguments_are_refused(two, mistake, arguments, said):
    assert said in mistake("compare", *arguments)


def test_runs_without_attacks_are_compared_on_clean_images_only(elsewhere, mistake, capsys):
    a_run(elsewhere / "a", [4] * 4, attacks=[], threat={"norm": "linf", "eps": 0.3})
    a_run(elsewhere / "b", [4] * 4, clean=3)
    assert run(["compare", "a", "b", "--max-drop", "0.2"]) == 1
    assert "clean accuracy per draw changes by -25.0" in capsys.readouterr().out
    assert "--min-robust needs runs with attacks" in mistake(
        "compare", "a", "b", "--min-robust", "0.1"
    )


@pytest.mark.parametrize("n", [4, 16, 64])
def test_interval_against_a_perfect_run_ends_at_zero(tmp_path, n):
    whole, less = [4] * n, [4] * (n - 1) + [3]
    a, b = a_run(tmp_path / "a", whole), a_run(tmp_path / "b", less)
    one, other = (compare(*pair, resamples=400).rows[-1] for pair in ((a, b), (b, a)))
    assert one.a.value == 1 > one.b.value
    assert one.change.low < one.change.mean < one.change.high == 0
    assert other.change.low == 0 < other.change.mean < other.change.high
    nothing, little = a_run(tmp_path / "c", [0] * n), a_run(tmp_path / "d", [1] + [0] * (n - 1))
    assert compare(nothing, little, resamples=400).rows[-1].change.low == 0
    assert compare(little, nothing, resamples=400).rows[-1].change.high == 0
    same = compare(a, a, resamples=400).rows[-1].change
    assert same.low < 0 == same.mean < same.high, "so many images show no more"
