"""Tests of several purifications of each image, from spec to report."""

import pytest
import torch

from unfool import spec as specs
from unfool.defenses.aggregate import Aggregated
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.evaluation.prepare import build_model
from unfool.noise import Noise
from unfool.results.summary import summarize_run

SMALL = [
    "evaluation={images: 2, draws: 2, examples: 1}",
    "purifier={name: gdmp, steps: 2, passes: 2}",
    "paths={count: 3, by: votes}",
    "attacks=[{name: pgd, steps: 1}, {name: pgd, view: bpda, steps: 1}]",
]


def test_spec_can_ask_for_several_paths(tmp_path):
    checked = evaluation.check(specs.load("blobs", SMALL))
    assert checked.get("paths") == {"count": 3, "by": "votes"}
    model = build_model(checked, "cpu")
    assert isinstance(model, Aggregated)
    shares = model(torch.full((2, 1, 4, 4), 0.5), Noise.of(0, range(2)))
    assert torch.allclose(3 * shares, (3 * shares).round(), atol=1e-5)
    found = summarize_run(evaluation.run(checked, tmp_path, quiet=True))
    assert (
        "3 purifications of each image, aggregated by votes" in found["threat_model"]["the defense"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("paths={count: 0}", "paths.count must be 1 or more, not 0"),
        ("paths={count: 2, by: sum}", "paths.by"),
        ("paths={number: 2}", "no option 'number'"),
    ],
)
def test_invalid_paths_are_refused(change: str, words: str):
    with pytest.raises(SpecError, match=words):
        evaluation.check(specs.load("blobs", [change]))


def test_paths_need_a_purifier():
    with pytest.raises(SpecError, match="leave paths out"):
        evaluation.check(
            specs.load("blobs", ["purifier=null", "paths={count: 2}", "attacks=[pgd]"])
        )
