"""The engine Ray: the outcomes of one process, also where a worker dies; a budget for all workers."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from defuse.cli import run
from defuse.evaluation.forecast import forecast
from defuse.evaluation.run import check
from defuse.report.forecast import told
from defuse.spec import load

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'defuse[ray]'")

SMALL = ["data.size=24", "purifier.steps=4", "evaluation.draws=4", "machine.block=2"]


def command(out: Path, *changes: str) -> list[str]:
    sets = [word for change in [*SMALL, *changes] for word in ("--set", change)]
    return ["evaluate", "blobs", "--out", str(out), "--quiet", *sets]


def workers() -> list[int]:
    """The processes that do a block now, among those that this one has started."""
    parents, busy = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = dict(
                line.split(":", 1) for line in (place / "status").read_text().splitlines()
            )
            parents[int(place.name)] = int(fields["PPid"])
            if b"ray::evaluate_block" in (place / "cmdline").read_bytes():
                busy.append(int(place.name))
        except (OSError, KeyError):
            continue

    def ours(process: int) -> bool:
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return [process for process in busy if ours(process)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds workers by /proc")
def test_a_worker_is_killed_and_the_outcomes_are_those_of_one_process(
    elsewhere, facts, monkeypatch
):
    patient(monkeypatch)
    assert run(command(elsewhere / "alone")) == 0
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not killed:
            if any((elsewhere / "ray" / "outcomes").glob("*.jsonl")):
                for process in workers()[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
            time.sleep(0.001)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        assert run(command(elsewhere / "ray", "machine.engine=ray")) == 0
        killer.join()
    finally:
        ray.shutdown()
    assert killed, "a worker was to die in the middle"
    assert facts(elsewhere / "ray") == facts(elsewhere / "alone")
    shown = [
        sorted(path.name for path in (elsewhere / run_ / "figures").iterdir())
        for run_ in ("ray", "alone")
    ]
    assert shown[0] == shown[1]


FALLS = """
import time
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


def test_a_budget_is_for_all_workers_and_after_an_error_no_task_goes_on(elsewhere, monkeypatch):
    patient(monkeypatch)
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "falls.py").write_text(FALLS)
    seen, spec = elsewhere / "seen", check(load("blobs", [*SMALL, "machine.engine=ray"]))
    attacks = f"attacks=[{{name: 'falls:Falls', seen: {seen}}}]"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = forecast(spec, budget=0.001)
        assert (found.workers, found.images) == (2, 2)
        assert any("on each of 2" in line for line in told(found))
        budget = 3.5 * found.each.seconds
        again = forecast(spec, budget=budget)
        assert again.images == max(2, min(24, int(2 * budget / again.each.seconds)))
        with pytest.raises(ArithmeticError, match="it fell"):
            run(command(elsewhere / "ray", "machine.engine=ray", attacks))
        before = seen.read_text().count("asked")
        time.sleep(2)
        assert seen.read_text().count("asked") <= before + 1 < 12
    finally:
        ray.shutdown()


def patient(monkeypatch) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine is slow to start it
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_an_engine_that_is_not_known_is_refused(mistake):
    assert "machine.engine" in mistake("evaluate", "blobs", "--set", "machine.engine=dask")


def test_an_address_where_nobody_answers_is_told_at_once(elsewhere, mistake, monkeypatch):
    with socket.socket() as taken:  # bound, and it does not listen
        taken.bind(("127.0.0.1", 0))
        address, began = f"127.0.0.1:{taken.getsockname()[1]}", time.monotonic()
        ask = ["evaluate", "blobs", "--set", "machine.engine=ray"]
        said = mistake(*ask, "--set", f"machine.cluster=ray://{address}")
        assert f"there is no Ray at ray://{address}" in said
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert f"there is no Ray at {address}" in mistake(*ask, "--dry-run")
    assert time.monotonic() - began < 30
