"""Checkpoints, and what training refuses before it starts or before it would lose work."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from stopped_training import assert_same_weights, stopped
from unfool import spec as specs
from unfool.cli.main import run
from unfool.compatibility import check_test, check_trainable
from unfool.data.arrays import Arrays
from unfool.errors import SpecError
from unfool.models import card
from unfool.networks.cifar_resnet import cifar_resnet
from unfool.noise import Noise
from unfool.spec import Part
from unfool.toy.blobs import Blobs
from unfool.training import checkpoint, memory_forecast
from unfool.training import run as training
from unfool.training import train as loop
from unfool.training.objectives.denoising import Denoising, time_and_label
from unfool.training.options import TrainingOptions
from unfool.training.spec import check
from unfool.training.train import train

TINY = {
    "data": {"name": "blobs", "size": 32},
    "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4},
    "objective": {"name": "denoising", "t_max": 0.5},
    "training": {"steps": 4, "batch_size": 4},
    "machine": {"save_every": 2},
}
OWN = """
def loss(model, x, y, noise):
    return {sign} * model.predict(x, x.new_tensor(0.3), y).square().flatten(1).mean(1)
"""


def started(*changes, **parts):
    return check(specs.load(TINY | parts, changes))


def linear(model, x, y, noise):
    return model(x[:, 0, 0, :1]).square()[:, 0]


class Mirrored(Blobs):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.flip(-1), label


def test_checkpoint_of_other_data_is_not_resumed(elsewhere):
    training.run(started(), elsewhere / "run", quiet=True)
    weights = torch.load(elsewhere / "run" / "latest.pt")["asked"]["weights"]
    asked = checkpoint.run_identity(started(), Blobs(size=32), weights)
    kept = checkpoint.read(elsewhere / "run", asked)
    assert kept is not None
    assert kept["step"] == 4
    for data in (Blobs(size=31), Mirrored(size=32)):
        with pytest.raises(RuntimeError, match=r"belongs to other data"):
            checkpoint.read(elsewhere / "run", checkpoint.run_identity(started(), data, weights))


def test_changed_user_code_is_not_resumed(elsewhere, mistake):
    (elsewhere / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"objective": "own_loss:loss"}))
    (elsewhere / "own_loss.py").write_text(OWN.format(sign=1))
    command = ["train", "tiny.yaml", "--out", "run", "--quiet"]
    assert run(command) == 0
    (elsewhere / "own_loss.py").write_text(OWN.format(sign=-1))
    assert "latest.pt belongs to other code of your own" in mistake(*command)


def test_changed_helper_modules_and_user_weights_are_not_resumed(elsewhere, mistake):
    (elsewhere / "tiny.yaml").write_text(
        yaml.safe_dump(TINY | {"objective": {"name": "scaled_loss:Loss"}})
    )
    (elsewhere / "scaled_loss.py").write_text(
        "import torch\n"
        "class Loss:\n"
        "    def __init__(self):\n"
        "        self.scale = torch.load('scale.pt')\n"
        "    def __call__(self, model, x, y, noise):\n"
        "        from mean_of_loss import mean\n"
        "        z = model.perturb(model.encode(x), torch.tensor(0.5), noise)\n"
        "        return mean(self.scale * (model(z, torch.tensor(0.5)) - model.encode(x)).square())\n"
    )
    helper = "def mean(loss):\n    return loss.flatten(1).mean(1)\n"
    (elsewhere / "mean_of_loss.py").write_text(helper)
    torch.save(torch.ones(1), elsewhere / "scale.pt")
    command = ["train", "tiny.yaml", "--out", "run", "--quiet"]
    assert run(command) == 0
    assert run(command) == 0
    (elsewhere / "mean_of_loss.py").write_text(helper.replace("mean(1)", "sum(1)"))
    assert "latest.pt belongs to other code of your own" in mistake(*command)
    (elsewhere / "mean_of_loss.py").write_text(helper)
    torch.save(torch.ones(1) * 2, elsewhere / "scale.pt")
    assert "latest.pt belongs to other weights" in mistake(*command)


def test_identity_depends_on_the_initial_weights_and_not_on_their_path(elsewhere):
    first = training.run(started(), elsewhere / "first", quiet=True)
    then = started(training={"steps": 2, "batch_size": 4, "init_from": str(first)})
    before = specs.identity(then)
    shutil.move(first, elsewhere / "moved")
    moved = started(training={"steps": 2, "batch_size": 4, "init_from": str(elsewhere / "moved")})
    assert specs.identity(moved) == before, "only its place is another"
    training.run(started("training.seed=1"), elsewhere / "again", quiet=True)
    again = started(training={"steps": 2, "batch_size": 4, "init_from": str(elsewhere / "again")})
    assert specs.identity(again) != before


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x).square().flatten(1).mean(1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [1, 4])
def test_nan_loss_or_gradient_stops_training_and_names_the_step(elsewhere, optimizer, what, step):
    """A NaN gradient counts even if the loss is finite. Step 4 is the last, so its weights would stay."""
    calls = 0

    def objective(model, x, y, noise):
        nonlocal calls
        calls += 1
        loss = model(x)
        if calls < step:
            return loss
        return loss * math.nan if what == "loss" else torch.sqrt(loss * 0)  # 0, gradient 0 / 0

    said = rf"the {what} is nan at step {step - 1}; the last good checkpoint is"
    options = TrainingOptions(steps=4, batch_size=4, optimizer=optimizer)
    with pytest.raises(RuntimeError, match=said):
        train(Convolved(), objective, Blobs(size=8), elsewhere, options, save_every=2, quiet=True)
    if step == 4:
        saved = torch.load(elsewhere / "latest.pt", weights_only=True)
        assert saved["step"] == 2
        assert all(bool(tensor.isfinite().all()) for tensor in saved["now"].values())


def test_weights_that_overflow_in_half_precision_are_not_saved(tmp_path):
    part: Part = {"name": "small-cnn", "channels": 1, "size": 8, "classes": 10, "width": 4}
    model = specs.build("classifier", specs.check("classifier", part))
    with torch.no_grad():
        next(model.parameters()).fill_(1e5)
    card.save(tmp_path / "whole", "classifier", part, model)
    with pytest.raises(ValueError, match=r"0.weight is too large for float16.*save_half: false"):
        card.save(tmp_path / "half", "classifier", part, model, half=True)
    assert not (tmp_path / "half").exists()


def test_options_of_what_is_saved_may_change_when_training_is_resumed(elsewhere):
    """Weights too large for float16 are not lost, nor is a run that is to end before a saved step."""
    options = {"steps": 9, "batch_size": 4, "warmup": 0, "lr_schedule": "linear", "decay_from": 4}
    saved = {"save_half": True, "save_steps": [9]}
    folder = stopped(started(training=options | saved), elsewhere / "run", 3)
    training.run(started(training=options | {"steps": 6}), folder, quiet=True)
    assert card.read_card(str(folder))[1]["dtype"] == "float32"
    whole = training.run(started(training=options | {"steps": 6}), elsewhere / "whole", quiet=True)
    assert_same_weights(whole, folder)


def test_folder_with_a_model_but_no_checkpoint_is_left_unchanged(elsewhere, mistake):
    finished = training.run(started(), elsewhere / "run", quiet=True)
    (finished / "latest.pt").unlink()
    before = (finished / "model.safetensors").read_bytes()
    said = mistake("train", "digits-classifier", "--out", "run", "--quiet")
    assert "run holds a model but no latest.pt" in said
    assert (finished / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, [1], torch.zeros(2), b"\x80cut"])
def test_damaged_checkpoint_is_refused(elsewhere, content):
    if isinstance(content, bytes):
        (elsewhere / "latest.pt").write_bytes(content)
    else:
        torch.save(content, elsewhere / "latest.pt")
    with pytest.raises(RuntimeError, match=r"latest\.pt .*damaged"):
        training.run(started(), elsewhere, quiet=True)


def test_damaged_log_is_refused(elsewhere):
    training.run(started(), elsewhere / "run", quiet=True)
    (elsewhere / "run" / "log.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(RuntimeError, match=r"log\.jsonl .*damaged"):
        training.run(started(), elsewhere / "run", quiet=True)


def test_temporary_files_of_killed_writes_are_removed(elsewhere):
    (elsewhere / ".latest.pt.123.tmp").write_bytes(b"half a checkpoint")
    training.run(started(), elsewhere, quiet=True)
    assert [path.name for path in elsewhere.glob(".*.tmp")] == []


def test_output_path_that_is_a_file_is_refused_before_the_first_step(elsewhere, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it began"))
    (elsewhere / "file").write_text("not a folder")
    with pytest.raises(FileExistsError):
        training.run(started(), elsewhere / "file", quiet=True)


def test_resumed_training_keeps_its_precision(elsewhere, monkeypatch, capsys):
    """A slower trial on a busy machine changes nothing, unless bfloat16 is 4 times slower there."""
    asks = started("training.precision=bfloat16")
    for number, (costs, then, precision) in enumerate(
        [(0.5, 0.5, "bfloat16"), (0.5, 1.5, "bfloat16"), (2, 0.5, "float32"), (0.5, 9, "float32")]
    ):
        folder = elsewhere / str(number)
        monkeypatch.setattr(training, "bfloat16_costs", lambda device, costs=costs: costs)
        stopped(asks, folder, 3)
        monkeypatch.setattr(training, "bfloat16_costs", lambda device, costs=then: costs)
        training.run(asks, folder)
        assert json.loads((folder / "card.json").read_text())["training"]["precision"] == precision
        assert ("training in float32" in capsys.readouterr().err) is (precision == "float32")


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"name": "blobs"}, "test: its images are 1 x 4 x 4, and those of data are 1 x 8 x 8"),
        ({"name": "blobs", "side": 8}, "test: it has 2 classes, and data has 10"),
        ({"name": "folder", "folder": "/nowhere"}, "/nowhere"),
    ],
)
def test_incompatible_test_set_is_refused_before_the_first_step(elsewhere, monkeypatch, test, said):
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it began"))
    asks = check(specs.load("digits-classifier") | {"test": test})
    with pytest.raises(SpecError, match=said):
        training.run(asks, elsewhere / "run", quiet=True)


def test_classes_in_another_order_are_refused():
    images, labels = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    data = Arrays(images, labels, ["cat", "dog"])
    test = Arrays(images, labels, ["dog", "cat"])
    model = card.trained_classifier("digits-classifier")
    part: Part = {"name": "small-cnn"}
    check_test("classifier", part, model, data, data)
    with pytest.raises(SpecError, match="test: its class 0 is 'dog', and that of data is 'cat'"):
        check_test("classifier", part, model, data, test)
    denoiser = card.trained_denoiser("digits-denoiser")
    check_test("denoiser", {"name": "unet"}, denoiser, data, test)
    model.class_names = ["dog", "cat"]
    with pytest.raises(SpecError, match="the classifier's class 0 is 'dog'"):
        check_trainable("classifier", part, model, data)


def test_network_too_large_for_memory_is_refused_before_it_is_built(elsewhere):
    wide = started("denoiser.widths=[262144,262144]")
    with pytest.raises(SpecError, match=r"[\d,]+ weights .*network"):
        training.run(wide, elsewhere / "run", quiet=True)


def test_forecast_for_a_part_with_trained_weights_does_not_warn(recwarn):
    denoiser = {"name": "trained", "weights": "digits-conditional"}
    part = specs.check("classifier", {"name": "diffusion", "denoiser": denoiser})
    memory_forecast.check_weights(lambda: specs.build("classifier", part), "cpu")
    assert not recwarn.list


def test_lack_of_memory_in_a_step_names_options_of_training(elsewhere, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "train", full)
    said = r"out of memory.*training.batch_size.*training.accumulate.*checkpoint is none yet"
    with pytest.raises(RuntimeError, match=said):
        training.run(started(), elsewhere / "run", quiet=True)


def test_memory_error_suggests_a_batch_size_and_parts_that_fit(elsewhere, monkeypatch):
    """The suggested batch fits, and so does the requested batch in the suggested number of parts."""
    _, each = memory_forecast.forecast(*forecasted())
    free = memory_forecast.STATE_PER_WEIGHT * parameters() + 10 * each + 1
    monkeypatch.setattr(memory_forecast, "free_bytes", lambda device: free)
    with pytest.raises(SpecError, match=r"batch_size .*20.*accumulate .* 6 parts"):
        memory_forecast.check_memory(*forecasted()[:3], 60, 2, "cpu", False)
    memory_forecast.check_memory(*forecasted()[:3], 20, 2, "cpu", False)
    memory_forecast.check_memory(*forecasted()[:3], 60, 6, "cpu", False)


def forecasted():
    part = started().get("denoiser")
    assert part is not None
    model = specs.build("denoiser", part)
    return model, Denoising(), Blobs(size=8), "cpu", False


def parameters():
    return sum(p.numel() * p.element_size() for p in forecasted()[0].parameters())


def test_classifier_training_starts_from_a_weights_file(elsewhere):
    """The whitening layer of the file is kept, and the card no longer needs the file."""
    part = {"name": "quick-resnet", "channels": 1, "widths": [8, 8], "mean": [0.5], "std": [0.5]}
    own = specs.build("classifier", specs.check("classifier", part))
    whitening = own.network.whitening + 0.5
    own.network.whitening.copy_(whitening)
    torch.save(own.network.state_dict(), "own.pt")
    spec = {
        "data": {"name": "digits", "split": "train"},
        "classifier": part | {"weights": "own.pt"},
        "objective": "cross-entropy",
        "training": {"steps": 1, "batch_size": 4},
    }
    folder = training.run(check(specs.load(spec)), elsewhere / "run", quiet=True)
    (elsewhere / "own.pt").unlink()
    network: Any = card.trained_classifier(str(folder)).network
    assert torch.equal(network.whitening, whitening)
    assert card.read_card(str(folder))[1]["began_as"] == "own.pt"


def test_training_from_a_cifar_file_keeps_its_network_and_input(elsewhere):
    """Both are read from the file, whose stated accuracy is not that of the trained model."""
    torch.save(cifar_resnet(20).state_dict(), "resnet20-12fca82f.th")
    part = {"name": "cifar-network", "weights": "resnet20-12fca82f.th"}
    start = specs.build("classifier", specs.check("classifier", part))
    spec = {
        "data": "cifar10-sample",
        "classifier": part,
        "objective": "cross-entropy",
        "training": {"steps": 1, "batch_size": 2, "warmup": 0, "ema_decay": 0},
    }
    folder = training.run(check(specs.load(spec)), elsewhere / "run", quiet=True)
    loaded = card.trained_classifier(str(folder))
    assert torch.equal(loaded.mean, start.mean)
    assert torch.equal(loaded.std, start.std)
    before, after = (model.state_dict()["network.conv1.weight"] for model in (start, loaded))
    assert not torch.equal(before, after)
    assert start.reported is not None
    assert loaded.reported is None


def test_initial_weights_with_other_predictions_or_bytes_are_refused(elsewhere):
    first = training.run(started(), elsewhere / "first", quiet=True)
    options = {"steps": 1, "batch_size": 4, "init_from": str(first)}
    with pytest.raises(SpecError, match=r"predicts .* noise.* image"):
        started("denoiser.predicts=image", training=options)
    (first / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="not the file that its card describes"):
        training.run(started(training=options), elsewhere / "second", quiet=True)


def test_label_dropout_replaces_labels_with_the_null_class():
    model = specs.build("denoiser", specs.check("denoiser", TINY["denoiser"] | {"classes": 2}))
    x, y = torch.zeros(400, 1, 4, 4), torch.arange(400) % 2
    noise = Noise.of(0, range(400))
    for drop in (0.0, 0.25, 1.0):
        _, told = time_and_label(Denoising(label_dropout=drop), model, x, y, noise)
        share = float((told == 2).float().mean())
        assert share == pytest.approx(drop, abs=0.1)
        assert torch.equal(told[told != 2], y[told != 2])


def test_label_dropout_without_a_null_class_is_refused():
    """The conditional networks of OpenAI have no row for the label `classes`."""
    model = specs.build("denoiser", specs.check("denoiser", TINY["denoiser"] | {"classes": 2}))
    model.null = False
    x, y = torch.zeros(4, 1, 4, 4), torch.arange(4) % 2
    noise = Noise.of(0, range(4))
    with pytest.raises(ValueError, match=r"no null class.*label_dropout: 0"):
        time_and_label(Denoising(), model, x, y, noise)
    _, told = time_and_label(Denoising(label_dropout=0.0), model, x, y, noise)
    assert torch.equal(told, y)


def test_each_epoch_is_a_new_permutation_of_all_images():
    x = torch.zeros(50, 1, 1, 1)
    data = Arrays(x, torch.arange(50), [str(i) for i in range(50)])

    def order(places):
        return loop.load_batch(data, 0, places, False, 0, "cpu")[1].tolist()

    first, second = order(range(50)), order(range(50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert len({tuple(first), tuple(second), tuple(range(50))}) == 3


def test_half_of_the_images_are_flipped():
    data = Blobs(size=64)
    plain, *_ = loop.load_batch(data, 0, range(64), False, 0, "cpu")
    flipped, *_ = loop.load_batch(data, 0, range(64), True, 0, "cpu")
    same = (flipped == plain).flatten(1).all(1)
    assert torch.equal(flipped[~same], plain[~same].flip(3))
    assert 16 < int(same.sum()) < 48


def test_weight_average_follows_its_decay_warm_up(tmp_path):
    """After k steps, the decay of the average is at most k / (9 + k)."""
    seen = []

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    def objective(model, x, y, noise):
        seen.append(float(model.weight))
        return model.weight.square().expand(len(x))

    model = One()
    mean: Any = train(
        model,
        objective,
        Blobs(size=8),
        tmp_path,
        TrainingOptions(steps=6, batch_size=4, learning_rate=0.1, warmup=0),
        quiet=True,
    )
    average = seen[0]
    for step, weight in enumerate([*seen[1:], float(model.weight)], 1):
        average += (1 - step / (9 + step)) * (weight - average)
    assert float(mean.weight) == pytest.approx(average, rel=1e-5)
    assert abs(average - seen[0]) > 0.05


def test_card_with_option_names_of_the_first_release_is_accepted(elsewhere):
    """Such cards say `clip` for `clip_x0`. They can be loaded, trained further, and started from."""
    folder = elsewhere / "before"
    shutil.copytree(card.read_card("digits-denoiser")[0], folder)
    told = json.loads((folder / "card.json").read_text())
    told["part"]["clip"] = told["part"].pop("clip_x0")
    (folder / "card.json").write_text(json.dumps(told))
    assert card.trained_denoiser(str(folder)).clip_x0 is False
    part: Part = {"name": "trained", "weights": str(folder)}
    built, began = card.network_of("denoiser", part)
    assert "clip_x0" in built
    assert "clip" not in built
    assert began == {"began_as": str(folder)}
    later = {"multi_head": False}  # an option that is newer than the card
    assert specs.check("denoiser", built) == built | later


def test_shipped_weights_stay_small():
    sizes = [
        sum(file.stat().st_size for file in card.read_card(name)[0].iterdir())
        for name in card.shipped()
    ]
    assert max(sizes) < 20e6
    assert sum(sizes) < 48e6


def test_ctrl_c_says_how_to_continue(elsewhere):
    long = TINY | {"training": {"steps": 100_000, "batch_size": 4}}
    (elsewhere / "tiny.yaml").write_text(yaml.safe_dump(long))
    command = [sys.executable, "-m", "unfool", "train", "tiny.yaml", "--quiet", "--out", "run"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (elsewhere / "run" / "latest.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (
        said.strip().splitlines()[-1] == "unfool: stopped; run the same command again to continue"
    )
    assert process.returncode == 130


def test_checkpoint_with_changed_values_or_bits_is_refused(elsewhere, mistake):
    (elsewhere / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = ["train", "tiny.yaml", "--out", "run", "--quiet"]
    assert run(command) == 0
    path = elsewhere / "run" / "latest.pt"
    whole = path.read_bytes()
    saved = torch.load(path, weights_only=True)
    for changed in ({"step": -5}, {"step": saved["step"] - 1}, {"now": saved["mean"]}):
        torch.save(saved | changed, path)
        assert "latest.pt is damaged" in mistake(*command)
    weight = next(v for v in saved["now"].values() if v.is_floating_point() and v.numel() > 8)
    place = whole.index(weight.flatten()[:4].numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert "latest.pt is damaged" in mistake(*command)
    path.write_bytes(whole)
    assert run(command) == 0
