"""The doctor: it finds what is wrong with a model, and nothing where nothing is."""

import pytest
import torch
from torch import nn

from defuse import doctor
from defuse.cli import run
from defuse.data import fetch
from defuse.data.blobs import Blobs, bayes
from defuse.models.classifiers import Plain

X, Y = fetch(Blobs(size=32), range(32))


class Probability(nn.Module):
    def forward(self, x, noise):
        return bayes()(x, noise).softmax(1)


class Secret(nn.Module):
    def forward(self, x, noise):
        own = torch.rand(len(x), 1)  # noqa: TID251
        return bayes()(x, noise) + own


class Batch(nn.Module):
    def forward(self, x, noise):
        return bayes()(x - x.mean(0) + 0.5, noise)


class Stair(nn.Module):
    def forward(self, x, noise):
        return bayes()((x * 255).round() / 255, noise)


class Cut(nn.Module):
    def forward(self, x, noise):
        return bayes()(x, noise).detach()


class Wide(nn.Module):
    def forward(self, x, noise):
        return bayes()(x / 255, noise)


class Noisy(nn.Module):
    def forward(self, x, noise):
        return bayes()(x + 0.1 * noise.normal(x), noise)


def failed(model):
    return " | ".join(f.what for f in doctor.examine(model, X, Y, 2) if f.mark == "FAIL")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Probability(), "returns probabilities"),
        (Secret(), "draws numbers of its own"),
        (Batch(), "depends on the batch"),
        (Stair(), "gradient is zero on 32 of 32"),
        (Cut(), "no gradient"),
        (Wide(), "when they are in [0, 255]"),
        (
            Plain(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))).train(),
            "training mode",
        ),
    ],
)
def test_each_fault_is_found(model, said):
    assert said in failed(model.eval() if said != "training mode" else model)


def test_a_sound_model_has_none():
    assert failed(bayes().eval()) == ""
    findings = doctor.examine(Noisy().eval(), X, Y, 2)
    assert not [f for f in findings if f.mark == "FAIL"]
    assert any("random" in f.what for f in findings)


def test_the_command(elsewhere, capsys):
    assert run(["doctor", "blobs"]) == 0
    out = capsys.readouterr().out
    assert "defuse 0.1.0" in out
    assert "logits of 2 classes" in out
    assert run(["menu"]) == 0
    assert "diffpure" in capsys.readouterr().out
