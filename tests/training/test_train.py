"""Training: it learns, it resumes bit for bit, and it refuses what it should."""

import json

import pytest
import torch

from defuse import spec as specs
from defuse.cli import run
from defuse.data.blobs import Blobs
from defuse.menu import SpecError
from defuse.models import card
from defuse.noise import Noise
from defuse.training import run as training
from defuse.training.objectives import augmented
from defuse.training.train import train

TINY = {
    "data": {"name": "blobs", "size": 32},
    "test": {"name": "blobs", "size": 16},
    "denoiser": {
        "name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4, "dropout": 0.1,
        "classes": 2,
    },
    "objective": {"name": "denoising", "t_max": 0.5},
    "training": {"steps": 30, "batch": 8, "warmup": 5, "rate": 3e-3, "flip": True, "crop": 1},
    "machine": {"save_every": 10},
}  # fmt: skip


def weights(folder):
    return card.read_state(folder / "model.safetensors")


def started(**changes):
    return training.check(specs.load(TINY | changes))


def test_a_denoiser_learns_and_its_card_says_how_well(elsewhere):
    folder = training.run(
        started(training={"steps": 150, "batch": 32, "rate": 3e-3}), elsewhere / "run", quiet=True
    )
    told = json.loads((folder / "card.json").read_text())
    losses = told["metrics"]["denoising_loss"]
    assert told["metrics"]["test_images"] == 16
    assert losses["0.500"] < 0.5, "predicting no noise at all would cost 1"
    assert told["sha256"] == card.sha256(folder / "model.safetensors")
    for name in ("denoised.png", "log.jsonl"):
        assert (folder / name).stat().st_size
    model = card.load_denoiser(str(folder))
    assert model.shape == (1, 4, 4)
    assert model.classes == 2
    assert not any(p.requires_grad for p in model.parameters())


def test_a_classifier_learns(elsewhere):
    spec = {
        "data": {"name": "digits", "split": "train"},
        "test": {"name": "digits", "split": "test"},
        "classifier": {"name": "small-cnn"},
        "objective": "plain",
        "training": {
            "steps": 90,
            "batch": 64,
            "rate": 4e-3,
            "warmup": 10,
            "average": 0.9,
            "half": True,
        },
    }
    folder = training.run(training.check(specs.load(spec)), elsewhere / "run", quiet=True)
    told = json.loads((folder / "card.json").read_text())
    assert told["metrics"]["accuracy"] > 0.9
    assert told["dtype"] == "float16"


class Stop(Exception):
    pass


def test_a_killed_training_ends_with_the_same_bits(elsewhere, monkeypatch):
    whole = training.run(started(), elsewhere / "whole", quiet=True)
    import defuse.training.train as loop

    steps, real = 0, loop._batch

    def dies(*arguments):
        nonlocal steps
        steps += 1
        if steps == 24:  # after the checkpoint of step 20
            raise Stop
        return real(*arguments)

    monkeypatch.setattr(loop, "_batch", dies)
    with pytest.raises(Stop):
        training.run(started(), elsewhere / "killed", quiet=True)
    monkeypatch.setattr(loop, "_batch", real)
    assert not (elsewhere / "killed" / "model.safetensors").exists()
    resumed = training.run(started(), elsewhere / "killed", quiet=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    steps_logged = [
        json.loads(line)["step"] for line in (resumed / "log.jsonl").read_text().splitlines()
    ]
    assert steps_logged == [10, 20, 30]


def test_a_changed_spec_never_resumes(elsewhere, mistake):
    import yaml

    (elsewhere / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert run(["train", "tiny.yaml", "--out", "run", "--quiet", "--set", "training.steps=10"]) == 0
    said = mistake(
        "train",
        "tiny.yaml",
        "--out",
        "run",
        "--set",
        "training.steps=10",
        "--set",
        "training.rate=1e-3",
    )
    assert "belongs to another spec" in said


def test_a_loss_that_is_no_number_stops_with_the_step(elsewhere):
    model = torch.nn.Linear(1, 1)
    calls = 0

    def objective(model, x, y, noise):
        nonlocal calls
        calls += 1
        loss = model(x[:, 0, 0, :1]).square()[:, 0]
        return loss * torch.nan if calls == 8 else loss

    with pytest.raises(
        RuntimeError, match=r"nan at step 7; the last good checkpoint is .*latest.pt"
    ):
        train(
            model, objective, Blobs(size=8), elsewhere, steps=20, batch=4, save_every=5, quiet=True
        )
    assert torch.load(elsewhere / "latest.pt", weights_only=True)["step"] == 5


def test_augmentation_is_of_the_image_alone():
    x = Noise.of(1, range(6)).uniform(torch.zeros(6, 3, 8, 8))
    noise = Noise.of(0, range(6))
    whole = augmented(x, noise, flip=True, crop=2)
    parts = [augmented(x[i : i + 1], noise.take([i]), flip=True, crop=2) for i in range(6)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, x)
    assert torch.equal(augmented(x, noise, flip=False, crop=0), x)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"denoiser": {"name": "unet", "widths": [8, 9], "groups": 4}}, "multiple of groups"),
        ({"denoiser": {"name": "unet", "size": 30, "widths": [32, 32, 32]}}, "multiple of patch"),
        ({"objective": {"name": "denoising", "t_max": 2}}, "t_max <= 1"),
    ],
)
def test_parts_refuse_in_their_own_words(elsewhere, changes, said):
    with pytest.raises(SpecError, match=said):
        training.run(started(**changes), elsewhere / "run")


def test_a_training_spec_is_checked():
    with pytest.raises(SpecError, match="a denoiser or a classifier"):
        started(classifier="bayes")
    with pytest.raises(SpecError, match="did you mean 'steps'"):
        started(training={"stepz": 3})
    with pytest.raises(SpecError, match="training spec has no 'threat'"):
        started(threat={})


@pytest.mark.parametrize("harm", ["weights", "card", "kind", "none"])
def test_a_card_that_does_not_fit_is_told(elsewhere, mistake, harm):
    folder = training.run(started(training={"steps": 1, "batch": 2}), elsewhere / "run", quiet=True)
    file = folder / "card.json"
    told = json.loads(file.read_text())
    if harm == "weights":
        (folder / "model.safetensors").write_bytes(b"other")
    elif harm == "card":
        file.write_text("{")
    elif harm == "kind":
        file.write_text(json.dumps(told | {"kind": "classifier"}))
    name = "nowhere" if harm == "none" else str(folder)
    said = mistake("evaluate", "blobs", "--set", f"denoiser={{name: trained, weights: '{name}'}}")
    words = {
        "weights": "another sha256",
        "card": "is not a card",
        "kind": "not a denoiser",
        "none": "no folder",
    }
    assert words[harm] in said
