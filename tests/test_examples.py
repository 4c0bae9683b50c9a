"""The examples run."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import slurm

SMALL = ["data.size=24", "attacks=[]", "evaluation.examples=0", "evaluation.draws=2"]


def test_slurm_shards_make_one_complete_run(elsewhere):
    sets = [word for change in SMALL for word in ("--set", change)]
    slurm.main(["blobs", "--shards", "2", "--out", "run", "--cluster", "debug", *sets])
    told = json.loads((elsewhere / "run" / "report.json").read_text())
    assert told["n"] == told["requested"] == 24


def test_failed_slurm_job_raises_an_error(elsewhere):
    with pytest.raises(RuntimeError, match="failed: see the end of its log"):
        slurm.unfool("evaluate", "blobs", "--set", "purifier.steps=nothing")
