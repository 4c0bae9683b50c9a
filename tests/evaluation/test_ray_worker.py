"""What a worker of Ray does with its blocks; here without Ray."""

import importlib

from defuse.evaluation.ray import evaluate_block
from defuse.evaluation.run import check
from defuse.spec import load

SMALL = ["data.size=8", "purifier=null", "denoiser=null", "attacks=[]", "evaluation.draws=2"]
COUNTS = """
from defuse.menu import find

measured = []


class Counts:
    \"\"\"The exact classifier; it notes the calls that lead a gradient back.\"\"\"

    def __init__(self):
        self.inner = find("classifier", "bayes")()

    def __call__(self, x, noise):
        if x.requires_grad:
            measured.append(len(x))
        return self.inner(x, noise)
"""


def test_a_worker_is_made_ready_once_for_all_its_blocks(elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "counts.py").write_text(COUNTS)
    counts = importlib.import_module("counts")
    spec = check(load("blobs", [*SMALL, "classifier='counts:Counts'", "machine.rows=auto"]))
    found = [evaluate_block(spec, block)[0] for block in ([0, 1], [2, 3], [4])]
    assert [[o.index for o in outcomes] for outcomes in found] == [[0, 1], [2, 3], [4]]
    assert counts.measured == [1, 1]  # to find how many rows fit: the second call counts
