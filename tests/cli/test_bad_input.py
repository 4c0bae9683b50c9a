"""Bad input and parts that do not fit: exit code 2, and one sentence that says what to do."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from unfool.cli.main import run
from unfool.data import image_files

ALL = ("--set", "evaluation.images=null")


@pytest.fixture
def npz(elsewhere):
    def make(images, labels=(0, 1), name="data.npz"):
        np.savez(elsewhere / name, images=np.asarray(images), labels=np.asarray(labels))
        return f"data={{name: arrays, path: '{elsewhere / name}'}}"

    return make


def test_images_of_wrong_size_for_the_denoiser_are_refused(npz, mistake):
    said = mistake("evaluate", "demo", "--set", npz(np.zeros((2, 12, 12, 1), np.uint8)), *ALL)
    assert "the images are 1 x 12 x 12 and the denoiser was made for 1 x 8 x 8" in said


def test_images_of_wrong_size_for_the_classifier_are_refused(npz, mistake):
    data = npz(np.zeros((2, 5, 5, 1), np.uint8))
    said = mistake(
        "evaluate", "blobs", "--set", data, "--set", "purifier=null", "--set", "attacks=[pgd]"
    )
    assert "the model does not take images of 1 x 5 x 5" in said


def test_images_that_are_not_finite_are_refused(npz, mistake):
    images = np.zeros((2, 8, 8, 1), np.float32)
    images[1, 2, 3] = np.nan
    assert "nan" in mistake("evaluate", "demo", "--set", npz(images), *ALL).lower()


def test_data_with_more_classes_than_the_classifier_is_refused(npz, mistake):
    data = npz(np.zeros((2, 4, 4, 1), np.uint8), labels=(0, 6))
    assert "the data set has 7 classes" in mistake("evaluate", "blobs", "--set", data)


def test_transfer_source_with_fewer_classes_is_refused(mistake):
    source = "{name: small-cnn, channels: 1, size: 8, classes: 5}"
    attack = f"attacks=[{{name: transfer, source: {source}, attack: {{name: pgd, steps: 1}}}}]"
    said = mistake("evaluate", "demo", "--set", attack, *ALL)
    assert (
        "the source of the attack transfer-exact: the classifier returns logits of shape (1, 5)"
        in said
    )


def test_bare_network_as_classifier_is_refused(elsewhere, mistake, monkeypatch):
    monkeypatch.syspath_prepend(elsewhere)
    text = "from torch import nn\n\n\ndef make():\n"
    text += "    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
    (elsewhere / "bare_nets.py").write_text(text)
    bare = "classifier=bare_nets:make"
    for more in ("purifier={name: diffpure, steps: 2}", "purifier=null"):
        said = mistake("evaluate", "blobs", "--set", bare, "--set", "attacks=[]", "--set", more)
        assert "{name: network, network: ...}" in said


def test_folder_of_one_class_is_refused_only_where_labels_matter(elsewhere, mistake, capsys):
    """`evaluate` refuses it; `purify` and `classify`, which use no labels, accept it."""
    for name in ("a_dark", "b_bright"):
        image_files.write(elsewhere / "photos" / f"{name}.png", torch.full((1, 4, 4), 0.3))
    command = ["evaluate", "blobs", "--quiet", "--set", "attacks=[]", "--data", "photos"]
    command += ["--set", "data={name: folder, gray: true}"]
    said = mistake(*command)
    assert "one class, 'photos'" in said
    assert "into a sub-folder" in said
    assert "data.label=name" in said
    assert run([*command, "--set", "data.label=name", "--out", "out"]) == 0
    assert run(["purify", "photos", "--spec", "blobs", "--out", "pure"]) == 0
    assert run(["classify", "photos", "--spec", "blobs"]) == 0


def test_more_images_than_the_data_has_are_refused(elsewhere, mistake):
    said = mistake("evaluate", "blobs", "--set", "data.size=4", "--set", "evaluation.images=9")
    assert "has 4 images" in said


def test_missing_and_truncated_files_are_refused(elsewhere, mistake):
    said = mistake("evaluate", "blobs", "--set", "data=cifar10", "--data", elsewhere)
    assert str(elsewhere) in said
    (elsewhere / "test_batch.bin").write_bytes(b"\x00" * 5000)
    said = mistake("evaluate", "blobs", "--set", "data=cifar10", "--data", elsewhere)
    assert "5000" in said or "5,000" in said
    said = mistake("evaluate", "blobs", "--set", "data={name: arrays, path: none.npz}")
    assert "none.npz" in said


def test_weights_of_another_network_are_refused(elsewhere, mistake):
    torch.save({"conv.weight": torch.zeros(1)}, elsewhere / "other.pt")
    said = mistake("evaluate", "demo", "--set", "classifier={name: small-cnn, weights: other.pt}")
    assert "other.pt does not fit the network" in said
    assert "conv.weight" in said


def test_unknown_device_is_refused(elsewhere, mistake):
    assert "'gpu7'" in mistake("evaluate", "blobs", "--set", "machine.device=gpu7")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluat"], "Did you mean 'evaluate'"),
        (["evaluate", "blobs", "--oot", "x"], "--out"),
        (["evaluate", "blobs", "--shard", "3/2"], "i/n with i from 0 to n - 1"),
        (["evaluate", "blobs", "--shard", "\u00b2/3"], "i/n with i from 0 to n - 1"),
        (["evaluate"], "Missing argument 'spec'"),
        (["report", "nowhere"], "run.json"),
        (["merge", "nowhere", "--out", "x"], "run.json"),
        (["evaluate", "digits-denoiser"], "training spec: run it by `unfool train`"),
        (["train", "demo"], "evaluation spec: run it by `unfool evaluate`"),
        (["evaluate", "blobs", "--set", "purifier.t=7"], "purifier.t must be from 0.0001 to 1"),
        (["evaluate", "blobs", "--set", "purifier={name: diffpure, sampler: ddpm}"], "at most"),
        (["evaluate", "blobs", "--set", "attacks.0.label=[5]"], "attacks.0.label must be"),
        (["evaluate", "blobs", "--set", "attacks.0.label=robust"], "'robust'"),
        (["evaluate", "blobs", "--set", "attacks.0.view=null"], "attacks.0.view must be a word"),
        (["evaluate", "blobs", "--set", "purifier.steps=20000"], "steps must be below"),
        (["evaluate", "blobs", "--set", "threat.eps=8"], "at most 1"),
        (["doctor", "digits-addt"], "'classifier'"),
        (
            ["train", "digits-denoiser", "--set", "machine.save_every=0"],
            "save_every must be 1 or more",
        ),
        (["train", "digits-denoiser", "--set", "training.steps=0"], "steps must be 1 or more"),
        (["train", "digits-denoiser", "--set", "machine.device=gpu"], "'gpu'"),
        (["evaluate", "blobs", "--set", "machine.cluster=ray://head:1"], "machine.engine=ray"),
        (["attack", "blobs", "--set", "machine.engine=ray"], "use --set machine.engine=local"),
        (
            ["analyze", "gradients", "blobs", "--set", "machine.engine=ray"],
            "an analysis",
        ),
        (["classify", "none.png", "--batch-size", "0"], "--batch-size"),
        (["classify", "none.png", "--spec", "blobs"], "no file none.png"),
    ],
)
def test_invalid_arguments_are_refused(elsewhere, mistake, arguments, said):
    if said == "at most":
        arguments = [*arguments, "--set", "purifier.steps=500"]
    assert said in mistake(*arguments)


def test_out_of_memory_is_reported_in_one_sentence(elsewhere, monkeypatch, mistake):
    code = """
        import numpy as np
        class Data:
            classes = ["a", "b"]
            def __len__(self): return 4
            def __getitem__(self, index): return np.empty(2**50), 0
    """
    (elsewhere / "vast.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(elsewhere)
    assert "out of memory" in mistake("evaluate", "blobs", "--set", "data=vast:Data", "--quiet")


@pytest.mark.parametrize(
    "change",
    [
        "classifier={name: 'os:system', command: 'true'}",
        "purifier={name: 'os:system', command: 'true'}",
        "attacks=[{name: 'os:system', command: 'true'}]",
        "data={name: 'os:system', command: 'true'}",
        "denoiser={name: 'os:system', command: 'true'}",
        "classifier={name: network, network: {name: 'os:system', command: 'true'}}",
        "attacks=[{name: pgd, view: 'os:system'}]",
    ],
)
def test_factory_that_returns_no_part_is_refused(elsewhere, mistake, change):
    said = mistake("evaluate", "blobs", "--set", change)
    told = (
        "cannot be called",
        "is not callable",
        "does not work with",
        "has no schedule",
        "has no __len__",
    )
    assert any(words in said for words in told), said


def test_label_with_control_characters_is_refused(elsewhere, mistake):
    for label in (r"a\0b", r"\x1b[2J", r"a\nb"):
        said = mistake("evaluate", "blobs", "--set", f'attacks.0.label="{label}"')
        assert "attacks.0.label" in said


def test_sizes_beyond_memory_are_refused_in_gib(elsewhere, mistake):
    for change in ("data.side=100000", "attacks.1.knows=semi-99999999999"):
        said = mistake("evaluate", "blobs", "--set", change, "--out", "run")
        assert "GiB" in said


def test_unused_data_folder_is_refused(elsewhere, mistake, monkeypatch):
    small = ["--set", "attacks=[]", "--set", "evaluation.images=2", "--quiet", "--out", "run"]
    command = ["evaluate", "blobs", *small]
    for words in (
        command,
        ["doctor", "blobs"],
        ["train", "digits-classifier"],
        ["classify", "x", "--spec", "demo"],
    ):
        assert "photos would be ignored" in mistake(*words, "--data", "photos")
    given = "data={name: folder, gray: true, folder: a}"
    assert "is a in the spec and b" in mistake(*command, "--set", given, "--data", "b")
    monkeypatch.setenv("UNFOOL_DATA", "photos")  # a default, which may go unused
    assert run(command) == 0


def test_tilde_is_expanded_to_the_home_folder(elsewhere, mistake, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    home = str(elsewhere / "home")
    folder = "data={name: folder, gray: true}"
    assert f"{home}/pics" in mistake("evaluate", "blobs", "--data=~/pics", "--set", folder)
    assert f"{home}/x.npz" in mistake(
        "evaluate", "blobs", "--set", "data={name: arrays, path: ~/x.npz}"
    )
    assert f"{home}/x.pt" in mistake(
        "evaluate", "demo", "--set", "classifier={name: trained, weights: ~/x.pt}"
    )
    assert f"{home}/run" in mistake("report", "~/run")


def started(*arguments: str | bytes, stdout: int | IO[bytes] = subprocess.PIPE):
    """Run the command in a separate process."""
    code = "from unfool.cli.main import main; main()"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_failure_to_write_output_is_reported(elsewhere):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("wb") as sink:
        done = started("menu", stdout=sink)
    assert done.returncode == 2
    assert b"standard output" in done.stderr


def test_arguments_that_are_not_text_are_refused_and_escaped(elsewhere):
    done = started("evaluate", "blobs", "--set", b"attacks.0.label=a\xff")
    assert done.returncode == 2
    assert b"U+dcff" in done.stderr
    done = started("report", b"r\xff")
    assert done.returncode == 2
    assert rb"r\udcff is not a run" in done.stderr
