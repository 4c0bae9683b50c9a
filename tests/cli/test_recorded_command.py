"""Every command that makes a result records its own command line, ready to be pasted."""

import json
import shlex
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

from unfool.cli.main import app, run
from unfool.runtime.provenance import command_line, started_by

SMALL = ["--set", "data.size=8", "--set", "evaluation.examples=0", "--quiet"]
FEW = ["--images", "2", "--device", "cpu", "--quiet"]
SPEC = {
    "data": {"name": "blobs", "size": 8},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": {"name": "diffpure", "sampler": "ddpm", "t": 0.05, "steps": 2},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [],
    "evaluation": {"draws": 2, "examples": 0},
    "sweep": {"purifier.t": [0.005]},
}
TINY = {
    "data": {"name": "blobs", "size": 8},
    "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4},
    "objective": "denoising",
    "training": {"steps": 1, "batch_size": 8},
}
CERTIFIED = {
    "data": {"name": "blobs", "size": 8},
    "classifier": "bayes",
    "certification": {"sigma": 0.25, "n0": 10, "n": 40, "images": 2},
}
CASES = {
    "evaluate": ("report.json", ["blobs", "--set", "attacks=[]", *SMALL]),
    "attack": ("card.json", ["blobs", "--set", "attacks=[{name: fgsm}]", *SMALL]),
    "certify": ("starts/*.json", ["certified.yaml", "--quiet"]),
    "sweep": ("sweep.json", ["spec.yaml", "--quiet"]),
    "compare": ("compare.json", ["one", "one", "--max-drop", "0.1"]),
    "purify": ("sheet.html", ["x.npz", "--spec", "blobs", "--seed", "3"]),
    "classify": ("sheet.html", ["x.npz", "--spec", "blobs", "--votes", "2"]),
    "train": ("card.json", ["tiny.yaml", "--set", "training.steps=2"]),
    "analyze gradients": ("gradients.json", ["blobs", "--draws", "2", *FEW]),
    "analyze trajectories": (
        "trajectories.json",
        ["blobs", "--steps", "2", "--eot", "1", "--draws", "2", "--runs", "2", *FEW],
    ),
    "analyze landscape": (
        "landscape.json",
        [
            "demo",
            "--steps",
            "3",
            "--eot",
            "2",
            "--draws",
            "2",
            "--grid",
            "3",
            "--image",
            "1",
            "--quiet",
        ],
    ),
    "analyze purification": (
        "purification.json",
        ["blobs", "--steps", "1", "--eot", "1", "--draws", "2", *FEW],
    ),
    "analyze compression": (
        "compression.json",
        ["blobs", "--steps", "1", "--draws", "2", "--size", "1", "--size", "2", *FEW],
    ),
    "analyze critical-eps": (
        "critical-eps.json",
        ["blobs", "--steps", "1", "--eot", "1", "--draws", "2", "--rounds", "1", *FEW],
    ),
    "analyze samples": (
        "samples.json",
        ["demo", "--images", "24", "--steps", "2", "--sets", "2", "--quiet"],
    ),
}
# A merged run keeps the commands of its shards; the others make no result about a model.
OTHERS = {"merge", "export", "selftest"}


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name of each command without subcommands, and the command."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield name, command
    for word, below in inner.items():
        yield from leaves(below, f"{name} {word}".strip())


def recorded(file: Path) -> set[str]:
    """Return the commands in a JSON file or in the code of a page."""
    if file.suffix == ".html":
        text = unescape(file.read_text())
        return {line for line in text.replace("<", "\n").replace(">", "\n").splitlines()
                if line.startswith("unfool ")}  # fmt: skip
    return set(commands_in(json.loads(file.read_text())))


def commands_in(value: Any) -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "command":
            yield inner
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from commands_in(inner)


def test_cases_cover_all_commands_with_an_output_folder():
    with_out = {
        name
        for name, command in leaves(typer.main.get_command(app))
        if any(option.name == "out" for option in command.params)
    }
    assert with_out == {*CASES, *OTHERS}


@pytest.mark.parametrize("name", CASES)
def test_result_records_the_command_that_made_it(elsewhere, name):
    for file, content in (("spec", SPEC), ("tiny", TINY), ("certified", CERTIFIED)):
        (elsewhere / f"{file}.yaml").write_text(yaml.safe_dump(content))
    np.savez(elsewhere / "x.npz", images=np.full((2, 1, 4, 4), 0.5, np.float32))
    if name == "compare":
        assert run(["evaluate", "blobs", "--set", "attacks=[]", *SMALL, "--out", "one"]) == 0
    pattern, arguments = CASES[name]
    words = [*name.split(), *arguments]
    assert run([*words, "--out", "my results"]) == 0
    (file,) = (elsewhere / "my results").glob(pattern)
    (command,) = (line for line in recorded(file) if line.startswith(f"unfool {name} "))
    typed = words if name == "train" else [*words, "--out", "my results"]
    assert shlex.split(command) == ["unfool", *typed]


def test_portable_command_line_omits_the_user_s_folders():
    words = ["train", "a b.yaml", "--data", "my data", "--set", "training.steps=1", "--quiet"]
    with started_by([*words, "--out=runs/x", "--download"]):
        assert command_line(portable=True) == "unfool train 'a b.yaml' --set training.steps=1"
        assert "--data 'my data'" in command_line()
    assert command_line() == ""


def test_folder_outside_utf_8_is_recorded_and_reported(elsewhere: Path):
    with started_by(["evaluate", "--out", "bad\udcff"]):
        assert command_line().endswith("'bad\\udcff'")
    try:
        Path("bad\udcff").mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system allows only UTF-8")
    assert run(["evaluate", "blobs", *SMALL, "--set", "attacks=[]", "--out", "bad\udcff"]) == 0
