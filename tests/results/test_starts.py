"""Records of the processes that worked on a run, which change nothing else in the run."""

import json
import subprocess

import pytest

from unfool.cli.main import run
from unfool.results.run_folder import Run
from unfool.results.starts import provenance, starts
from unfool.runtime import provenance as machine

SMALL = ["blobs", "--set", "data.size=8", "--set", "attacks=[]", "--quiet"]


def test_run_records_its_command_hardware_and_input_hashes(elsewhere):
    assert run(["evaluate", *SMALL, "--out", "a b"]) == 0
    report = json.loads((elsewhere / "a b" / "report.json").read_text())["provenance"]
    (start,) = report["starts"]
    assert start["command"] == (
        "unfool evaluate blobs --set data.size=8 --set 'attacks=[]' --quiet --out 'a b'"
    )
    assert "core" in start["hardware"]
    manifest = Run.open(elsewhere / "a b").manifest
    assert [report[key] for key in ("images", "weights")] == [
        manifest.get(key) for key in ("images", "weights")
    ]
    page = (elsewhere / "a b" / "report.html").read_text()
    for told in (start["hardware"], report["images"], report["weights"]):
        assert told in page


def test_resuming_adds_a_start_unless_the_run_is_finished(elsewhere, facts):
    shard = ["evaluate", *SMALL, "--out", "run", "--shard"]
    assert run([*shard, "0/2"]) == 0
    assert run([*shard, "1/2"]) == 0
    assert len(starts(Run.open(elsewhere / "run"))) == 2
    before = facts(elsewhere / "run")
    assert run(["evaluate", *SMALL, "--out", "run"]) == 0
    assert len(starts(Run.open(elsewhere / "run"))) == 2
    assert facts(elsewhere / "run") == before
    assert run(["evaluate", *SMALL, "--out", "whole"]) == 0
    one, other = (Run.open(elsewhere / name).manifest for name in ("run", "whole"))
    assert one == other


def test_merged_run_keeps_the_starts_of_its_parts(elsewhere):
    for part in "01":
        shard = ["--shard", f"{part}/2", "--out", f"part{part}"]
        assert run(["evaluate", *SMALL, *shard]) == 0
    assert run(["merge", "part0", "part1", "--out", "sum"]) == 0
    commands = [start.get("command", "") for start in starts(Run.open(elsewhere / "sum"))]
    assert sorted(command.split()[-1] for command in commands) == ["part0", "part1"]


def test_run_without_starts_is_reported_and_damaged_start_is_refused(elsewhere, mistake):
    assert run(["evaluate", *SMALL, "--out", "run"]) == 0
    (path,) = (elsewhere / "run" / "starts").iterdir()
    path.write_text("{")
    assert path.name in mistake("report", "run")
    path.unlink()
    assert run(["report", "run"]) == 0
    assert "not recorded" in (elsewhere / "run" / "report.md").read_text()
    assert provenance(Run.open(elsewhere / "run"))["starts"] == []


def test_commit_is_that_of_the_package_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "unfool"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("git is not installed")
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "mine"], check=True)
    monkeypatch.setattr(machine, "PACKAGE", package)
    assert machine.commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "package"], check=True)
    clean = machine.commit()
    assert clean is not None
    assert len(clean) == 40
    (package / "__init__.py").write_text("x = 1")
    assert machine.commit() == f"{clean}-dirty"
