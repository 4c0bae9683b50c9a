"""The README and the docs are correct: their code runs, and their commands and files exist."""

import re
import sys
from pathlib import Path

import pytest
import torch

import unfool
from unfool.cli.analyze import analyze
from unfool.cli.main import app
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.networks.cnn import small_cnn
from unfool.runtime.published_files import FILES
from unfool.spec import menu

ROOT = Path(__file__).parents[1]
LESS = [  # so that the page runs in seconds
    ("steps=20", "steps=2"),
    ("steps=5", "steps=1"),
    ("eot=8", "eot=2"),
    ("draws=8", "draws=2"),
    ("n=1000", "n=50"),
    ('"evaluation.images=2"', '"evaluation.images=1", "attacks=[]", "purifier.steps=1"'),
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_library_example_of_the_readme_runs(capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    for much, little in [*LESS, ("images=16", "images=2")]:
        code = code.replace(much, little)
    exec(code, {})
    printed = capsys.readouterr().out
    for said in ("clean", "adaptive PGD", "per draw"):
        assert said in printed


def test_code_of_the_python_page_runs(elsewhere, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    x, y = fetch(digits(), range(3))
    given = {"network": small_cnn(), "x": x, "y": y}
    for code in blocks:
        for much, little in LESS:
            code = code.replace(much, little)
        exec(code, given)
    printed = " ".join(capsys.readouterr().out.split())
    for said in ("gets through on", "B - A", "purifier.t"):
        assert said in printed
    assert (elsewhere / "runs/mine/report.html").is_file()


def test_own_model_tutorial_runs(elsewhere, monkeypatch, capsys):
    text = (ROOT / "docs/tutorial-own-model.md").read_text()
    module, *blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    Path("mine.py").write_text(module)
    Path("my.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    given = {}
    for code in blocks:
        for much, little in [*LESS, ("images=20", "images=1, draws=2")]:
            code = code.replace(much, little)
        exec(code, given)
    printed = capsys.readouterr().out
    for said in ("transfer", "adaptive", "condition"):
        assert said in printed
    assert (elsewhere / "runs/own-model/report.html").is_file()
    by_name = unfool.load("my.yaml", ["purifier.steps=1"])
    x, noise = torch.zeros(1, 3, 32, 32), unfool.Noise.of(0, [0])
    assert torch.equal(by_name(x, noise), given["model"](x, noise))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_specs_exist(page):
    commands = app.registered_commands + analyze.registered_commands
    verbs = {command.name or command.callback.__name__ for command in commands if command.callback}
    for verb, spec in re.findall(
        r"^\$ (?:.venv/bin/)?unfool (?:analyze )?([\w-]+) ?([\w./-]*)", page.read_text(), re.M
    ):
        assert verb in verbs
        named = ("evaluate", "train", "doctor", "gradients", "trajectories", "landscape", "sweep")
        if verb in named and spec not in ("", "my.yaml") and not spec.startswith("--"):
            there = spec in menu.shipped() or spec in FILES or (ROOT / spec).is_file()
            assert there, f"{page.name}: {spec}"


def test_every_doubt_is_documented():
    files = (ROOT / "src/unfool/results").rglob("*.py")
    source = "".join(file.read_text() for file in files)
    raised = set(re.findall(r'Doubt\(\s*"([a-z0-9-]+)"', source))
    assert raised == set(
        re.findall(r"^### ([a-z0-9-]+)$", (ROOT / "docs/doubts.md").read_text(), re.M)
    )
