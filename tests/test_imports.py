"""Commands import only the heavy libraries they need, and idle threads do not spin."""

import json
import os
import subprocess
import sys

import pytest

from unfool.cli import main

HEAVY = (
    "diffusers", "transformers", "peft", "sklearn", "scipy", "matplotlib", "fastapi", "uvicorn",
    "prometheus_client", "sympy",
)  # fmt: skip
BEFORE = """
from unfool.attacks.pgd import PGD
from unfool.cli.main import run

def begin(*_):
    raise RuntimeError("the first attack begins")

PGD.__call__ = begin
"""
AFTER = "\nimport json, sys; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
TINY = {
    "data": {"name": "blobs", "size": 8},
    "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [4], "groups": 2},
    "objective": {"name": "denoising"},
    "training": {"steps": 2, "batch_size": 4, "warmup": 1},
}
DIGITS = ["evaluation.images=1", "evaluation.draws=2", "attacks=[{name: fgsm}]"]
SMALL = [word for change in DIGITS for word in ("--set", change)]
CERTIFY = ["--set", "certification.images=1", "--set", "certification.n=20"]
QUIET = ["--quiet", "--out"]


def imported(code: str) -> set[str]:
    """The heavy libraries that a process has imported after it has run `code`."""
    whole = code + AFTER.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_first_attack_begins_without_importing_heavy_libraries(elsewhere):
    command = ["evaluate", "demo", "--set", "evaluation.images=1", *QUIET, "run"]
    code = f"{BEFORE}\nassert run({command}) == 2"
    assert imported(code) == set()
    assert (elsewhere / "run").is_dir()


@pytest.mark.parametrize(
    ("commands", "needed"),
    [
        ([["menu"], ["doctor"], ["doctor", "demo"]], set()),
        ([["train", "tiny.json", *QUIET, "trained"]], {"sympy"}),  # by torch.optim
        (
            [
                ["attack", "demo", *SMALL, "--png", *QUIET, "made"],
                ["classify", "made/fgsm-exact", "--spec", "demo", "--votes", "2"],
                ["purify", "made/fgsm-exact", "--spec", "demo", "--out", "purified"],
            ],
            set(),
        ),
        ([["evaluate", "demo", *SMALL, *QUIET, "run"], ["report", "run"]], {"matplotlib"}),
        ([["certify", "digits-certify", *CERTIFY, *QUIET, "run"]], {"matplotlib", "scipy"}),
    ],
)  # fmt: skip
def test_command_imports_only_what_it_needs(elsewhere, commands, needed):
    (elsewhere / "tiny.json").write_text(json.dumps(TINY))
    code = "from unfool.cli.main import run\n"
    code += "\n".join(f"assert run({command}) == 0" for command in commands)
    assert imported(code) == needed


def test_compare_imports_no_heavy_library(elsewhere):
    command = ["evaluate", "demo", *SMALL, *QUIET, "a"]
    imported(f"from unfool.cli.main import run\nassert run({command}) == 0")
    assert (
        imported("from unfool.cli.main import run\nassert run(['compare', 'a', 'a']) == 0") == set()
    )


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, main.WAIT_POLICY),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_wait_policy_stops_spinning_unless_the_user_sets_one(monkeypatch, own, found):
    environment = dict(own)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(main, "run", lambda _: 0)
    with pytest.raises(SystemExit):
        main.main()
    assert environment == found
