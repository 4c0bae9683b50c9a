"""Runs on disk: why a folder is refused is told by what has changed."""

import numpy as np
import pytest

from unfool.cli.main import run
from unfool.results.run_folder import Run, merge

SPEC = {
    "data": {"name": "digits", "folder": "a"},
    "classifier": {"name": "small-cnn", "weights": "net.safetensors"},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [],
    "evaluation": {"images": 2, "subset_seed": 0, "seed": 0, "draws": 2, "examples": 0}
    | {"skip_broken": False, "lpips": False},
    "machine": {"device": "cpu", "batch_size": 4, "images_per_block": 32}
    | {"execution": "plain", "engine": "local"},
}
ASKED = {
    "identity": "one",
    "images": "abc",
    "code": "c",
    "indices": [0],
    "spec": SPEC,
    "classes": ["a", "b"],
    "versions": {},
}


def test_other_contents_of_a_file_are_told_from_another_spec(elsewhere, mistake):
    def write(level):
        np.savez("d.npz", images=np.full((4, 4, 4, 1), level, np.uint8), labels=[0, 1, 0, 1])

    command = ["evaluate", "blobs", "--out", "run", "--quiet", "--set", "purifier=null"]
    command += ["--set", "attacks=[]", "--set", "data={name: arrays, path: d.npz}"]
    write(10)
    assert run([*command, "--set", "evaluation.examples=2"]) == 0
    write(200)
    said = mistake(*command)
    assert "holds a run of other weights or images (a file that the spec names has changed)" in said
    assert "of another spec" in mistake(*command, "--set", "evaluation.seed=1")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "other weights or images"),
        (
            {"spec": SPEC | {"machine": SPEC["machine"] | {"batch_size": 8}}},
            "other weights or images",
        ),
        ({"spec": SPEC | {"classifier": {"name": "bayes"}}}, "another spec"),
        ({"kind": "collection"}, "another spec"),
    ],
)
def test_merging_says_the_same(tmp_path, changed, said):
    Run.begin(tmp_path / "a", ASKED)
    Run.begin(tmp_path / "b", ASKED | {"identity": "two"} | changed)
    with pytest.raises(RuntimeError, match=f"differ: one is of {said}"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")
