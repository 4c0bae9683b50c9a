"""The Python API has the same outcomes as the commands, for all kinds of models and data."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import unfool
from unfool.attacks.pgd import PGD
from unfool.attacks.views import classifier_only
from unfool.cli.main import run
from unfool.data import fetch
from unfool.data.arrays import Arrays
from unfool.data.digits import digits
from unfool.networks.cnn import small_cnn
from unfool.results.run_folder import Run
from unfool.threat import Knowledge, Threat

THREAT = Threat("linf", 0.2)
FEW = [
    "purifier.steps=2",
    "evaluation.images=3",
    "evaluation.draws=2",
    "attacks.0.steps=2",
    "attacks.1.steps=2",
]
SMALL = {"threat": THREAT, "draws": 2, "quiet": True}


def outcomes(run):
    return [(o.index, o.label, o.chosen, o.conditions) for o in run.outcomes()]


def attacks(steps=2):
    on_classifier = PGD(steps=steps, loss="margin")
    adaptive = PGD(steps=steps, eot=8, loss="margin", step_schedule="cosine")
    return {
        "classifier only": unfool.AttackOnView(on_classifier, classifier_only),
        "adaptive PGD + EOT": adaptive,
    }


@pytest.fixture(scope="module")
def demo():
    return unfool.load("demo", ["purifier.steps=2"], device="cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)  # noqa: TID251
    return small_cnn()


@pytest.fixture
def tensors():
    return fetch(digits(), range(6))


def evaluate(*arguments, **options):
    return unfool.evaluate(*arguments, **{**SMALL, "attacks": {"pgd": PGD(steps=2)}, **options})


def test_evaluate_gives_the_outcomes_of_the_command(demo, tmp_path):
    changes = [word for change in FEW for word in ("--set", change)]
    assert run(["evaluate", "demo", "--out", str(tmp_path), "--quiet", *changes]) == 0
    command = unfool.load_run(tmp_path)
    ours = evaluate(demo, digits(), attacks=attacks(), images=3)
    assert outcomes(ours.run) == outcomes(command.run)
    assert ours.to_dict()["robust"] == command.to_dict()["robust"]
    assert [d.name for d in ours.doubts] == [d.name for d in command.doubts]
    rows = [result.run.spec["attacks"] for result in (ours, command)]
    assert rows[0] == rows[1]
    shared = unfool.compare(command, ours)
    assert [row.change.mean for row in shared.rows] == [0] * 5
    assert "robust +0.0 points" in repr(shared)
    assert "What differs" in str(shared)
    assert "<table>" in shared._repr_html_()


def test_run_with_a_folder_resumes_and_grows(network, tensors, tmp_path):
    first = evaluate(network, tensors, images=2, out=tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "outcomes").iterdir()}
    again = evaluate(network, tensors, images=2, out=tmp_path)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "outcomes").iterdir()}
    assert outcomes(again.run) == outcomes(first.run)
    assert evaluate(network, tensors, out=tmp_path).n == 6
    assert first.folder == tmp_path


@pytest.mark.parametrize(
    "change", ["weights", "buffer", "attack", "data", "threat", "seed", "draws"]
)
def test_folder_of_another_run_is_refused(change, network, tensors, tmp_path):
    evaluate(network, tensors, out=tmp_path)
    options: dict = {"out": tmp_path}
    model, data = network, tensors
    if change == "weights":
        with torch.no_grad():
            next(network.parameters()).add_(1e-3)
    if change == "buffer":
        model = unfool.NormalizedClassifier(network, 0.1)
    if change == "attack":
        options["attacks"] = {"pgd": PGD(steps=3)}
    if change == "data":
        data = (tensors[0] * 0.9, tensors[1])
    options |= {
        "threat": {"threat": Threat("linf", 0.1)},
        "seed": {"seed": 1},
        "draws": {"draws": 3},
    }.get(change, {})
    with pytest.raises(RuntimeError, match=r"holds a run o[fn] (an)?other"):
        evaluate(model, data, **options)


class Pairs(torch.utils.data.Dataset):
    """A torch data set of uint8 images with labels as tensors, which is common."""

    def __init__(self, x, y):
        self.x, self.y = (x * 255).byte(), y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def test_run_is_refused_if_a_module_imported_by_user_code_changes(
    tensors, network, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strength_of_own.py").write_text("STRENGTH = 0.0\n")
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "from strength_of_own import STRENGTH\n\n\n"
        "class Darker(nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__()\n"
        "        self.inner = inner\n\n"
        "    def forward(self, x):\n"
        "        return self.inner(x * (1 - STRENGTH))\n"
    )
    darker = importlib.import_module("own_network").Darker(network)
    evaluate(darker, tensors, images=2, out=tmp_path / "a")
    assert evaluate(darker, tensors, images=2, out=tmp_path / "a").n == 2
    (tmp_path / "strength_of_own.py").write_text("STRENGTH = 1.0\n")
    with pytest.raises(RuntimeError, match="with other code"):
        evaluate(darker, tensors, images=2, out=tmp_path / "a")


def test_all_kinds_of_data_give_the_same_outcomes(network, tensors):
    x, y = tensors
    x = (x * 255).byte().float() / 255
    ours = evaluate(network, Arrays(x, y, tuple("0123456789")))
    for data in ((x, y), (x.numpy(), y.numpy()), Pairs(x, y)):
        assert outcomes(evaluate(network, data).run) == outcomes(ours.run)


def test_plain_module_is_evaluated_and_keeps_its_modes(network, tensors):
    network.train()
    network[0].eval()
    modes = [module.training for module in network.modules()]
    with_noise = evaluate(unfool.NormalizedClassifier(network), tensors)
    assert outcomes(evaluate(network, tensors).run) == outcomes(with_noise.run)
    assert modes == [module.training for module in network.modules()]
    assert all(p.requires_grad for p in network.parameters())


@dataclass
class Nothing:
    """A user's own attack, which returns the image itself."""

    effort: int = 3

    def __call__(self, model, x, y, threat, noise):
        return x


def no_attack(model, x, y):
    return x + 0 * model(x).sum()


def test_attacks_are_recorded_as_in_a_spec(network, tensors):
    told = {
        "mine": Nothing(),
        "function": no_attack,
        "view": unfool.AttackOnView(PGD(steps=2), "exact", Knowledge("both")),
    }
    rows = evaluate(network, tensors, attacks=told).run.spec["attacks"]
    mine = {"name": f"{__name__}:Nothing", "effort": 3, "view": "exact", "label": "mine"}
    assert rows[0] == mine
    assert rows[1]["name"] == f"{__name__}:no_attack"
    assert (rows[2]["name"], rows[2]["view"], rows[2].get("knows")) == ("pgd", "exact", "both")


def test_run_with_only_a_user_attack_raises_a_doubt(network, tensors):
    found = evaluate(network, tensors, attacks={"mine": Nothing()})
    assert "unknown-attack" in [doubt.name for doubt in found.doubts]


def test_run_without_attacks_reports_no_robustness(network, tensors):
    found = evaluate(network, tensors, attacks={})
    assert found.random is None
    assert "No attack was tried" in str(found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threat": Threat("l2", 128)}, "128"),
        ({"threat": 8 / 255}, "unfool.Threat"),
        ({"draws": 0}, "draws must be 1 or more"),
        ({"images": 7}, "the data set has 6"),
        ({"attacks": {"robust": PGD()}}, "'robust'"),
        ({"attacks": {"pgd": PGD}}, r"PGD\(...\)"),
        ({"attacks": {"pgd": 3}}, "must be callable"),
        ({"attacks": {"pgd": unfool.AttackOnView(PGD(), "bpdda")}}, "did you mean 'bpda'"),
        ({"attacks": {"pgd": unfool.AttackOnView(PGD(), "bpda")}}, "`exact`"),
    ],
)
def test_invalid_arguments_are_refused(change, sentence, network, tensors):
    with pytest.raises((ValueError, TypeError), match=sentence):
        evaluate(network, tensors, **change)


@pytest.mark.parametrize("kind", ["tensors", "named classes", "a torch data set"])
def test_images_with_channels_last_are_refused(kind):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(0, 2)
    )
    images, labels = torch.full((4, 8, 10, 3), 0.5), torch.tensor([0, 1, 0, 1])
    data = (
        list(zip(images, labels, strict=True)) if kind == "a torch data set" else (images, labels)
    )
    options: dict = {"classes": ["a", "b"]} if kind == "named classes" else {}
    with pytest.raises(ValueError, match=r"C, H, W\).*permute\((0, 3, 1, 2|2, 0, 1)\)"):
        evaluate(network, data, **options)


def test_invalid_data_are_refused(network, tensors):
    x, y = tensors
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y))
    for data, sentence in (
        ((x * 4 - 2, y), "NormalizedClassifier"),
        (torch.utils.data.TensorDataset(x * 4 - 2, y), "NormalizedClassifier"),
        (loader, "its `.dataset`"),
        ((x[0], y), "must be"),
        ((x, y.float()), "whole numbers"),
        (3, "a pair of tensors"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            evaluate(network, data)


def test_certify_gives_the_certificates_of_the_command(tmp_path):
    few = ["certification.images=2", "certification.n=60", "certification.n0=10"]
    changes = [word for change in few for word in ("--set", change)]
    command = ["certify", "digits-certify", "--out", str(tmp_path / "a"), "--quiet", *changes]
    assert run(command) == 0
    theirs = unfool.CertifyResult.open(tmp_path / "a")
    asked: Any = theirs.run.manifest["spec"]
    options = asked["certification"]
    model = unfool.load("digits-certify", [f"purifier.sigma={options['sigma']}"], device="cpu")
    given = {key: options[key] for key in ("sigma", "n0", "n", "images")}
    ours = unfool.certify(model, digits(), **given, quiet=True, out=tmp_path / "b")
    assert ours.to_records() == theirs.to_records()
    assert ours.certified == theirs.certified
    assert ours.certified_at(0.25) == ours.certified[0.25]
    assert "certified to be right" in str(ours)
    assert len(repr(ours)) < 100
    assert "<table>" in ours._repr_html_()
    assert (ours.write_report() / "report.html").is_file()
    with pytest.raises(RuntimeError, match="CertifyResult"):
        unfool.load_run(tmp_path / "b")


def test_sweep_is_a_list_of_values_and_results(tmp_path):
    changes = ["data.size=8", "purifier.steps=2", "evaluation.draws=2", "attacks=[]"]
    found = unfool.sweep("blobs", [*changes, "sweep={purifier.t: [0.05, 0.1]}"], quiet=True)
    assert [values["purifier.t"] for values, _ in found] == ["0.05", "0.1"]
    assert found[1][1].n == 8
    records = found.to_records()
    assert len(records) == 2 * 2 * 3
    assert set(records[0]) == {"purifier.t", "condition", "reading", "accuracy", "low", "high"}
    assert "purifier.t" in str(found)
    assert repr(found) == "<SweepResult: 2 of 2 combinations>"
    assert "<table>" in found._repr_html_()
    assert (found.write_report(tmp_path) / "sweep.html").is_file()
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_load_returns_the_model_of_a_spec(demo, tensors):
    x, _ = tensors
    assert demo(x).shape == (6, 10)
    assert not any(p.requires_grad for p in demo.parameters())
    noise = unfool.Noise.of(0, range(6))
    assert torch.equal(
        demo(x, noise), unfool.load("demo", ["purifier.steps=2"], device="cpu")(x, noise)
    )
    assert not torch.equal(demo(x), demo(x))


def test_report_says_that_the_run_was_started_from_python(network, tensors, tmp_path):
    found = evaluate(network, tensors, out=tmp_path)
    text = (found.write_report() / "report.md").read_text()
    assert "`unfool.evaluate` was called from Python" in text
    assert Run.open(tmp_path).manifest["spec"]["data"] == {"name": "tensors"}
    assert isinstance(network, nn.Module)


SCRIPT = """
from torch import nn
from unfool.api.spec_from_objects import hash_contents

STRENGTH = 0.5

def shade(x):
    return x * STRENGTH if "a" in {"a", "b", "c"} else x

class Net(nn.Module):
    def forward(self, x):
        def mean(y):
            return y.mean((1, 2, 3))
        return mean(shade(x))[:, None]

print(hash_contents(Net()))
"""


def test_hash_of_a_script_covers_the_code_it_uses(tmp_path):
    """Each runs in a process of its own, where string hashes, and so the order of sets, differ."""

    def told(old="", new=""):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.replace(old, new) if old else SCRIPT)
        return subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=True
        ).stdout

    before = told()
    assert told("STRENGTH = 0.5", "UNUSED = 1  # a comment\nSTRENGTH = 0.5") == before
    changes = [("0.5", "0.6"), ("x * STRENGTH", "x / STRENGTH"), ("(1, 2, 3)", "(1, 3, 2)")]
    assert len({before, *(told(*change) for change in changes)}) == 4
