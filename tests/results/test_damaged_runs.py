"""A damaged or foreign file of a run is refused with the file, the key, and the value."""

import json
from typing import Any

import numpy as np
import pytest

from unfool import spec as specs
from unfool.cli.main import run
from unfool.evaluation.spec import check
from unfool.results.run_folder import Run
from whole_run import write_outcomes

ARGUMENTS = ["evaluate", "blobs", "--out", "run", "--quiet", "--set", "purifier=null"]
ARGUMENTS += ["--set", "attacks=[]", "--set", "evaluation.images=2", "--set", "evaluation.draws=2"]


@pytest.fixture
def folder(elsewhere):
    assert run(ARGUMENTS) == 0
    return elsewhere / "run"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda asked: [], ("run.json", "a table")),
        (lambda asked: {"version": 1}, ("run.json", "'identity'")),
        (lambda asked: asked | {"version": "1"}, ("run.json", "version", "'1'")),
        (lambda asked: asked | {"indices": [0, "x"]}, ("run.json", "indices.1", "'x'")),
        (lambda asked: asked | {"spec": asked["spec"] | {"threat": 3}}, ("spec: threat", "3")),
        (lambda asked: asked | {"spec": asked["spec"] | {"threat": {}}}, ("'norm', 'eps'", "{}")),
        (
            lambda asked: asked | {"spec": _without(asked["spec"], "lpips")},
            ("spec: evaluation", "'lpips'"),
        ),
        (lambda asked: asked | {"kind": "certification"}, ("spec", "'certification'")),
    ],
)
def test_damaged_run_json_is_refused(folder, change, named):
    path = folder / "run.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RuntimeError) as refused:
        Run.open(folder)
    assert all(word in str(refused.value) for word in named), refused.value
    assert run(["report", str(folder)]) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda fact: fact | {"index": "3"}, ("index", "'3'")),
        (lambda fact: fact | {"index": 10**6}, ("image 1000000",)),
        (lambda fact: fact | {"conditions": []}, ("conditions", "[]")),
        (lambda fact: fact | {"chosen": "nobody"}, ("'nobody'",)),
        (lambda fact: fact | {"seconds": "x"}, ("seconds", "'x'")),
        (lambda fact: fact | {"sanity": {"random": True}}, ("sanity", "'probabilities'")),
        (lambda fact: _draws(fact, [True, 1]), ("draws.0", "true")),
        (lambda fact: _draws(fact, [1]), ("'clean': 1",)),
    ],
)
def test_damaged_outcome_is_refused(folder, change, named):
    (path,) = (folder / "outcomes").iterdir()
    lines = path.read_text().splitlines()
    lines[0] = json.dumps(change(json.loads(lines[0])))
    path.unlink()
    write_outcomes(Run.open(folder), "\n".join(lines).encode())
    with pytest.raises(RuntimeError) as refused:
        Run.open(folder).outcomes()
    assert all(word in str(refused.value) for word in ("outcomes", *named)), refused.value


def test_outcomes_that_do_not_match_their_file_name_are_refused(folder):
    (path,) = (folder / "outcomes").iterdir()
    path.write_text(path.read_text().replace(" ", "  ", 1))
    with pytest.raises(RuntimeError, match=path.name):
        Run.open(folder).outcomes()


def test_outcome_files_that_disagree_are_refused(folder):
    (path,) = (folder / "outcomes").iterdir()
    fact = json.loads(path.read_text().splitlines()[0])
    write_outcomes(Run.open(folder), json.dumps(_draws(fact, [7, 7])).encode())
    with pytest.raises(RuntimeError, match=f"disagree about image {fact['index']}"):
        Run.open(folder).outcomes()


def test_damaged_forecast_is_refused(folder):
    (folder / "forecast.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"forecast.json.*'images'"):
        Run.open(folder).forecast()


def test_python_values_without_a_yaml_form_are_converted_or_refused(tmp_path):
    spec = {"data": {"name": "blobs"}, "classifier": {"name": "bayes"}, "attacks": []}
    given = spec | {"threat": {"norm": "linf", "eps": np.float32(0.25)}}
    assert specs.load(given).get("threat") == {"norm": "linf", "eps": 0.25}
    assert specs.load({"data": {"path": tmp_path}}).get("data") == {"path": str(tmp_path)}
    cases: list[tuple[Any, str]] = [
        ({"attacks": object()}, "attacks is <object"),
        ({"data": {True: 4}}, "key True in data"),
        ({3: 4}, "key 3"),
    ]
    for wrong, named in cases:
        with pytest.raises(ValueError, match=named):
            specs.load(spec | wrong)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("threat.eps=true", "threat.eps .*true"),
        ("evaluation.draws=true", "evaluation.draws .*true"),
        ("attacks=[{name: pgd, steps: yes}]", "attacks.0.steps .*true"),
        ("attacks=[{name: 'math:pi'}]", "'math:pi' is the float 3.14"),
    ],
)
def test_booleans_as_numbers_and_constants_as_parts_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        check(specs.load("blobs", [change]))


def _without(spec, option):
    kept = {key: value for key, value in spec["evaluation"].items() if key != option}
    return spec | {"evaluation": kept}


def _draws(fact, draws):
    conditions = fact["conditions"]
    return fact | {"conditions": conditions | {"clean": conditions["clean"] | {"draws": draws}}}


@pytest.mark.parametrize("key", ["threat", "evaluation"])
def test_spec_edited_after_the_run_is_refused(folder, mistake, key):
    path = folder / "run.json"
    asked = json.loads(path.read_text())
    asked["spec"][key] |= {"threat": {"eps": 0.9}, "evaluation": {"seed": 7}}[key]
    path.write_text(json.dumps(asked))
    for words in (["report", folder], ARGUMENTS):
        assert "run.json has changed" in mistake(*words)


@pytest.mark.parametrize(
    "name", ["index", "label", "clean", "attacked", "clean_sure", "attacked_purified"]
)
def test_example_file_with_a_missing_or_invalid_array_is_refused(elsewhere, mistake, name):
    small = ["data.size=8", "attacks=[]", "evaluation.draws=1", "purifier.steps=2"]
    words = [word for change in (*small, "evaluation.examples=2") for word in ("--set", change)]
    assert run(["evaluate", "blobs", *words, "--out", "shown", "--quiet"]) == 0
    (path,) = (elsewhere / "shown" / "examples").iterdir()
    with np.load(path) as file:
        whole = dict(file)
    for damaged in (
        {key: array for key, array in whole.items() if key != name},
        whole | {name: whole[name][:1]},
        whole | {name: np.full(whole[name].shape, np.nan)},
    ):
        np.savez(path, **damaged)  # pyright: ignore[reportArgumentType]
        assert path.name in mistake("report", "shown")
    np.savez(path, **whole)
    assert run(["report", "shown"]) == 0
