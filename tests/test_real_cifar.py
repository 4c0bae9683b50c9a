"""Tests on real CIFAR-10 and public weights in folders of the user; skipped without them."""

import json
import os
from pathlib import Path

import pytest
import torch

from unfool.cli.main import run
from unfool.data import fetch
from unfool.data.cifar import cifar10
from unfool.models.card import trained_classifier
from unfool.noise import Noise

DATA, WEIGHTS = os.environ.get("UNFOOL_DATA"), os.environ.get("UNFOOL_WEIGHTS")
ACCURACY = {  # docs/results.md
    "cifar10-classifier": 0.9301,
    "cifar10-classifier-purified": 0.9276,
    "cifar10-resnet20-at": 0.5689,
}


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA and WEIGHTS), reason="needs the folders UNFOOL_DATA and UNFOOL_WEIGHTS"
)
def test_pgd_20_reduces_resnet_20_to_zero_robust_accuracy(tmp_path):
    weights = next(Path(str(WEIGHTS)).rglob("resnet20*"))
    spec = {
        "data": "cifar10",
        "classifier": {"name": "cifar-resnet", "depth": 20, "weights": str(weights)},
        "threat": {"norm": "linf", "eps": "8/255"},
        "attacks": [{"name": "pgd", "steps": 20}],
        "evaluation": {"images": 200, "draws": 1},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    assert run(["evaluate", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["clean"]["accuracy"] > 0.85
    assert report["robust"]["per_draw"]["accuracy"] == 0
    assert report["doubts"] == []


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="needs the folder UNFOOL_DATA")
@pytest.mark.parametrize("name", ACCURACY)
def test_shipped_classifiers_have_the_documented_accuracy(name):
    model, data, right = trained_classifier(name), cifar10(Path(str(DATA))), 0
    for block in (range(i, i + 500) for i in range(0, len(data), 500)):
        x, y = fetch(data, block)
        with torch.inference_mode():
            right += int((model(x, Noise.of(0, block)).argmax(1) == y).sum())
    assert right / len(data) == pytest.approx(ACCURACY[name], abs=5e-4)
