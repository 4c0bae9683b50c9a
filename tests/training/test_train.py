"""Training learns, resumes bit for bit, and refuses invalid input."""

import copy
import dataclasses
import json

import pytest
import torch
from diffusers.training_utils import EMAModel

from stopped_training import assert_same_weights, stopped, weights
from unfool import spec as specs
from unfool.cli.main import run
from unfool.compatibility import check_trainable
from unfool.errors import SpecError
from unfool.models import card
from unfool.noise import Noise
from unfool.toy.blobs import Blobs
from unfool.training import run as training
from unfool.training import train as loop
from unfool.training.augmentation import augmented
from unfool.training.options import TrainingOptions
from unfool.training.spec import TrainingSection, check, loop_options
from unfool.training.train import train

TINY = {
    "data": {"name": "blobs", "size": 32},
    "test": {"name": "blobs", "size": 16},
    "denoiser": {
        "name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4, "dropout": 0.1,
        "classes": 2,
    },
    "objective": {"name": "denoising", "t_max": 0.5},
    "training": {"steps": 30, "batch_size": 8, "warmup": 5, "learning_rate": 3e-3,
                 "flip": True, "crop": 1},
    "machine": {"save_every": 10},
}  # fmt: skip


def started(**changes):
    return check(specs.load(TINY | changes))


def test_denoiser_learns_and_its_card_states_the_loss(elsewhere):
    folder = training.run(
        started(training={"steps": 150, "batch_size": 32, "learning_rate": 3e-3}),
        elsewhere / "run",
        quiet=True,
    )
    told = json.loads((folder / "card.json").read_text())
    losses = told["metrics"]["denoising_loss"]
    assert told["metrics"]["test_images"] == 16
    assert losses["0.500"] < 0.5, "predicting no noise at all would cost 1"
    assert told["sha256"] == card.sha256(folder / "model.safetensors")
    for name in ("denoised.png", "log.jsonl"):
        assert (folder / name).stat().st_size
    model = card.trained_denoiser(str(folder))
    assert model.shape == (1, 4, 4)
    assert model.classes == 2
    assert not any(p.requires_grad for p in model.parameters())


def test_test_images_are_measured_in_parts_as_small_as_those_of_training(elsewhere, monkeypatch):
    """The memory for those is known to be enough."""
    sizes, real = [], training.denoising_loss

    def measured(model, z, *rest):
        sizes.append(len(z))
        return real(model, z, *rest)

    monkeypatch.setattr(training, "denoising_loss", measured)
    options = {"steps": 1, "batch_size": 12, "accumulate": 2}
    training.run(started(training=options), elsewhere / "run", quiet=True)
    assert sizes == [6, 6, 4] * 8


def test_classifier_learns(elsewhere):
    spec = {
        "data": {"name": "digits", "split": "train"},
        "test": {"name": "digits", "split": "test"},
        "classifier": {"name": "small-cnn"},
        "objective": "cross-entropy",
        "training": {
            "steps": 90,
            "batch_size": 64,
            "learning_rate": 4e-3,
            "warmup": 10,
            "ema_decay": 0.9,
            "save_half": True,
        },
    }
    folder = training.run(check(specs.load(spec)), elsewhere / "run", quiet=True)
    told = json.loads((folder / "card.json").read_text())
    assert told["metrics"]["accuracy"] > 0.9
    assert told["dtype"] == "float16"


def test_killed_training_resumes_bit_for_bit(elsewhere):
    whole = training.run(started(), elsewhere / "whole", quiet=True)
    folder = stopped(started(), elsewhere / "killed", 24)  # after the checkpoint of step 20
    assert not (folder / "model.safetensors").exists()
    resumed = training.run(started(), folder, quiet=True)
    assert_same_weights(whole, resumed)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, resumed)
    ]
    losses, losses_resumed = ([(row["step"], row["loss"]) for row in log] for log in logs)
    assert losses_resumed == losses, "the logged mean of the last 100 losses goes on, too"
    steps_logged = [step for step, _ in losses_resumed]
    assert steps_logged == [10, 20, 30]


def test_betas_are_passed_to_adamw_and_defaults_keep_the_identity():
    layer, plain = torch.nn.Linear(1, 1), {"steps": 30}
    options = TrainingOptions(30, learning_rate=0.1, betas=(0.5, 0.9))
    (group,) = loop.build_optimizer(layer, options).param_groups
    assert group["betas"] == (0.5, 0.9)
    named = started(training=plain | {"betas": [0.9, 0.999]})
    assert specs.identity(named) == specs.identity(started(training=plain))
    assert started(training=plain | {"betas": [0.95, 0.999]})["training"]["betas"] == [0.95, 0.999]
    said = (r"training.betas .*\[0.9\]", r"training.betas.0 must be below 1, not 1")
    for wrong, told in zip(({"betas": [0.9]}, {"betas": [1, 0.5]}), said, strict=True):
        with pytest.raises(SpecError, match=told):
            started(training=plain | wrong)
    with pytest.raises(SpecError, match=r"training.betas belong to AdamW"):
        started(training=plain | {"betas": [0.95, 0.999], "optimizer": "sgd"})


def test_weight_average_warms_up_as_in_diffusers(tmp_path):
    layer = torch.nn.Linear(2, 1)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

    seen, model = [], Plain()
    theirs = EMAModel(model.parameters(), decay=0.5, use_ema_warmup=True, power=0.75)

    def objective(model, x, y, noise):
        seen.append(copy.deepcopy(model))
        return (model.layer(x.flatten(1)[:, :2]) - 1).square().mean(1)

    mean = loop.train(
        model,
        objective,
        Blobs(size=8),
        tmp_path,
        TrainingOptions(4, batch_size=4, learning_rate=0.1, ema_decay=0.5, ema_power=0.75),
        quiet=True,
    )
    for after in (*seen[1:], model):
        theirs.step(after.parameters())
    theirs.copy_to(model.parameters())
    for ours, other in zip(mean.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-6)


def test_dropout_option_applies_only_to_training(elsewhere):
    short = {"steps": 2, "batch_size": 4}
    plain, dropped = (
        training.run(started(training=short | more), elsewhere / name, quiet=True)
        for name, more in (("plain", {}), ("dropped", {"dropout": 0.5}))
    )
    one, other = weights(plain), weights(dropped)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    loaded = card.trained_denoiser(str(dropped))
    assert {m.p for m in loaded.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    with pytest.raises(SpecError, match=r"training.dropout must be from 0 to below 1"):
        started(training=short | {"dropout": 1})
    with pytest.raises(SpecError, match=r"training.ema_power must be above 0"):
        started(training=short | {"ema_power": 0})
    with pytest.raises(SpecError, match="this network has no dropout"):
        training.set_dropout(torch.nn.Linear(1, 1), 0.1)


def test_compiled_network_upsamples_by_a_view(elsewhere, monkeypatch):
    """The compiler loses the gradient of `interpolate`. It takes minutes, so it is replaced here."""
    ways = []

    def compile_(network):
        ways.append([part for part in network.modules() if isinstance(part, torch.nn.Upsample)])

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    short = {"steps": 2, "batch_size": 4}
    plain = training.run(started(training=short), elsewhere / "plain", quiet=True)
    other = started(training=short, machine={"compile": True})
    found = weights(training.run(other, elsewhere / "compiled", quiet=True))
    assert ways == [[]]
    assert list(found) == list(weights(plain))
    for name, tensor in weights(plain).items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_changed_spec_is_not_resumed(elsewhere, mistake):
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
        "training.learning_rate=1e-3",
    )
    assert "belongs to another spec" in said


def test_nan_loss_stops_training_and_names_the_step(elsewhere):
    model = torch.nn.Linear(1, 1)
    calls = 0

    def objective(model, x, y, noise):
        nonlocal calls
        calls += 1
        loss = model(x[:, 0, 0, :1]).square()[:, 0]
        return loss * torch.nan if calls == 8 else loss

    with pytest.raises(RuntimeError, match=r"nan at step 7.*latest\.pt"):
        train(
            model,
            objective,
            Blobs(size=8),
            elsewhere,
            TrainingOptions(steps=20, batch_size=4),
            save_every=5,
            quiet=True,
        )
    assert torch.load(elsewhere / "latest.pt", weights_only=True)["step"] == 5


def test_augmentation_does_not_depend_on_the_batch():
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
    ],
)
def test_invalid_network_sizes_are_refused_with_the_reason(elsewhere, changes, said):
    with pytest.raises(SpecError, match=said):
        training.run(started(**changes), elsewhere / "run")


def test_invalid_training_specs_are_refused():
    with pytest.raises(SpecError, match="a denoiser or a classifier"):
        started(classifier="bayes")
    with pytest.raises(SpecError, match="did you mean 'steps'"):
        started(training={"stepz": 3})
    with pytest.raises(SpecError, match="training spec has no 'threat'"):
        started(threat={})


def test_training_section_has_the_options_and_defaults_of_train():
    section = started(training={"steps": 30})["training"]
    told = TrainingSection(**section)
    assert loop_options(told) == TrainingOptions(30, betas=[0.9, 0.999], save_steps=[])
    assert loop_options(told, precision="bfloat16").precision == "bfloat16"
    others = {"dropout": None, "lora": None, "save_half": False, "init_from": None}
    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    assert section == {name: section[name] for name in names} | others
    assert json.loads(json.dumps(section)) == section


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, muon, not 'adam'"),
        ({"betas": (0.9, 1)}, "betas must be two numbers from 0 to below 1"),
        ({"decay_from": 3}, "decay_from belongs to lr_schedule: linear"),
        ({"grow": {"at": 3}}, "grow .*at and batch_size, not at"),
        ({"grow": {"at": 3, "batch_size": 0}}, "grow.batch_size must be 1 or more, not 0"),
        ({"save_steps": [31]}, "save_steps must list steps from 1 to 30, not 31"),
    ],
)
def test_invalid_training_options_are_refused_in_python(options, said):
    with pytest.raises(ValueError, match=said):
        TrainingOptions(**{"steps": 30} | options)


def test_conditional_training_may_start_from_unconditional_weights(elsewhere, capsys):
    plain = {k: v for k, v in TINY["denoiser"].items() if k != "classes"}
    first = training.run(
        started(denoiser=plain, training={"steps": 3, "batch_size": 4}),
        elsewhere / "first",
        quiet=True,
    )
    training.seed_torch(7, "other")
    model = training.specs.build("denoiser", specs.check("denoiser", TINY["denoiser"]))
    lacking = card.initialize_from(model, str(first))
    assert [name for name in lacking if "label" not in name] == []
    x, t = Noise.of(0, range(4)).normal(torch.zeros(4, 1, 4, 4)), torch.tensor(0.3)
    for label in (0, 1, 2):
        same = model.eval()(x, t, torch.full((4,), label))
        assert torch.allclose(same, card.trained_denoiser(str(first))(x, t, None), atol=1e-6)
    options = {"steps": 2, "batch_size": 4, "learning_rate": 1e-9, "init_from": str(first)}
    second = training.run(started(training=options), elsewhere / "second")
    assert f"has no weights for {lacking[0]}" in capsys.readouterr().err
    before, after = weights(first), weights(second)
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_invalid_initial_weights_are_refused():
    with pytest.raises(SpecError, match=r"training\.init_from.* 'nothing'"):
        started(training={"steps": 1, "init_from": "nothing"})
    with pytest.raises(SpecError, match=r"training\.init_from .*classifier.* denoiser"):
        started(training={"steps": 1, "init_from": "digits-classifier"})
    with pytest.raises(SpecError, match=r"digits-denoiser .*training\.init_from"):
        started(
            denoiser={"name": "trained", "weights": "digits-denoiser"},
            training={"steps": 1, "init_from": "digits-denoiser"},
        )
    with pytest.raises(ValueError, match="no weight of digits-classifier"):
        card.initialize_from(torch.nn.Linear(2, 2), "digits-classifier")


@pytest.mark.parametrize("harm", ["weights", "card", "kind", "none"])
def test_damaged_missing_or_mismatched_card_is_refused(elsewhere, mistake, harm):
    folder = training.run(
        started(training={"steps": 1, "batch_size": 2}), elsewhere / "run", quiet=True
    )
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
        "weights": "sha256",
        "card": "not the card",
        "kind": "not a denoiser",
        "none": "no folder",
    }
    assert words[harm] in said


def test_training_killed_at_a_random_time_resumes_bit_for_bit(elsewhere):
    """The process itself is killed, at a random moment."""
    import os
    import secrets
    import signal
    import subprocess
    import sys
    import time

    import yaml

    tiny = TINY | {"training": TINY["training"] | {"steps": 60}, "machine": {"save_every": 4}}
    (elsewhere / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    code = "import sys; from unfool.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "tiny.yaml", "--quiet", "--out"]
    assert run(["train", "tiny.yaml", "--quiet", "--out", "whole"]) == 0
    checkpoint, threads = elsewhere / "killed" / "latest.pt", str(torch.get_num_threads())
    process = subprocess.Popen([*command, "killed"], env=os.environ | {"OMP_NUM_THREADS": threads})
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(secrets.randbelow(300) / 1000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(checkpoint, weights_only=True)["step"] % 4 == 0
    assert run(["train", "tiny.yaml", "--quiet", "--out", "killed"]) == 0
    assert_same_weights(elsewhere / "whole", elsewhere / "killed")


def test_batches_prepared_ahead_are_the_same():
    def make(step):
        return torch.tensor(step), torch.tensor(-step), Noise.of(0, [step])

    ahead = list(loop.batches_ahead(make, range(3, 20), helper=True))
    assert [int(x) for x, _, _ in ahead] == list(range(3, 20))
    assert ahead == list(loop.batches_ahead(make, range(3, 20), helper=False))


def test_error_in_a_batch_prepared_ahead_is_raised():
    def make(step):
        if step == 5:
            raise ValueError("image 5 is damaged")
        return step

    with pytest.raises(ValueError, match="image 5"):
        list(loop.batches_ahead(make, range(10), helper=True))


@pytest.mark.parametrize("options", [{"optimizer": "sgd"}, {"precision": "bfloat16"}])
def test_sgd_and_bfloat16_training_also_learn(elsewhere, options):
    settings = {
        "steps": 120,
        "batch_size": 32,
        "learning_rate": 3e-3 if "precision" in options else 0.03,
    }
    folder = training.run(started(training=settings | options), elsewhere / "run", quiet=True)
    losses = json.loads((folder / "card.json").read_text())["metrics"]["denoising_loss"]
    assert losses["0.500"] < 0.6


def test_bfloat16_falls_back_to_float32_where_it_is_slower(elsewhere, monkeypatch, capsys):
    for pays in (True, False):
        costs = 0.5 if pays else 2
        monkeypatch.setattr(training, "bfloat16_costs", lambda device, costs=costs: costs)
        asks = started(training={"steps": 2, "batch_size": 8, "precision": "bfloat16"})
        folder = training.run(asks, elsewhere / str(pays))
        card = json.loads((folder / "card.json").read_text())
        assert card["training"]["precision"] == ("bfloat16" if pays else "float32")
        assert ("training in float32" in capsys.readouterr().err) is not pays


def test_channels_last_changes_only_the_layout(elsewhere):
    denoiser = TINY["denoiser"] | {"dropout": 0.0}  # its masks depend on the layout
    one = training.run(started(denoiser=denoiser), elsewhere / "a", quiet=True)
    other = started(denoiser=denoiser, machine={"save_every": 10, "channels_last": True})
    two = training.run(other, elsewhere / "b", quiet=True)
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, weights(two)[name], atol=1e-3), name
    with pytest.raises(SpecError, match=r"precision .*bfloat16.* 'half'"):
        started(training={"steps": 1, "precision": "half"})


def test_too_large_batch_is_refused_before_training(elsewhere, monkeypatch):
    from unfool.training import memory_forecast

    monkeypatch.setattr(memory_forecast, "free_bytes", lambda device: 2**20)
    asks = started(training={"steps": 1, "batch_size": 4096})
    with pytest.raises(SpecError, match=r"4096 .*training.batch_size to \d+"):
        training.run(asks, elsewhere / "run", quiet=True)
    assert not (elsewhere / "run" / "latest.pt").exists()


def test_memory_forecast_counts_what_a_step_keeps():
    """The bytes of a stack of linear maps are known: it keeps the input of each layer once."""
    from unfool.training.memory_forecast import BACKWARD, forecast

    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(5)))

    def objective(model, x, y, noise):
        return model(noise.normal(x.new_empty(len(x), 64))).square().mean(1)

    fixed, each = forecast(model, objective, Blobs(size=4), "cpu", half=False)
    assert fixed == 8 * 5 * 64 * 64 * 4
    assert 5 * 64 * 4 <= each / BACKWARD <= 7 * 64 * 4


def test_model_that_does_not_fit_the_data_is_refused_before_training(elsewhere, mistake):
    few = ["train", "digits-classifier", "--quiet", "--set", "classifier.classes=5"]
    said = mistake(*few, "--out", "few")
    assert "10 classes (the last is 'nine')" in said or "10 classes (the last is '9')" in said
    assert "the classifier has 5" in said
    other = ["train", "digits-denoiser", "--quiet", "--set", "denoiser.size=16"]
    assert "the images are 1 x 8 x 8 and the denoiser was made for 1 x 16 x 16" in mistake(
        *other, "--out", "other"
    )
    channels = ["train", "digits-classifier", "--quiet", "--set", "classifier.channels=3"]
    assert "the model does not take images of 1 x 8 x 8" in mistake(*channels, "--out", "c")
    guide = "objective.classifier={name: small-cnn, channels: 1, size: 8, classes: 5}"
    said = mistake("train", "digits-addt", "--quiet", "--set", guide, "--out", "guide")
    assert "objective.classifier: the data set has 10 classes" in said


@pytest.mark.parametrize(
    ("spec", "objective", "said"),
    [
        (
            "digits-classifier",
            "denoising",
            "the objective denoising trains a denoiser, and the spec has",
        ),
        (
            "digits-denoiser",
            "cross-entropy",
            "name a classifier, or one of denoising, addt",
        ),
        ("digits-denoiser", "pgd-at", "the objective pgd-at trains a classifier"),
    ],
)
def test_objective_for_the_other_kind_of_model_is_refused(
    elsewhere, mistake, spec, objective, said
):
    assert said in mistake("train", spec, "--quiet", "--set", f"objective={objective}")


def test_classifier_without_a_row_of_logits_is_refused():
    with pytest.raises(SpecError, match=r"\(1, K\), and returned \(1,\)"):
        check_trainable(
            "classifier", {"name": "mine"}, lambda x, noise: x.flatten(1).sum(1), Blobs(size=2)
        )
