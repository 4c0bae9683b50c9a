"""YAML and `--set` values that would be read differently than they look are refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from unfool import spec as specs
from unfool.cli.main import run
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.spec import strict_yaml

TOY = {
    "data": {"name": "blobs", "size": 8},
    "classifier": "bayes",
    "threat": {"norm": "linf", "eps": "8/255"},
    "attacks": [{"name": "pgd", "steps": 2}],
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threat: {eps: 0.1, eps: 0.9}", "'eps' occurs twice"),
        ("threat: {eps: 1}\nthreat: {eps: 2}", "'threat' occurs twice .* line 2"),
        ("attacks: [{name: pgd}]\nattacks: []", "'attacks' occurs twice"),
        ("a: [{b: {c: 1, c: 1}}]", "'c' occurs twice"),
        ("3: 4", "'3'"),
        ("null: 4", "'null'"),
        ("yes: 4", "'yes'"),
        ("a: {off: 4}", "'off'"),
        ("draws: 010", "010 .* base 8"),
        ("draws: -017", "-017 .* base 8"),
        ("time: 1:30", "1:30 .* base 60"),
        ("eps: .inf", ".inf"),
        ("eps: -.inf", "-.inf"),
        ("eps: .nan", ".nan"),
        (f"eps: {'9' * 5000}", "digits"),
        ("a: &a [*a]", "alias"),
        ("a: &a {b: *a}", "alias"),
        ("a: " + "[" * 500 + "]" * 500, "deep"),
        ("a: " + "[" * 5000 + "]" * 5000, "deep"),
        ("a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99)), "deep"),
        ("label: a\x1bb", "001b"),
        ("a: !!python/object/apply:os.system [ls]", "python/object"),
    ],
)
def test_text_that_yaml_would_change_or_drop_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "s.yaml").write_text(text + "\n")
    with pytest.raises(SpecError, match=f"(?s)s.yaml.*{said}") as refused:
        specs.load(tmp_path / "s.yaml")
    assert len(str(refused.value)) < 600


@pytest.mark.timeout(60)  # without limits, parsing would take hours
@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a: b: c", "line 1, column 5", "`:`"),
        ("a:\n\t- b", "line 2, column 1", "tab"),
        ("a: @x", "line 1, column 4", "'@'"),
        ("a: [1, 2", "line 1, column 9", "comma"),
        ("a: {b: 1", "line 1, column 9", "comma"),
        ("a: {b: 1]", "line 1, column 9", "comma"),
        ("a: 'x", "line 1, column 6", "quote"),
        ("a: *x", "line 1, column 4", "'x'"),
        ('a: "\\q"', "line 1, column 6", "backslash"),
        ("- a\nb: 1", "line 2, column 1", "indentation"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "---"),
        ("a: !foo 1", "line 1, column 4", "'!foo'"),
        ("a: !e!x 1", "line 1, column 4", "'!e!'"),
        ("a: ]", "line 1, column 4", "value"),
        ("a: \x00", "character 4", "text"),
        ("a: & 1", "line 1, column 5", "YAML"),
        ("a: !!bool maybe", "", "tag"),
        ("a: !!int many", "", "tag"),
    ],
)
def test_yaml_error_is_reported_with_its_position(text: str, place: str, said: str):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        strict_yaml.parse(text)
    told = str(refused.value)
    assert told.startswith(place)
    assert said in told.removeprefix(place)
    raw = ("while ", "scanning", "expected", "unicode string", "block end", "mapping", "literal")
    assert not [word for word in raw if word in told]


@pytest.mark.parametrize(
    "form", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{x: {0}, y: {0}}}"]
)
def test_exponentially_nested_aliases_are_refused(tmp_path: Path, form: str):
    lines = ["a0: &a0 lol"]
    lines += [f"a{i}: &a{i} {form.format(f'*a{i - 1}')}" for i in range(1, 36)]
    (tmp_path / "s.yaml").write_text("\n".join(lines))
    with pytest.raises(SpecError, match="values"):
        specs.load(tmp_path / "s.yaml")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "filler", ["# " + "x" * 10**7, "b: " + "x" * 10**6, "a: [" + "1, " * 300_000]
)
def test_huge_spec_is_refused_quickly(tmp_path: Path, filler: str):
    (tmp_path / "s.yaml").write_text(filler)
    with pytest.raises(SpecError, match="characters"):
        specs.load(tmp_path / "s.yaml")


def test_anchors_merges_and_dates_are_read(tmp_path: Path):
    text = "a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\nday: 2026-01-01\nn: 0x10\nf: 1.5e-3\n"
    (tmp_path / "s.yaml").write_text(text)
    found = specs.load(tmp_path / "s.yaml")
    assert found["d"] == {"b": 1, "c": 3}
    assert (found["day"], found["n"], found["f"]) == ("2026-01-01", 16, 0.0015)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("data.path=d #1/x.npz", "d #1/x.npz"),
        ("data.path='d #1/x.npz'", "d #1/x.npz"),
        ("data.path=2024", "2024"),
        ("data.path=010", "010"),
        ("data.path=1e5", "1e5"),
        ("data.path=null", None),
        ("data.size=5", 5),
        ("data.size=[4, 5]", [4, 5]),
    ],
)
def test_value_of_a_change_is_read_as_written(change: str, value: object):
    key = change.split("=")[0].split(".")[1]
    assert specs.load(TOY, [change]).get("data", {})[key] == value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("purifier=", "write null"),
        ("purifier=  ", "write null"),
        ("evaluation.draws=010", "010"),
        ("threat.eps=.inf", ".inf"),
        ("threat={norm: linf, eps: 1, eps: 2}", "'eps' occurs twice"),
        ("data={name: blobs} # size: 5", "# size: 5"),
    ],
)
def test_empty_or_ambiguous_change_is_refused(change: str, said: str):
    with pytest.raises(SpecError, match=f"--set .*{re.escape(said)}"):
        specs.load(TOY, [change])


@pytest.mark.parametrize(
    "change",
    [
        "threat.eps=true",
        "attacks.0.steps=true",
        "attacks.0.eot=yes",
        "evaluation.draws=true",
        "evaluation.images=on",
        "evaluation.seed=false",
        "machine.batch_size=true",
        "data.size=true",
        "classifier={name: small-cnn, mean: [true]}",
    ],
)
def test_booleans_are_refused_as_numbers(change: str):
    key = change.split("=")[0].split(".")[-1]
    with pytest.raises(SpecError, match=f"({key}|mean) .*([Tt]rue|false)"):
        evaluation.check(specs.load(TOY, [change]))


def test_table_from_python_may_hold_numpy_numbers_and_paths():
    found = specs.load({"threat": {"eps": np.float32(0.5)}, "path": Path("a/b")})
    assert found == {"threat": {"eps": 0.5}, "path": "a/b"}
    for wrong in (object(), float("inf")):
        with pytest.raises(SpecError, match="eps"):
            specs.load({"eps": wrong})


def test_empty_label_is_refused():
    with pytest.raises(SpecError, match="label"):
        evaluation.check(specs.load(TOY, ["attacks.0.label=''"]))


def test_spec_is_read_from_a_pipe(elsewhere, mistake):
    import os
    import threading

    os.mkfifo(elsewhere / "pipe")
    text = "data: {name: blobs, size: 8}\nnonsense: 3\n"
    writer = threading.Thread(target=lambda: (elsewhere / "pipe").write_text(text))
    writer.start()
    assert "nonsense" in mistake("evaluate", "pipe")
    writer.join()
    assert run(["menu"]) == 0
