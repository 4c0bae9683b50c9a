"""Tests of the engine Ray: the outcomes of one process, even if a worker dies, and budgets."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from unfool.cli.main import run
from unfool.evaluation import run as evaluation
from unfool.evaluation.forecast import forecast
from unfool.evaluation.spec import check
from unfool.report.forecast import brief
from unfool.report.render_terminal import plain_text
from unfool.results.run_folder import Run
from unfool.spec import load

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'unfool[ray]'")

pytestmark = pytest.mark.xdist_group("ray")  # so that only one test process starts Ray, once
SMALL = ["data.size=24", "purifier.steps=4", "evaluation.draws=4", "machine.images_per_block=2"]


def evaluated(out: Path, *changes: str, shard: tuple[int, int] = (0, 1)) -> Run:
    """Evaluate without a report."""
    spec = check(load("blobs", [*SMALL, *changes]))
    return evaluation.run(spec, out, shard, quiet=True)


def command(out: Path, *changes: str) -> list[str]:
    sets = [word for change in [*SMALL, *changes] for word in ("--set", change)]
    return ["evaluate", "blobs", "--out", str(out), "--quiet", *sets]


def workers() -> list[int]:
    """Return the descendants of this process that are evaluating a block now."""
    busy = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::evaluate_block" in (place / "cmdline").read_bytes():
                busy.append(int(place.name))

    def ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                return False
            process = int(status.partition("PPid:")[2].split()[0])
        return process == os.getpid()

    return [process for process in busy if ours(process)]


def test_unknown_engine_is_refused(mistake):
    assert "machine.engine" in mistake("evaluate", "blobs", "--set", "machine.engine=dask")


@pytest.mark.timeout(120)  # Ray itself would retry for minutes
def test_address_without_ray_is_refused_at_once(elsewhere, mistake, monkeypatch):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ask = ["evaluate", "blobs", "--set", "machine.engine=ray"]
        said = mistake(*ask, "--set", f"machine.cluster=ray://{address}")
        assert f"there is no Ray at ray://{address}" in said
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert f"there is no Ray at {address}" in mistake(*ask, "--dry-run")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Start Ray with two processors in a folder from which workers import, and return that folder."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine starts it slowly
        patch.setenv("RAY_agent_register_timeout_ms", "300000")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield folder
        ray.shutdown()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds workers by /proc")
def test_killed_worker_does_not_change_outcomes(elsewhere, facts, two):
    alone = evaluated(elsewhere / "alone")
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not killed:
            if any((elsewhere / "ray" / "outcomes").glob("*.jsonl")):
                for process in workers()[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    spread = evaluated(elsewhere / "ray", "machine.engine=ray")
    killer.join()
    assert killed, "a worker was to die in the middle"
    assert facts(elsewhere / "ray") == facts(elsewhere / "alone")
    shown = [list(each.examples()) for each in (spread, alone)]
    assert sum(len(block["index"]) for block in shown[0]) == 8
    for one, other in zip(*shown, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_whole_run_resumes_from_a_shard_with_a_short_last_block(elsewhere, facts, two):
    changes = ["data.size=7", "machine.engine=ray"]
    evaluated(elsewhere / "alone", changes[0])
    begun = evaluated(elsewhere / "ray", *changes, shard=(1, 3))
    assert [outcome.index for outcome in begun.outcomes()] == [1, 4]
    first = {p: p.stat().st_mtime_ns for p in (elsewhere / "ray" / "outcomes").iterdir()}
    evaluated(elsewhere / "ray", *changes)
    blocks = sorted((elsewhere / "ray" / "outcomes").iterdir())
    assert [len(path.read_text().splitlines()) for path in blocks] == [2, 2, 2, 1]
    assert {path: path.stat().st_mtime_ns for path in first} == first, "what was done is kept"
    assert facts(elsewhere / "ray") == facts(elsewhere / "alone")


FALLS = """
import time
from contextlib import suppress
from pathlib import Path


class Falls:
    \"\"\"The first to be asked fails; the others take a while.\"\"\"

    def __init__(self, seen: str):
        self.seen = Path(seen)

    def __call__(self, model, x, y, threat, noise):
        with self.seen.open("a") as file:
            file.write("asked\\n")
        if self.seen.read_text().count("asked") == 1:
            raise ArithmeticError("it fell")
        time.sleep(0.5)
        return x
"""


def test_budget_counts_all_workers_and_an_error_stops_new_tasks(elsewhere, two):
    (two / "falls.py").write_text(FALLS)
    seen, spec = elsewhere / "seen", check(load("blobs", [*SMALL, "machine.engine=ray"]))
    attacks = f"attacks=[{{name: 'falls:Falls', seen: {seen}}}]"
    found = forecast(spec, budget=0.001)
    assert (found.workers, found.images) == (2, 2)
    assert "on each of 2" in plain_text(brief(found))
    budget = 3.5 * found.cost_per_image.seconds
    again = forecast(spec, budget=budget)
    assert again.images == max(2, min(24, int(2 * budget / again.cost_per_image.seconds)))
    with pytest.raises(ArithmeticError, match="it fell"):
        run(command(elsewhere / "ray", "machine.engine=ray", attacks))
    time.sleep(2)  # a task that has begun ends in half a second
    begun = seen.read_text().count("asked")
    time.sleep(1)
    assert seen.read_text().count("asked") == begun < 12
