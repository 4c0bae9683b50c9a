"""The files for deployment and CI name commands and options that exist."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from unfool.cli.main import app
from unfool.spec import menu

ROOT = Path(__file__).parents[1]


def parsed(command: str) -> dict:
    """Parse a command line of unfool into the arguments that the command would receive."""
    program, verb, *words = shlex.split(command)
    assert Path(program).name == "unfool"
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group.commands[verb].make_context(verb, words).params


def test_systemd_unit_starts_the_service():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read(ROOT / "deploy" / "unfool.service")
    service = unit["Service"]
    asked = parsed(service["ExecStart"])
    assert asked["host"] == "127.0.0.1"
    assert asked["seeds"] is False
    assert int(service["TimeoutStopSec"]) > asked["timeout"]


def test_docker_image_starts_the_service():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    words = [
        word
        for name in ("ENTRYPOINT", "CMD")
        for word in json.loads(re.findall(rf"^{name} (\[.*\])$", text, re.M)[0])
    ]
    asked = parsed(shlex.join(words))
    assert asked["spec"] in menu.shipped()
    assert (asked["host"], asked["seeds"]) == ("0.0.0.0", False)
    assert f"EXPOSE {asked['port']}\n" in text
    for names in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for name in names.split():
            assert (ROOT / name).exists(), name


def commands() -> list[str]:
    text = (ROOT / "examples" / "github-action.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["gate"]["steps"]
    return [step["run"] for step in steps if step.get("run", "").startswith("unfool ")]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.split()[1])
def test_github_action_runs_commands_that_exist(command):
    assert parsed(command)


def test_github_action_has_both_gates():
    verbs = {command.split()[1]: parsed(command) for command in commands()}
    assert verbs["evaluate"]["strict"] is True
    assert verbs["evaluate"]["min_robust"] > 0
    assert verbs["compare"]["max_drop"] > 0
    assert verbs["compare"]["junit"] == Path("robustness.xml")
