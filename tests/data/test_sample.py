"""The sample of CIFAR-10 that comes with the package."""

import json
import os
from importlib import resources
from pathlib import Path

import pytest
import torch

from unfool.cli.main import run
from unfool.data import cifar10_sample
from unfool.data.cifar import CLASSES, cifar10


def test_sample_has_ten_images_per_class_and_is_small():
    data = cifar10_sample()
    assert (len(data), data.shape, data.classes) == (100, (3, 32, 32), CLASSES)
    assert data.labels.bincount().tolist() == [10] * 10
    assert len({image.numpy().tobytes() for image in data.images}) == 100
    file = resources.files("unfool.data").joinpath("cifar10_sample.png")
    assert len(file.read_bytes()) < 300_000


@pytest.mark.skipif(not os.environ.get("UNFOOL_DATA"), reason="needs CIFAR-10 in UNFOOL_DATA")
def test_sample_holds_the_first_images_of_each_class():
    data, whole = cifar10_sample(), cifar10(Path(os.environ["UNFOOL_DATA"]))
    first = torch.cat([(whole.labels == number).nonzero()[:10, 0] for number in range(10)])
    assert torch.equal(data.images, whole.images[first])
    assert torch.equal(data.labels, whole.labels[first])


def test_demo_runs_without_external_files(elsewhere):
    changes = ["evaluation.images=2", "evaluation.draws=2", "attacks.1.steps=2"]
    words = [word for change in changes for word in ("--set", change)]
    assert run(["evaluate", "cifar10-demo", *words, "--quiet", "--out", "run"]) == 0
    told = json.loads((elsewhere / "run" / "report.json").read_text())
    assert told["number_of_classes"] == 10
    assert {attack["name"] for attack in told["attacks"]} == {
        "classifier only",
        "adaptive PGD + EOT",
    }


def test_cifar10_spec_runs_on_the_sample(elsewhere):
    changes = ["data=cifar10-sample", "purifier=null", "denoiser=null", "attacks=[{name: fgsm}]"]
    words = [word for change in [*changes, "evaluation.images=20"] for word in ("--set", change)]
    assert run(["evaluate", "cifar10-diffpure", *words, "--quiet", "--out", "run"]) == 0
    told = json.loads((elsewhere / "run" / "report.json").read_text())
    assert told["clean"]["accuracy"] > 0.7
    assert "less-than-stated" not in {doubt["name"] for doubt in told["doubts"]}
