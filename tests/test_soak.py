"""The soak test reports real differences between runs, and only those."""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import soak


def left(folder: Path, draws: list[int], seconds: float, blocks: int = 1) -> dict:
    for kind in ("outcomes", "examples"):
        (folder / kind).mkdir(parents=True)
    row = {"index": 3, "conditions": {"clean": {"draws": draws}}, "seconds": seconds}
    (folder / "outcomes" / f"0000003-{seconds}.jsonl").write_text(json.dumps(row) + "\n")
    for block in range(blocks):
        np.savez(folder / "examples" / f"{block}.npz", index=np.array([3]), clean=np.ones(4))
    (folder / ".report.json.0123.tmp").write_text("half")
    return soak.contents(folder)


def test_only_times_file_names_and_temporary_files_may_differ(tmp_path):
    whole = left(tmp_path / "a", [1, 1], 0.5)
    assert soak.differences(left(tmp_path / "b", [1, 1], 0.7, blocks=2), whole) == []
    assert soak.differences(left(tmp_path / "c", [1, 0], 0.5), whole) == ["outcomes 3"]
    assert soak.differences({}, whole) == ["examples [3]", "outcomes 3"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the soak test forks")
def test_killed_and_failed_commands_are_distinguished(tmp_path):
    (tmp_path / "spec.yaml").write_text("data: 3\n")
    words = ("certify", "spec.yaml", "--out", "out", "--quiet")
    killed, _ = soak.wait(soak.start(words, tmp_path), tmp_path, lambda seconds, changes: True)
    assert killed.code is None
    failed, _ = soak.wait(soak.start(words, tmp_path), tmp_path, soak.never)
    assert failed.code == 2
    assert "unfool: " in failed.stderr
    command = soak.Command("certify", words, tmp_path, {}, 60.0, 60)
    (wrong, *_) = soak.round_of(command, tmp_path.parent / "round", random.Random(0), 1)
    assert "exit code 2" in wrong
