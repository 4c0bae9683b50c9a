"""Tests of what a Ray worker does with its blocks, without Ray."""

import importlib
import sys

import pytest
import torch

from unfool.errors import SpecError
from unfool.evaluation.prepare import prepare
from unfool.evaluation.run_on_ray import evaluate_block, worker_payload
from unfool.evaluation.spec import check
from unfool.models import card
from unfool.runtime.memory import free_bytes
from unfool.spec import load

SMALL = ["data.size=8", "purifier=null", "denoiser=null", "attacks=[]", "evaluation.draws=2"]
COUNTS = """
from unfool.runtime.memory import free_bytes
from unfool.spec.menu import find

measured, free = [], []


class Counts:
    \"\"\"The exact classifier; it notes the free memory, and calls that lead a gradient back.\"\"\"

    def __init__(self):
        self.inner = find("classifier", "bayes")()

    def __call__(self, x, noise):
        free.append(free_bytes("cpu"))
        if x.requires_grad:
            measured.append(len(x))
        return self.inner(x, noise)
"""


def test_worker_with_other_weights_refuses(elsewhere):
    model = card.trained_classifier("digits-classifier")
    part = card.read_card("digits-classifier")[1]["part"]
    card.save(elsewhere / "mine", "classifier", part, model)
    changes = ["classifier.weights=mine", "purifier=null", "denoiser=null", "attacks=[]"]
    spec = check(load("demo", [*changes, "evaluation.draws=1"]))
    driver = worker_payload(prepare(spec).manifest)
    assert len(evaluate_block(spec, [5], driver, 1)[0]) == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    card.save(elsewhere / "mine", "classifier", part, model)
    assert len(evaluate_block(spec, [5], worker_payload(prepare(spec).manifest), 1)[0]) == 1, (
        "a run of its own"
    )
    with pytest.raises(SpecError, match=r"differs .* weights"):
        evaluate_block(spec, [5], driver, 1)


def test_worker_with_other_images_and_version_names_both(elsewhere):
    spec = check(load("blobs", SMALL))
    driver = worker_payload(prepare(spec).manifest) | {"images": "0" * 64, "version": "0.0"}
    with pytest.raises(SpecError, match=r"version of unfool.* images"):
        evaluate_block(spec, [0], driver, 1)


@pytest.fixture
def counts(elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "counts.py").write_text(COUNTS)
    monkeypatch.delitem(sys.modules, "counts", raising=False)
    return importlib.import_module("counts")


def counted(seed):
    classifier = [
        "classifier='counts:Counts'",
        "machine.batch_size=auto",
        f"evaluation.seed={seed}",
    ]
    return check(load("blobs", [*SMALL, *classifier]))


def test_worker_is_prepared_once_for_all_its_blocks(counts):
    spec = counted(seed=1)
    driver = worker_payload(prepare(spec).manifest)
    found = [evaluate_block(spec, block, driver, 1)[0] for block in ([0, 1], [2, 3], [4])]
    assert [[o.index for o in outcomes] for outcomes in found] == [[0, 1], [2, 3], [4]]
    assert counts.measured == [
        1,
        1,
    ]  # two calls to find the batch size, of which the second is measured


def test_workers_on_one_machine_share_its_memory(counts):
    spec = counted(seed=2)
    driver = worker_payload(prepare(spec).manifest)
    counts.free.clear()
    evaluate_block(spec, [0], driver, 1000)
    assert len(counts.free) > 3
    free = free_bytes("cpu")
    assert free is not None
    assert 0 < max(counts.free) < free / 500
