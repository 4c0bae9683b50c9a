"""The public API: what the packages export, at run time and to a type checker."""

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unfool.spec import menu

PACKAGES = [
    "unfool",
    *(
        f"unfool.{name}"
        for name in ("attacks", "data", "defenses", "diffusion", "models", "toy", "training")
    ),
]
# Functions with the name of a module in the same package, which the package cannot export.
BESIDE_THEIR_MODULE = {
    "unfool.models.build:jem",
    "unfool.models.unet:unet",
    "unfool.toy.empirical_denoiser:empirical",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_exist(name):
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)
    for exported in package.__all__:
        assert getattr(package, exported) is not None
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_do_not_hide_modules(name):
    package = importlib.import_module(name)
    for exported in package.__all__:
        if not inspect.ismodule(getattr(package, exported)):
            assert importlib.util.find_spec(f"{name}.{exported}") is None, exported


def test_all_parts_of_the_menu_are_exported():
    exported = set()
    for name in PACKAGES:
        package = importlib.import_module(name)
        exported |= {id(getattr(package, each)) for each in package.__all__}
    hidden = {
        target
        for kind, names in menu.MENU.items()
        for name, target in names.items()
        if id(menu.find(kind, name)) not in exported
    }
    assert hidden == BESIDE_THEIR_MODULE


def test_name_is_the_same_object_from_every_import_path():
    code = """
import unfool
assert unfool.attacks.APGD is unfool.APGD
from unfool.attacks import bpda
from unfool.attacks.views import bpda as same
assert bpda is same is unfool.bpda
from unfool import digits, train
import unfool.data.digits, unfool.training.train
assert digits is unfool.digits and train is unfool.train
assert callable(digits) and callable(train) and callable(unfool.reverse)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pyright_sees_types_and_wrong_arguments(tmp_path):
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed")
    file = tmp_path / "asked.py"
    file.write_text(
        "import unfool\n"
        "from unfool import PGD, cifar10, load_spec\n"
        "from unfool.defenses import DiffPure\n"
        "PGD(steps=3)\n"
        "PGD(stepz=3)\n"
        "reveal_type(PGD)\n"
        "reveal_type(DiffPure)\n"
        "reveal_type(cifar10)\n"
        "reveal_type(load_spec)\n"
        "reveal_type(unfool.attacks.APGD)\n"
    )
    root = Path(inspect.getfile(menu)).parents[2]
    config = {"extraPaths": [str(root)], "pythonPlatform": "Linux"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "-p", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)["generalDiagnostics"]
    wrong = [(d["rule"], d["range"]["start"]["line"] + 1) for d in said if d["severity"] == "error"]
    assert wrong == [("reportCallIssue", 5)]
    types = [d["message"] for d in said if d["severity"] == "information"]
    assert len(types) == 5
    assert not any('is "Any"' in text or "Unknown" in text for text in types)
