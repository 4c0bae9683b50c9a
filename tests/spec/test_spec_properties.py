"""Random specs: each is read as written, or refused by one error that says what is wrong."""

import json
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unfool import spec as specs
from unfool.certification.certify import check as check_certification
from unfool.errors import SpecError
from unfool.evaluation.spec import check as check_evaluation
from unfool.training.spec import check as check_training

FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=6)
NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
VALUES = st.recursive(
    st.one_of(NUMBERS, WORDS, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
ODD = st.one_of(
    VALUES,
    st.text(max_size=8),
    st.sampled_from(["8/255", "1/0", "1e-4", "1e999", "~", "a:b", "os:system", "../x", "\ud800"]),
    st.integers(10**25, 10**30),
)
SPECS = {
    check_evaluation: {
        "data": {"name": "blobs", "size": 8},
        "classifier": {"name": "bayes"},
        "denoiser": {"name": "mixture"},
        "purifier": {"name": "diffpure", "t": 0.1, "steps": 4, "sampler": "ddpm"},
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": [{"name": "pgd", "steps": 2, "view": "exact", "label": "a"}],
        "evaluation": {"images": 4, "draws": 2},
        "machine": {"device": "cpu"},
    },
    check_certification: {
        "data": {"name": "blobs", "size": 8},
        "classifier": {"name": "bayes"},
        "denoiser": {"name": "mixture"},
        "purifier": "one-step",
        "certification": {"sigma": 0.25, "n0": 10, "n": 100},
    },
    check_training: {
        "data": {"name": "blobs", "size": 8},
        "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4},
        "objective": {"name": "denoising"},
        "training": {"steps": 4, "batch_size": 2},
        "machine": {"save_every": 2},
    },
}


def refused_or(call):
    """Return what a call returns, or None if it refuses its spec with a message."""
    try:
        return call()
    except SpecError as error:
        said = str(error)
    assert said
    return None


@FILES
@given(
    st.one_of(
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
    )
)
def test_arbitrary_file_is_a_spec_or_refused(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    found = refused_or(lambda: specs.load(path))
    assert found is None or isinstance(found, dict)


@FILES
@given(st.text("{}[]:,&*!|>'\"%@`#-? \n\tabx01.~<=", max_size=50))
def test_text_of_yaml_characters_is_a_spec_or_refused(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_text(content)
    found = refused_or(lambda: specs.load(path))
    assert found is None or isinstance(found, dict)


@FILES
@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_table_is_read_as_written(tmp_path, table):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    assert specs.load(path) == table
    assert specs.load(table) == table


@given(st.lists(WORDS, min_size=1, max_size=3), VALUES)
def test_change_sets_the_value_at_its_path(path, value):
    found = specs.load({}, [f"{'.'.join(path)}={json.dumps(value)}"])
    for step in path:
        found = found[step]
    assert found == value


@given(st.text(max_size=30))
def test_arbitrary_change_is_applied_or_refused(change):
    found = refused_or(lambda: specs.load({"a": [1, {"b": 2}], "c": "d"}, [change]))
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize("check", SPECS, ids=["evaluation", "certification", "training"])
@settings(max_examples=150)
@given(st.data())
def test_arbitrary_value_at_any_place_is_checked_or_refused(check, data):
    spec = json.loads(json.dumps(SPECS[check]))
    place, value = spec, data.draw(ODD)
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.integers(0, 3)) == 0 and isinstance(place, dict):
            place[data.draw(WORDS)] = value
            break
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    refused_or(lambda: check(specs.load(spec), None))


@pytest.mark.parametrize("check", SPECS, ids=["evaluation", "certification", "training"])
def test_unchanged_specs_of_these_tests_are_valid(check):
    assert check(specs.load(SPECS[check]), None)
