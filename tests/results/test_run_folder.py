"""Run folders on disk: a refusal names what has changed."""

import errno
import json
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from unfool.cli.main import run
from unfool.results.run_folder import Run, merge
from whole_run import SPEC, manifest, write_outcomes


def test_changed_file_contents_are_distinguished_from_another_spec(elsewhere, mistake):
    def write(level):
        np.savez("d.npz", images=np.full((4, 4, 4, 1), level, np.uint8), labels=[0, 1, 0, 1])

    command = ["evaluate", "blobs", "--out", "run", "--quiet", "--set", "purifier=null"]
    command += ["--set", "attacks=[]", "--set", "data={name: arrays, path: d.npz}"]
    write(10)
    assert run([*command, "--set", "evaluation.examples=2"]) == 0
    write(200)
    said = mistake(*command)
    assert "holds a run on other images (a file of images that the spec names has changed)" in said
    assert "of another spec" in mistake(*command, "--set", "evaluation.seed=1")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "another version of a file"),
        (
            {"spec": SPEC | {"machine": SPEC["machine"] | {"batch_size": 8}}},
            "another version of a file",
        ),
        ({"weights": "1" * 64}, "with other weights .*card"),
        ({"images": "1" * 64}, "on other images .*file"),
        ({"weights": "1" * 64, "images": "1" * 64}, "with other weights, on other images"),
        ({"weights": "1" * 64, "images": "1" * 64, "indices": [1]}, r"with other weights \("),
        ({"images": "1" * 64, "indices": [1]}, "another version of a file"),
        ({"spec": SPEC | {"classifier": {"name": "bayes"}}}, "another spec"),
        ({"kind": "collection"}, "another spec"),
    ],
)
def test_merge_error_names_what_differs(tmp_path, changed, said):
    Run.begin(tmp_path / "a", manifest([0]))
    Run.begin(tmp_path / "b", manifest([0]) | {"identity": "two"} | changed)
    with pytest.raises(RuntimeError, match=rf"differ: .*{said}"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")


@pytest.mark.parametrize(
    ("weights", "hash_of_first", "said"),
    [
        ("1" * 64, "0" * 64, r"with other weights \("),
        ("0" * 64, "1" * 64, r"on other images \("),
        ("1" * 64, "1" * 64, "with other weights, on other images"),
    ],
)
def test_extending_a_run_with_changed_inputs_names_the_change(
    tmp_path, weights, hash_of_first, said
):
    run = Run.begin(tmp_path / "r", manifest([0], weights="0" * 64))
    write_outcomes(run, b"")
    more = manifest([0, 1], identity="two", weights=weights, images="2" * 64)
    with pytest.raises(RuntimeError, match=rf"holds a run {said}"):
        Run.begin(tmp_path / "r", more, lambda indices: hash_of_first)


SMALL = ["data.size=12", "purifier=null", "denoiser=null", "attacks=[]", "evaluation.draws=2"]


def command(folder, *changes):
    words = [word for change in (*SMALL, *changes) for word in ("--set", change)]
    return ["evaluate", "blobs", *words, "--out", str(folder), "--quiet"]


@pytest.fixture
def made(elsewhere):
    """The folder of a run of 12 images in blocks of 6."""
    assert run(command(elsewhere / "r", "machine.images_per_block=6")) == 0
    return elsewhere / "r"


def test_outcomes_without_run_json_are_refused(made, mistake):
    (made / "run.json").unlink()
    for changes in ((), ("threat.eps=0.5", "evaluation.seed=7")):
        assert "no run.json" in mistake(*command(made, *changes))


def test_outcomes_of_another_run_are_refused(made, mistake):
    other = made.parent / "other"
    assert run(command(other, "evaluation.seed=7")) == 0
    file = next((other / "outcomes").iterdir())
    shutil.copy(file, made / "outcomes" / file.name)
    for words in (command(made), ["report", made], ["merge", made, "--out", made.parent / "m"]):
        assert file.name in mistake(*words)


def test_moved_folder_stops_the_run(made, elsewhere):
    begun = Run.open(made)
    outcomes = begun.outcomes()
    made.rename(elsewhere / "moved")
    with pytest.raises(RuntimeError, match="moved or deleted"):
        begun.add(outcomes, {})
    assert not made.exists()


@pytest.mark.parametrize("place", [3, 40, 150, 300])
def test_single_changed_bit_is_refused(made, mistake, place):
    file = sorted((made / "outcomes").iterdir())[0]
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    for words in (command(made), ["report", made]):
        said = mistake(*words)
        assert file.name in said
        assert "delete the file" in said
    file.unlink()
    assert run(command(made)) == 0
    assert len(Run.open(made).outcomes()) == 12


@pytest.mark.parametrize(
    ("index", "named"),
    [
        *((index, f"image {index}") for index in (12, 10**6, -1)),
        (3.5, "index .* 3.5"),
        ("3", "index .* '3'"),
        (None, "index .* null"),
        (True, "index .* true"),
    ],
)
def test_outcomes_of_images_outside_the_run_are_refused(made, mistake, index, named):
    begun = Run.open(made)
    path = write_outcomes(
        begun, json.dumps(asdict(replace(begun.outcomes()[0], index=index))).encode() + b"\n"
    )
    for words in (command(made), ["report", made]):
        assert re.search(f"{path.name}.*{named}", mistake(*words))


def test_files_that_disagree_about_an_image_are_refused(made, mistake):
    begun = Run.open(made)
    second = begun.outcomes()[1]
    begun.add([replace(second, seconds=9.0)], {})
    assert run(["report", str(made)]) == 0, "in its time alone it may differ"
    begun.add([replace(second, chosen="random")], {})
    for words in (command(made), ["report", made], ["merge", made, "--out", made.parent / "m"]):
        assert "disagree about image 1" in mistake(*words)


def test_too_many_open_files_are_not_reported_as_damage(made, monkeypatch):
    assert run(command(made.parent / "s", "evaluation.examples=2")) == 0
    begun = Run.open(made.parent / "s")

    def crowded(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files", "x.npz")

    monkeypatch.setattr(np, "load", crowded)
    with pytest.raises(OSError, match="Too many open files"):
        list(begun.examples())


def test_damaged_example_file_is_named(elsewhere, mistake):
    assert run(command(elsewhere / "s", "evaluation.examples=2")) == 0
    file = next((elsewhere / "s" / "examples").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    assert file.name in mistake("report", elsewhere / "s")
