"""On real CIFAR-10 and public weights, in folders that the user names; skipped without them."""

import json
import os
from pathlib import Path

import pytest

from defuse.cli import run

DATA, WEIGHTS = os.environ.get("DEFUSE_DATA"), os.environ.get("DEFUSE_WEIGHTS")


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA and WEIGHTS), reason="needs the folders DEFUSE_DATA and DEFUSE_WEIGHTS"
)
def test_pgd_20_leaves_nothing_of_resnet_20(tmp_path):
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
    assert report["robust"]["mean"]["accuracy"] == 0
    assert report["doubts"] == []
