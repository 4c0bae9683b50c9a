"""Cards of weights are data: loading one runs no code unless the user trusts it."""

import json
import subprocess
import sys

import pytest
import torch

from unfool import spec as specs
from unfool.compatibility import logits_of
from unfool.defenses.denoised_smoothing import OneStep
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.denoising_error import TIMES, clean_images, denoising_errors
from unfool.errors import SpecError
from unfool.models import card
from unfool.noise import Noise
from unfool.training import spec as training

RUNS = {"name": "subprocess:getoutput", "cmd": "touch PWN"}
INSIDE = {"name": "network", "network": RUNS}
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""


def write(folder, part, kind="classifier"):
    home, told = card.read_card("digits-classifier")
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((home / "model.safetensors").read_bytes())
    (folder / "card.json").write_text(json.dumps(told | {"part": part, "kind": kind}))


@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
@pytest.mark.parametrize(
    "part",
    [
        RUNS,
        INSIDE,
        {"name": "network", "network": "antigravity:x"},
        {"name": "trained", "weights": "inner"},
        {"name": "trained", "weights": "inner", "trust": True},
        {"name": "diffusion", "denoiser": INSIDE},
    ],
)
def test_card_that_names_code_is_refused_without_running_it(elsewhere, part, kind, mistake):
    write(elsewhere / "inner", INSIDE, kind)
    write(elsewhere / "m", part, kind)
    load = card.trained_classifier if kind == "classifier" else card.trained_denoiser
    with pytest.raises(ValueError, match=r"card.json names code .* trust"):
        load("m")
    said = mistake("evaluate", "demo", "--set", f"{kind}={{name: trained, weights: m}}")
    assert "trust: true" in said
    with pytest.raises(ValueError, match="trust"):
        card.network_of(kind, {"name": "trained", "weights": "m"})
    assert not (elsewhere / "PWN").exists()


def test_initial_weights_run_no_code(elsewhere):
    """Only the options on which the weights depend, such as `mean`, are read from their card."""
    write(elsewhere / "m", INSIDE)
    spec = {
        "data": "digits",
        "classifier": "small-cnn",
        "objective": "cross-entropy",
        "training": {"steps": 1, "batch_size": 4, "init_from": "m"},
    }
    assert training.check(specs.load(spec))["training"]["init_from"] == "m"
    write(elsewhere / "other", INSIDE | {"mean": [0.1]})
    with pytest.raises(specs.SpecError, match="mean of other"):
        training.check(specs.load(spec, ["training.init_from=other"]))
    assert not (elsewhere / "PWN").exists()


@pytest.mark.parametrize("cards", [{"a": "a"}, {"a": "b", "b": "a"}])
@pytest.mark.parametrize("trust", [True, False])
def test_cyclic_cards_are_refused(elsewhere, cards, trust):
    for name, inner in cards.items():
        write(elsewhere / name, {"name": "trained", "weights": inner})
    with pytest.raises(ValueError, match="refers to itself"):
        card.trained_classifier("a", trust=trust)
    with pytest.raises(ValueError, match="refers to itself"):
        card.resolve_part({"name": "trained", "weights": "a"})


def test_trusted_card_may_name_a_user_defined_network(elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "net_of_card.py").write_text(NET)
    part = specs.check("classifier", {"name": "network", "network": "net_of_card:Net"})
    made = specs.build("classifier", part)
    card.save(elsewhere / "mine", "classifier", part, made)
    with pytest.raises(ValueError, match="net_of_card"):
        card.trained_classifier("mine")
    loaded = specs.build("classifier", {"name": "trained", "weights": "mine", "trust": True})
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # noqa: TID251
    assert torch.equal(loaded(x), made(x))


SCRIPT = "import sys; sys.path.pop(0); from unfool.cli.main import main; main()"


@pytest.mark.parametrize(
    ("start", "purifier"), [(["-c", SCRIPT], "'mine:shade'"), (["-m", "unfool"], "null")]
)
def test_files_in_current_folder_do_not_shadow_libraries(elsewhere, start, purifier):
    for name in ("matplotlib", "jinja2", "sklearn", "scipy", "yaml"):
        (elsewhere / f"{name}.py").write_text(f"open('PWN-{name}', 'w')\n")
    (elsewhere / "mine.py").write_text("def shade(x, noise):\n    return x * 0.9\n")
    small = ["evaluation.images=2", "evaluation.draws=1", "attacks=[]", f"purifier={purifier}"]
    words = [word for change in small for word in ("--set", change)]
    command = [sys.executable, *start, "evaluate", "blobs", *words, "--out", "run", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(elsewhere.glob("PWN*"))


@pytest.mark.parametrize("name", ["math:pi", "os:environ", "string:digits"])
@pytest.mark.parametrize("kind", ["attack", "view", "purifier", "classifier"])
def test_part_that_is_not_callable_is_refused(kind, name):
    with pytest.raises(specs.SpecError, match=f"{name}.*"):
        specs.check(kind, name)


def test_card_of_unknown_format_is_refused(elsewhere):
    write(elsewhere / "m", card.read_card("digits-classifier")[1]["part"])
    path = elsewhere / "m" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match=r"card\.json has format 99"):
        card.trained_classifier("m")


def test_times_beyond_those_of_the_training_are_refused():
    denoiser = card.trained_denoiser("cifar10-consistency-small")
    x, key = torch.full((1, 3, 32, 32), 0.4), Noise.of(0, [0])
    assert denoiser.t_max == 0.15
    assert OneStep(denoiser, t=0.15)(x, key).isfinite().all()
    with pytest.raises(ValueError, match=r"trained for times up to 0\.15, not for 0\.2"):
        OneStep(denoiser, t=0.2)(x, key)
    with pytest.raises(ValueError, match=r"trained for times up to 0\.15, not for 0\.2"):
        denoiser(x, torch.full((1, 1, 1, 1), 0.2))
    assert [error.t for error in denoising_errors(denoiser, clean_images(denoiser, x))] == [
        t for t in TIMES if t <= 0.15
    ]


def test_evaluation_beyond_the_times_of_the_training_says_what_to_do():
    purifier = OneStep(card.trained_denoiser("cifar10-consistency-small"), t=0.2)
    model = Purified(card.trained_classifier("cifar10-classifier"), purifier)
    with pytest.raises(SpecError, match=r"^the denoiser was trained for times up to 0\.15"):
        logits_of(model, torch.full((1, 3, 32, 32), 0.4), Noise.of(0, [0]))
