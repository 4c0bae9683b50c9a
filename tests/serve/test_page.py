"""The commands in docs/serve.md run, and its tables match the service."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from running import started

import unfool
from unfool.cli.main import run
from unfool.data import image_files

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()


def test_curl_examples_run(elsewhere):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    data = unfool.digits("test")
    for i, name in enumerate(("digit.png", "other.png")):
        image_files.write(elsewhere / name, data[i][0])
    commands = re.findall(r"^\$ (curl .*)$", PAGE, re.M)
    assert len(commands) > 8
    with started("demo", ["purifier.steps=2"]) as service:
        for command in commands:
            words = shlex.split(command.replace("http://127.0.0.1:8000", service.address))
            done = subprocess.run(
                [*words, "--fail-with-body", "-sS", "--noproxy", "*"],
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert done.stdout or "-o" in words
        metrics = service.client.get("/metrics").text
    with Image.open(elsewhere / "clean.png") as clean:
        assert clean.size == (8, 8)
    for name in re.findall(r"^\| `(unfool_\w+)", PAGE, re.M):
        assert re.search(rf"^{name}", metrics, re.M), name


def test_table_of_limits_matches_the_help(capsys):
    assert run(["serve", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    limits = re.findall(r"^\| `(--[\w-]+)` \| ([\d,]+)", PAGE, re.M)
    assert len(limits) == 7
    for option, default in limits:
        assert re.search(rf"{option} .*?\[default: {default.replace(',', '')}(\.0)?[;\]]", told), (
            option
        )
