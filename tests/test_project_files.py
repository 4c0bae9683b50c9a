"""The files for contributors are consistent with the package, and their examples run."""

import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from test_house import FLOORS
from unfool import __version__
from unfool.cli.main import run
from unfool.noise import Noise

ROOT = Path(__file__).parents[1]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PARTS = ("attack", "purifier", "loader")  # the examples of CONTRIBUTING.md, in order
SMALL = ("--set", "data.size=4", "--set", "purifier.steps=2", "--set", "evaluation.draws=2")


def read_yaml(path: str):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def example(elsewhere, monkeypatch):
    """Write an example of CONTRIBUTING.md into a module of the current folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert len(blocks) == len(PARTS)
    monkeypatch.syspath_prepend(elsewhere)

    def write(part: str) -> None:
        name = f"contributed_{part}"
        (elsewhere / f"{name}.py").write_text(blocks[PARTS.index(part)])
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"] == __version__
    assert citation["license"] == project["license"]
    assert citation["authors"]
    assert citation["repository-code"] == project["urls"]["Repository"]


def test_workflow_runs_the_same_tests_as_contributors():
    workflow = read_yaml(".github/workflows/test.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for target in ("test", "test-browser"):
        assert f"make {target}" in [step.get("run") for step in steps]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_makefile_lists_all_tests_that_open_a_browser():
    listed = re.findall(r"^BROWSER_TESTS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0]
    opening = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^def \w+\([^)]*\bbrowser\b", path.read_text(), re.M)
    }
    assert opening == set(listed.split())


def test_pre_commit_runs_the_tools_of_make_check():
    hooks = [
        hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert check
    tools = re.findall(r"^\t\$\(BIN\)/(\w+)", check[1], re.M)
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == set(tools)


def test_issue_templates_have_a_name_and_a_description():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, front, _ = path.read_text().split("---\n", 2)
        assert {"name", "about"} <= set(yaml.safe_load(front)), path.name


def test_source_distribution_contains_what_make_test_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in ("src", "tests", "bench", "examples", "docs", "Makefile", *ROOT.glob("*.md")):
        assert Path(name).name in included, name


def test_decisions_are_numbered_without_gaps_and_linked():
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert numbers == list(range(1, len(DECISIONS) + 1))
    design = (ROOT / "docs" / "design.md").read_text()
    linked = re.findall(r"\]\(decisions/([^)#]+)", design)
    assert linked == [path.name for path in DECISIONS]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decision_has_its_sections(path):
    text = path.read_text()
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(r"^Status: \w+", text, re.M)
    assert re.findall(r"^## (.*)$", text, re.M) == ["Context", "Decision", "Consequences"]


def test_list_of_experiments_quotes_the_first_comment_of_every_spec():
    folder = ROOT / "experiments"
    text = (folder / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([^`]+\.yaml)` \| (.+) \|$", text, re.M))
    specs = {path.name: path for path in folder.glob("*.yaml")}
    assert set(rows) - {"claims/*.yaml"} == set(specs)
    for name, path in specs.items():
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.open(encoding="utf-8"))
        comment = " ".join(line.lstrip("#").strip() for line in lines)
        assert comment.startswith(rows[name]), name


def test_design_names_every_part_of_the_tree():
    design = (ROOT / "docs" / "design.md").read_text()
    table = design.partition("## The tree")[2].partition("## Seams")[0]
    named = {name.rstrip("/") for name in re.findall(r"`([\w./]+)`", table)}
    for path in (ROOT / "src" / "unfool").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            assert path.name in named, f"docs/design.md does not name {path.name}"


def test_design_lists_the_layers_that_are_checked():
    design = (ROOT / "docs" / "design.md").read_text()
    listed = re.findall(r"```text\n(.*?)```", design, re.S)[0].splitlines()
    assert [set(line.split(", ")) for line in listed] == FLOORS[::-1]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("attack", "attacks=[{name: 'contributed_attack:SignStep', eot: 2}]"),
        ("purifier", "purifier={name: 'contributed_purifier:Blend', t: 0.1}"),
        ("loader", "classifier={name: 'contributed_loader:linear', weights: head.pt}"),
    ],
)
def test_examples_for_contributors_run(example, elsewhere, part, change):
    torch.save({"head.weight": torch.zeros(2, 16), "head.bias": torch.zeros(2)}, "head.pt")
    example(part)
    assert run(["evaluate", "blobs", "--set", change, *SMALL, "--quiet", "--out", "out"]) == 0
    assert (elsewhere / "out" / "report.json").is_file()


def test_example_loader_reads_and_checks_weights(example):
    example("loader")
    from contributed_loader import linear  # pyright: ignore[reportMissingImports]

    weight = Noise.of(0, range(2)).normal(torch.empty(2, 16))
    torch.save({"head.weight": weight, "head.bias": torch.zeros(2)}, "head.pt")
    model = linear(weights=Path("head.pt"))
    x = torch.rand(3, 1, 4, 4)  # noqa: TID251
    logits = model(x, Noise.of(0, range(3)))
    torch.testing.assert_close(logits, (2 * x - 1).flatten(1) @ weight.T)
    torch.save({"head.weight": weight}, "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt.*1\.bias"):
        linear(weights=Path("part.pt"))
