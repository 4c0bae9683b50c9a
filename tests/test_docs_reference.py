"""The generated reference pages cover the parts, public names, and commands of the code."""

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import unfool
from unfool.cli.main import run
from unfool.spec import menu
from unfool.spec.describe import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import generate


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    generate.write_pages(folder)
    return folder


@pytest.mark.parametrize("kind", [kind for kind, names in menu.MENU.items() if names])
def test_every_part_is_documented_with_its_options(reference, kind):
    page = (reference / "options" / f"{kind}.md").read_text()
    for name in menu.MENU[kind]:
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for option in describe(kind, name).options:
            assert f"| `{option.name}` |" in section, f"{name}.{option.name}"


def test_every_public_name_is_documented_once(reference):
    pages = "".join(page.read_text() for page in (reference / "api").glob("*.md"))
    for name in dir(unfool):
        if name != "__version__" and name not in generate.PACKAGES:
            own = pages.count(f":: unfool.{name}\n")
            linked = pages.count(f"{{py:obj}}`unfool.{name} <")
            assert own + linked == 1, name


def test_reference_lists_commands_and_their_options(reference):
    page = (reference / "commands.md").read_text()
    for name in ("evaluate", "serve", "analyze gradients"):
        assert f"## unfool {name}\n" in page
    assert "--min-robust" in page


def test_report_matches_its_schema(reference, elsewhere):
    small = ["data.size=4", "purifier.steps=2", "evaluation.draws=2", "evaluation.images=4"]
    changes = [word for change in small for word in ("--set", change)]
    assert run(["evaluate", "blobs", *changes, "--quiet", "--out", "out"]) == 0
    schema = json.loads((reference / "report.schema.json").read_text())
    report = json.loads(Path("out/report.json").read_text())
    Draft202012Validator(schema).validate(report)
    del report["robust"]
    assert not Draft202012Validator(schema).is_valid(report)


def test_unchanged_pages_are_kept_and_stale_pages_are_removed(tmp_path):
    generate.write_pages(tmp_path)
    (tmp_path / "options" / "gone.md").write_text("an older page")
    before = {page: page.stat().st_mtime_ns for page in tmp_path.rglob("*.md")}
    generate.write_pages(tmp_path)
    after = {page: page.stat().st_mtime_ns for page in tmp_path.rglob("*.md")}
    assert after == {page: time for page, time in before.items() if page.name != "gone.md"}
