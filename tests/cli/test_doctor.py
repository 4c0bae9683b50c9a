"""`unfool doctor` finds the faults of a model, and reports none for a sound model."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import unfool
from unfool.cli import doctor
from unfool.cli.doctor_denoiser import check_denoiser
from unfool.cli.main import run
from unfool.data import cifar10_sample, fetch, image_files
from unfool.data.digits import digits
from unfool.defenses.purified_classifier import Purified
from unfool.models.classifiers import NormalizedClassifier, ReportedAccuracy
from unfool.toy.blobs import Blobs, bayes

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
        (Secret(), "its own random numbers"),
        (Batch(), "other images of the batch"),
        (Stair(), "gradient is zero on 32 of 32"),
        (Cut(), "no gradient"),
        (Wide(), "when they are in [0, 255]"),
        (
            NormalizedClassifier(
                nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))
            ).train(),
            "training mode",
        ),
    ],
)
def test_each_fault_of_a_model_is_found(model, said):
    assert said in failed(model.eval() if said != "training mode" else model)


def test_sound_model_has_no_faults():
    assert failed(bayes().eval()) == ""
    findings = doctor.examine(Noisy().eval(), X, Y, 2)
    assert not [f for f in findings if f.mark == "FAIL"]
    assert any("random" in f.what for f in findings)
    assert not [f for f in doctor.examine(Noisy().eval(), X[:1], Y[:1], 2) if f.mark == "FAIL"]


class Few(nn.Module):
    def forward(self, x, noise):
        return bayes()(x, noise)[:, :1]


class Many(nn.Module):
    def forward(self, x, noise):
        return torch.cat([bayes()(x, noise), torch.full((len(x), 2), -1e4)], 1)


class Pair(nn.Module):
    def forward(self, x, noise):
        return bayes()(x, noise), noise


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 2)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Few(), "returns (32, 1) for 32 images of 2 classes"),
        (Pair(), "(32, K), and returned tuple"),
        (Bare(), "{name: network, network: ...}"),
        (Purified(Bare(), lambda x, noise: x), "{name: network, network: ...}"),
        (Purified(bayes(), Bare()), "the model does not take images of 1 x 4 x 4 (TypeError"),
        (
            NormalizedClassifier(nn.Linear(3, 2)),
            "the model does not take images of 1 x 4 x 4 (RuntimeError",
        ),
    ],
)
def test_model_that_cannot_be_examined_gives_one_finding(model, said):
    (finding,) = doctor.examine(model.eval(), X, Y, 2)
    assert finding.mark == "FAIL"
    assert said in finding.what


def test_more_logits_than_classes_are_a_note():
    """As in `evaluate`, which cannot know whether the classes of the data come first."""
    findings = doctor.examine(Many().eval(), X, Y, 2)
    assert not [f for f in findings if f.mark == "FAIL"]
    assert "check that these are the classifier's first 2" in findings[0].what
    assert findings[0].mark == "note"


def test_folder_of_one_class_fails(elsewhere, capsys):
    for i in range(4):
        image_files.write(elsewhere / "photos" / f"{i}.png", X[i])
    command = ["doctor", "blobs", "--data", "photos", "--set"]
    assert run([*command, "data={name: folder, gray: true}"]) == 1
    assert "FAIL  the images of the folder all belong to one class" in capsys.readouterr().out


def test_doctor_and_menu_commands_print_their_results(elsewhere, capsys):
    assert run(["doctor", "blobs"]) == 0
    out = capsys.readouterr().out
    assert "unfool 0.1.0" in out
    assert "logits of 2 classes" in out
    assert run(["menu"]) == 0
    assert "diffpure" in capsys.readouterr().out


def test_doctor_prints_parts_denoising_error_and_time(elsewhere, capsys):
    assert run(["doctor", "demo"]) == 0
    out = capsys.readouterr().out
    assert "purifier diffpure: {t: 0.2, steps: 5, sampler: ddpm" in out
    assert "unfool menu diffpure" in out
    assert "at t = 0.05, 0.1, 0.2 its error is" in out
    assert "of the error of the noisy image itself" in out
    assert "8 votes" in out


def test_destructive_defense_is_not_reported_as_wrong_range(elsewhere, capsys):
    """The range of the classifier is checked without its purifier."""
    assert run(["doctor", "demo", "--set", "purifier.t=0.9"]) == 0
    out = capsys.readouterr().out
    assert "expects another range" not in out
    assert "with its defense, right on" in out


def test_random_denoiser_fails_denoising_check(elsewhere, capsys):
    network = "{name: unet, channels: 1, size: 8, widths: [32], predicts: image}"
    assert run(["doctor", "demo", "--set", f"denoiser={network}"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  x_hat" in out
    assert "expects another range" not in out


def test_denoiser_without_classes_needs_no_null_class():
    """Loaders of published files set `null` to False, but without classes no null class is needed."""
    network: Any = unfool.load_denoiser("digits-denoiser")
    network.null = False
    x, y = fetch(digits("test"), range(64))
    assert {finding.mark for finding in check_denoiser(network, x, y, 10)} == {"ok"}


@pytest.mark.parametrize(
    ("mean", "std"), [([0.0], [1.0]), ([0.0], [1 / 255]), ([0.9] * 3, [0.2] * 3)]
)
def test_wrong_mean_and_std_are_reported_with_better_ones(mean, std):
    """The shipped classifier was trained with the mean and std of CIFAR-10."""
    right: Any = unfool.load_classifier("cifar10-classifier")
    x, y = doctor.pick_examples(*fetch(cifar10_sample(), range(100)))
    assert len(y.unique()) == 10, "the sample is sorted by class"
    network = right.network
    wrong = NormalizedClassifier(network, mean, std).eval()
    (found,) = [f for f in doctor.examine(wrong, x, y, 10) if f.what.startswith("right on")]
    assert found.mark == "FAIL"
    told = re.search(r"but on (\d+) % with mean: \[(.*)\], std: \[(.*)\]: give", found.what)
    assert told is not None
    assert int(told[1]) >= 80
    mended: Any = [[float(v) for v in told[i].split(",")] for i in (2, 3)]
    again = NormalizedClassifier(network, *mended).eval()
    assert not [f for f in doctor.examine(again, x, y, 10) if f.mark == "FAIL"]


def test_swapped_channels_are_reported():
    class Swapped(nn.Module):
        def forward(self, x, noise=None):
            return 100 * torch.stack([x[:, 2].mean((1, 2)), x[:, 0].mean((1, 2))], 1)

    x, _ = fetch(cifar10_sample(), range(0, 96, 3))
    y = (x[:, 2].mean((1, 2)) > x[:, 0].mean((1, 2))).long()
    (found,) = [f for f in doctor.examine(Swapped().eval(), x, y, 2) if f.mark == "FAIL"]
    assert "100 % with their channels in the order BGR" in found.what


def test_stated_accuracy_is_printed_and_a_large_gap_is_a_note():
    model: Any = unfool.load_classifier("cifar10-classifier")
    x, y = doctor.pick_examples(*fetch(cifar10_sample(), range(100)))
    findings = doctor.examine(model, x, y, 10)
    assert any("the card of cifar10-classifier states 9" in f.what for f in findings)
    model.reported = ReportedAccuracy(0.91, "cifar10", "its page")
    y = torch.where(torch.arange(len(y)) % 3 == 0, (y + 1) % 10, y)
    findings = doctor.examine(model, x, y, 10)
    (found,) = [f for f in findings if f.what.startswith("right on")]
    assert found.mark == "note"
    assert "its page states 91.0 % of cifar10" in found.what


def test_votes_are_also_timed_with_one_thread():
    model, x = bayes(), X[:1]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = doctor.latency(model, x)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert "thread" not in doctor.latency(model, x).what
    finally:
        torch.set_num_threads(before)
    advised = "set OMP_NUM_THREADS=1" in found.what
    assert "with one thread instead of 2" in found.what
    assert advised == (found.mark == "note")
