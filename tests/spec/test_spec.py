"""Specs: how they are read, which ones are refused, and what identifies a run."""

from typing import Any

import pytest

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.spec import menu

TOY = {
    "data": {"name": "blobs", "size": 8},
    "classifier": "bayes",
    "threat": {"norm": "linf", "eps": "8/255"},
    "attacks": [{"name": "pgd", "steps": 2}],
}


def checked(**changes):
    return evaluation.check(specs.load(TOY | changes))


def test_fractions_and_exponents_are_read_as_numbers():
    threat = specs.load(TOY).get("threat", {})
    assert threat["eps"] == pytest.approx(8 / 255, abs=1e-12)
    assert specs.load({"a": [{"b": "1e-4"}]}) == {"a": [{"b": 1e-4}]}
    assert specs.load({"a": "runs/8/255"}) == {"a": "runs/8/255"}
    assert specs.load({"path": "2024/05", "label": "1/2"}) == {"path": "2024/05", "label": "1/2"}
    with pytest.raises(SpecError, match="divides by zero"):
        specs.load({"a": "8/0"})


def test_changes_apply_inside_tables_lists_and_bare_names():
    spec: Any = specs.load(TOY, ["attacks.0.steps=7", "classifier.side=3", "threat.eps=1/2"])
    assert spec["attacks"][0]["steps"] == 7
    assert spec["classifier"] == {"name": "bayes", "side": 3}
    assert spec["threat"]["eps"] == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("threat.eps", "path.to.key=value"),
        ("attacks.3.steps=1", "number from 0 to 0"),
        ("attacks.first.steps=1", "number from 0 to 0"),
        ("attacks.\u00b2.steps=1", "number from 0 to 0"),
        ("threat.eps.deep=1", "'deep' .* single value"),
        ("threat.eps=[", "--set"),
    ],
)
def test_invalid_changes_are_refused(change, said):
    with pytest.raises(SpecError, match=said):
        specs.load(TOY, [change])


def test_change_of_an_entry_of_an_empty_list_is_refused():
    with pytest.raises(SpecError, match="'0': set the whole list"):
        specs.load(TOY | {"attacks": []}, ["attacks.0.steps=1"])


def test_defaults_are_filled_in():
    spec = checked()
    assert spec["attacks"][0]["eot"] == 1
    assert spec["attacks"][0]["view"] == "exact"
    assert spec["evaluation"]["draws"] == 8


def test_identity_ignores_machine_defaults_images_and_paths(tmp_path):
    same = specs.identity(checked())
    assert specs.identity(checked(machine={"batch_size": 3, "device": "cpu"})) == same
    assert specs.identity(checked(evaluation={"draws": 8})) == same, "a default said aloud"
    assert specs.identity(checked(evaluation={"images": 9})) == same, "a run may grow"
    assert specs.identity(checked(evaluation={"draws": 9})) != same
    assert specs.identity(checked(threat={"norm": "l2", "eps": "8/255"})) != same
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    by_file = [specs.identity({"weights": str(path)}) for path in (one, two)]
    assert by_file[0] == by_file[1], "the same weights in another place"
    two.write_bytes(b"others")
    assert specs.identity({"weights": str(two)}) != by_file[0]


@pytest.mark.parametrize(
    "part", [{"data": {"name": "huggingface", "path": ""}}, {"denoiser": {"tokenizer": ""}}]
)
def test_identity_of_folder_depends_on_contents_not_path(tmp_path, part):
    ((kind, table),) = part.items()

    def identity(home):
        return specs.identity({kind: {key: value or str(home) for key, value in table.items()}})

    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    for home in (first, second):
        (home / "test").mkdir(parents=True)
        (home / "test" / "0.arrow").write_bytes(b"images")
        (home / "info.json").write_bytes(b"{}")
    assert identity(first) == identity(second)
    (second / ".cache").mkdir()
    (second / ".cache" / "lock").write_bytes(b"of the program that fetched it")
    assert identity(first) == identity(second)
    (second / "test" / "0.arrow").write_bytes(b"other images")
    assert identity(first) != identity(second)
    (second / "test" / "0.arrow").rename(second / "test" / "1.arrow")
    (second / "test" / "1.arrow").write_bytes(b"images")
    assert identity(first) != identity(second)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier": "baies"}, "did you mean 'bayes'"),
        ({"classifier": "zzzz"}, "choose from: .*small-cnn"),
        ({"classifier": {"side": 4}}, "needs a name"),
        ({"classifier": {"name": "bayes", "sied": 4}}, "no option 'sied'; did you mean 'side'"),
        (
            {"classifier": {"name": "bayes", "side": "many"}},
            "classifier.side must be a whole number, not 'many'",
        ),
        ({"classifier": "nowhere:Thing"}, "'nowhere:Thing'"),
        ({"data": {"name": "arrays"}}, "option 'path' is missing"),
        ({"data": "cifar10"}, "--data FOLDER.*UNFOOL_DATA"),
        ({"atacks": []}, "did you mean 'attacks'"),
        ({"attacks": {"name": "pgd"}}, "must be a list"),
        ({"attacks": ["pgd", "pgd"]}, "another `label`"),
        ({"attacks": [{"name": "pgd", "view": "bpda"}]}, "needs a purifier"),
        ({"attacks": [{"name": "pgd", "view": "exactt"}]}, "did you mean 'exact'"),
        ({"attacks": [{"name": "pgd", "view": "surrogate-same-noise"}]}, "needs a purifier"),
        ({"attacks": [{"name": "pgd", "view": {"steps": 5}}]}, "view needs a name"),
        (
            {"attacks": [{"name": "pgd", "view": {"name": "exact", "steps": 5}}]},
            "no option 'steps'",
        ),
        (
            {"attacks": [{"name": "pgd", "start": "warm"}]},
            "attacks.0.start must be one of random, zero, not 'warm'",
        ),
        ({"attacks": [{"name": "pgd", "model": 1}]}, "no option 'model'"),
        ({"purifier": "diffpure"}, "needs a denoiser"),
        ({"threat": {"norm": "l3", "eps": 1}}, "linf, l2, l1, l0"),
        ({"threat": {"norm": "linf", "eps": -1}}, "eps must be 0 or more, not -1"),
        ({"threat": {"norm": "linf"}}, "threat: the option 'eps' is missing"),
        ({"threat": 3}, "table of options"),
        ({"evaluation": {"draws": 0}}, "draws must be 1 or more"),
        ({"evaluation": {"drawz": 1}}, "did you mean 'draws'"),
        (
            {"machine": {"batch_size": "fast"}},
            "machine.batch_size must be a whole number or 'auto', not 'fast'",
        ),
        ({"machine": {"execution": "fast"}}, "machine.execution must be one of auto, plain"),
    ],
)
def test_invalid_specs_are_refused_in_one_line(changes, said):
    with pytest.raises(SpecError, match=said) as refused:
        checked(**changes)
    assert "\n" not in str(refused.value)


def test_missing_section_is_named():
    with pytest.raises(SpecError, match="'threat'"):
        evaluation.check({key: v for key, v in TOY.items() if key != "threat"})


def test_file_that_is_not_a_spec_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    with pytest.raises(SpecError, match=r"bad.yaml .*YAML file"):
        specs.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="it is not a text file"):
        specs.load(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(SpecError, match="must hold a table"):
        specs.load(path)
    path.write_text("a: [1\n")
    with pytest.raises(SpecError, match="is not a valid YAML"):
        specs.load(path)
    with pytest.raises(SpecError, match="cannot be read"):
        specs.load(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="did you mean 'blobs'"):
        specs.load("blob")


def test_checked_spec_is_a_spec_with_the_same_identity():
    for name in ("blobs", "demo"):
        once = evaluation.check(specs.load(name))
        again = evaluation.check(specs.load(once))
        assert again == once
        assert specs.identity(again) == specs.identity(once)


def test_every_shipped_spec_is_valid():
    from unfool.certification import certify
    from unfool.evaluation import sweep
    from unfool.training import spec as training

    kinds = {"training": training, "certification": certify, "sweep": sweep}
    for name, text in menu.shipped().items():
        assert len(text) > 20, f"{name} does not open with what it is"
        spec = specs.load(name)
        (kind,) = [kinds[key] for key in spec if key in kinds] or [evaluation]
        kind.check(spec, folder="/nowhere")


def test_name_of_an_experiment_suggests_its_file(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "digits-eps.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(specs.SpecError, match=r"did you mean experiments/digits-eps\.yaml\?"):
        specs.load("digits-eps")
