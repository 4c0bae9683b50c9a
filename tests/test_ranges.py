"""Options out of range are refused by name, and every numeric option has a range."""

import inspect
import math
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import Field

from unfool import ranges, spec
from unfool.evaluation import run as evaluation
from unfool.spec import SpecError, menu
from unfool.toy.blobs import bayes, mixture


@ranges.checked_dataclass
class Part:
    steps: ranges.Count = 1
    t: ranges.Time = 0.1
    weight: ranges.NotNegative = 1.0
    rate: ranges.Positive | None = None
    share: ranges.ShareAboveZero | Literal["all"] = 1.0
    kind: Literal["a", "b"] | None = None
    least: Annotated[int, Field(ge=2, lt=5)] = 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"t": 100}, "t must be from 0.0001 to 1 (0.1 is 100 of 1000), not 100"),
        ({"weight": -1}, "weight must be 0 or more, not -1"),
        ({"weight": math.inf}, "weight must be 0 or more, not inf"),
        ({"weight": math.nan}, "weight must be 0 or more, not nan"),
        ({"rate": 0}, "rate must be above 0, not 0"),
        ({"share": 2}, "share must be above 0 and at most 1, not 2"),
        ({"kind": "c"}, "kind must be one of a, b, not 'c'"),
        ({"least": 5}, "least must be from 2 to below 5, not 5"),
    ],
)
def test_value_out_of_range_is_refused_by_name(options, said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Part(**options)
    assert str(refused.value) == said


def test_values_within_range_are_accepted():
    Part(steps=1, t=1, weight=0, rate=None, share="all", kind="b", least=4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("purifier.steps=0", "purifier.steps must be 1 or more, not 0"),
        ("purifier.t=100", "purifier.t must be from 0.0001 to 1 (0.1 is 100 of 1000), not 100"),
        ("attacks.0.steps=0", "attacks.0.steps must be 1 or more, not 0"),
        ("purifier.variance=best", "purifier.variance must be one of small, large, not"),
    ],
)
def test_spec_out_of_range_is_refused_before_loading(change, said, monkeypatch):
    monkeypatch.setattr("unfool.toy.blobs.Mixture", None)
    with pytest.raises(SpecError) as refused:
        evaluation.check(spec.load("blobs", [change]))
    assert said in str(refused.value)


ANY_NUMBER = {"seed", "mean", "center"}  # options that accept any number


def unbounded_numbers(hint: Any) -> list[Any]:
    """The number types in a type, also inside lists, that have no range."""
    if hint in (int, float):
        return [hint]
    if get_origin(hint) is Annotated:
        return [] if ranges.range_text(hint) else unbounded_numbers(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return []
    return [found for inner in get_args(hint) for found in unbounded_numbers(inner)]


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, names in menu.MENU.items() for n in names]
)
def test_every_numeric_option_of_every_part_has_a_range(kind, name):
    part = menu.find(kind, name)
    types, options = ranges.hints(part), menu.options_of(kind, part)
    named = {k for k, p in options.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert named <= types.keys(), "an option has no type"
    assert {key for key in named if unbounded_numbers(types[key])} <= ANY_NUMBER


# Kinds of parts whose options are checked later, by another object, a weights file, or a model.
CHECKED_LATER = {"denoiser", "sampler", "view"}
EXCLUSIVE = {"densepure", "one-step"}  # exactly one of two options must be given
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
GIVEN = {
    "denoiser": mixture(),
    "classifier": bayes(),
    "sigma": 0.5,
    "kind": "fog",
    "center": 1.0,
    "width": 1.0,
}


def values_out_of_range(hint: Any) -> list[Any]:
    """A value just beyond each bound of a type, and a word that is not among its choices."""
    beyond = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
    found: list[Any] = [bound + beyond[key] for key, bound in ranges.bounds(hint).items()]
    return [*found, "none-such"] if ranges.choices(hint) else found


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (k, n)
        for k, names in menu.MENU.items()
        for n in names
        if k not in CHECKED_LATER and n not in EXCLUSIVE
    ],
)
def test_part_built_in_python_refuses_values_out_of_range(kind, name):
    part: Any = menu.find(kind, name)
    types, options = ranges.hints(part), menu.options_of(kind, part)
    taken = inspect.signature(part).parameters.values()
    needed = {
        p.name: GIVEN.get(p.name) for p in taken if p.default is p.empty and p.kind not in VARIABLE
    }
    for option in options.keys() & types.keys():
        for value in values_out_of_range(types[option]):
            with pytest.raises(ValueError, match=option) as refused:
                part(**{**needed, option: value})
            assert str(value).removesuffix(".0") in str(refused.value)


@pytest.mark.parametrize(
    "hint", [int, float | None, list[int], dict[str, Annotated[float, "note"]]]
)
def test_number_without_a_range_is_found(hint):
    assert unbounded_numbers(hint)


@pytest.mark.parametrize(
    ("kind", "part", "said"),
    [
        ("denoiser", {"name": "unet", "layers": 0}, "denoiser.layers must be 1 or more, not 0"),
        ("denoiser", {"name": "unet", "widths": [64, 0]}, "widths.1 must be 1 or more, not 0"),
        ("denoiser", {"name": "unet", "dropout": 1}, "dropout must be from 0 to below 1, not 1"),
        ("denoiser", {"name": "dit", "weights": "no", "size": 0}, "size must be 1 or more, not 0"),
        ("classifier", {"name": "jem", "depth": 4}, "depth must be 10 or more (6n + 4), not 4"),
        ("classifier", {"name": "small-cnn", "std": [0]}, "std.0 must be above 0, not 0"),
        ("schedule", {"name": "vp", "beta_max": 0}, "schedule.beta_max must be above 0, not 0"),
    ],
)
def test_error_names_the_path_of_the_option_and_its_value(kind, part, said):
    with pytest.raises(SpecError) as refused:
        spec.check(kind, part)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("trajectories", "--step-size", "0"),
        ("trajectories", "--eot", "0"),
        ("landscape", "--grid", "0"),
        ("gradients", "--images", "0"),
        ("gradients", "--coarse", "0"),
        ("samples", "--sets", "0"),
    ],
)
def test_analysis_refuses_options_out_of_range(command, option, value, mistake, monkeypatch):
    monkeypatch.setattr("unfool.toy.blobs.Mixture", None)
    assert option in mistake("analyze", command, "blobs", option, value)
