"""Settings that all tests share (one thread, fixed hypothesis examples), and fixtures."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from unfool.cli.main import run
from unfool.results.run_folder import Run

torch.set_num_threads(int(os.environ.get("UNFOOL_TEST_THREADS", "1")))  # see `make test-portable`
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=60)
# Other examples in each run.
settings.register_profile("long", database=None, deadline=None, max_examples=1500)
settings.load_profile("same")  # the same examples in each run, however fast the machine is

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """A headless browser (Chromium or Chrome)."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: run make test-browser"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: apt-get install {BROWSERS[0]}")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def violations():
    """A function that runs axe on an open page, and returns each broken rule with its elements."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed: run make test-browser",
    )

    def found(page):
        told = axe.Axe().run(page).response["violations"]
        return [(each["id"], [node["html"] for node in each["nodes"]]) for each in told]

    return found


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, with no shards or data folders set in the environment."""
    for name in ("RANK", "WORLD_SIZE", "UNFOOL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNFOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}/"):
            del sys.modules[name]  # the next test may import another file of this name


@pytest.fixture
def edited():
    """Change the text of an outcomes file, and rename it: its name is a hash of run and contents."""

    def edit(path, change):
        content = change(path.read_text()).encode()
        identity = json.loads((path.parents[1] / "run.json").read_text())["identity"]
        path.unlink()
        digits = hashlib.sha256(identity.encode() + b"\n" + content).hexdigest()[:8]
        made = path.with_stem(f"{path.stem[:-8]}{digits}")
        made.write_bytes(content)

    return edit


@pytest.fixture
def facts():
    """Read the outcomes of a run folder, without time and memory, which may differ."""

    def read(folder: Path):
        return [(o.index, o.label, o.chosen, o.conditions) for o in Run.open(folder).outcomes()]

    return read


@pytest.fixture
def killed():
    """Run a command in a process, and kill it (-9) once its run folder has `blocks` blocks.

    Returns the paths of the blocks with the times at which they were written.
    """

    def start_and_kill(arguments: list[str], folder: Path, blocks: int) -> dict[Path, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", "from unfool.cli.main import main; main()", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        written, deadline = (folder / "outcomes").glob, time.monotonic() + 120
        while len(list(written("*.jsonl"))) < blocks and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
        return {path: path.stat().st_mtime_ns for path in written("*.jsonl")}

    return start_and_kill


@pytest.fixture
def mistake(capsys):
    """Run a command that must fail with exit code 2 and one sentence, and return the sentence."""

    def refuse(*arguments: object) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        sentence = said[-1]
        assert sentence.startswith("unfool: ")
        assert "Traceback" not in "".join(said)
        assert len(sentence) < 500
        return sentence

    return refuse
