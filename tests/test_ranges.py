import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field

from unfool import ranges, spec
from unfool.evaluation import run as evaluation
from unfool.spec import SpecError


@dataclass(frozen=True)
class Part:
    steps: ranges.Count = 1
    t: ranges.Time = 0.1
    weight: ranges.NotNegative = 1.0
    rate: ranges.Positive | None = None
    share: ranges.ShareAboveZero | Literal["all"] = 1.0
    kind: Literal["a", "b"] | None = None
    least: Annotated[int, Field(ge=2, lt=5)] = 2

    def __post_init__(self):
        ranges.check_fields(self)


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
        ({"kind": "c"}, "kind is one of a, b, not 'c'"),
        ({"least": 5}, "least must be from 2 to below 5, not 5"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options, said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Part(**options)
    assert str(refused.value) == said


def test_values_within_their_range_are_taken():
    Part(steps=1, t=1, weight=0, rate=None, share="all", kind="b", least=4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("purifier.steps=0", "purifier.steps must be 1 or more, not 0"),
        ("purifier.t=100", "purifier.t must be from 0.0001 to 1 (0.1 is 100 of 1000), not 100"),
        ("attacks.0.steps=0", "attacks.0.steps must be 1 or more, not 0"),
        ("purifier.variance=best", "purifier.variance is one of small, large, not"),
    ],
)
def test_a_spec_is_refused_before_anything_is_loaded(change, said, monkeypatch):
    monkeypatch.setattr("unfool.toy.blobs.Mixture", None)
    with pytest.raises(SpecError) as refused:
        evaluation.check(spec.load("blobs", [change]))
    assert said in str(refused.value)
