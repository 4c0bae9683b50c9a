"""Kill commands at random moments, run them again, and compare with undisturbed runs.

    python bench/soak.py --seconds 600 --seed 0

Each round takes one command, kills it (SIGKILL) a few times, and then lets it finish. Half of the kills
come at a random time, half right after a random change in the folder, which is often in the middle of a
write. Then all output of the command is compared with the undisturbed result, except for measured times
and memory. The exit code is 1 if anything differs. It needs a system that can fork, and no GPU.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork loses its parent's threads

EVALUATION = {
    "data": {"name": "blobs", "size": 40},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": {"name": "diffpure", "sampler": "ddpm", "t": 0.05, "steps": 4},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [{"name": "pgd", "steps": 4, "eot": 2, "loss": "margin"}],
    "evaluation": {"images": 12, "draws": 2, "examples": 4},
    "machine": {"images_per_block": 2, "device": "cpu"},
}
SWEEP = EVALUATION | {
    "sweep": {"purifier.steps": [2, 3]},
    "evaluation": {"images": 4, "draws": 2, "examples": 2},
}
CERTIFICATION = {
    **{key: EVALUATION[key] for key in ("data", "classifier", "denoiser")},
    "purifier": "one-step",
    "certification": {"sigma": 0.25, "n0": 20, "n": 400, "images": 12},
    "machine": {"device": "cpu"},
}
TRAINING = {
    "data": {"name": "blobs", "size": 32},
    "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4},
    "objective": {"name": "denoising", "t_max": 0.5},
    "training": {"steps": 60, "batch_size": 4},
    "machine": {"save_every": 3, "device": "cpu"},
}
MEASURED = {"seconds", "cost", "made_by", "peak_bytes", "images_per_second"}
COMMANDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "evaluate": (EVALUATION, ("evaluate", "spec.yaml", "--out", "out", "--quiet")),
    "attack": (EVALUATION, ("attack", "spec.yaml", "--out", "out", "--png", "--quiet")),
    "certify": (CERTIFICATION, ("certify", "spec.yaml", "--out", "out", "--quiet")),
    "sweep": (SWEEP, ("sweep", "spec.yaml", "--out", "out", "--quiet")),
    "train": (TRAINING, ("train", "spec.yaml", "--out", "out", "--quiet")),
    "merge": (EVALUATION, ("merge", "a", "b", "--out", "out")),
    "report": (EVALUATION, ("report", "out")),
}


class Ended(NamedTuple):
    """The end of a command: its exit code, or None if it was killed, and its output on stderr."""

    code: int | None
    stderr: str


@dataclass
class Command:
    """A command with its undisturbed result.

    Attributes:
        name: Name of the command.
        words: Its arguments.
        start: The initial folder, of which each round takes a copy.
        result: The output of the undisturbed command (`contents`).
        seconds: The duration of the undisturbed command.
        changes: The number of times its folder changed.
        counts: The numbers of rounds, kills and differences.
    """

    name: str
    words: tuple[str, ...]
    start: Path
    result: dict[str, Any]
    seconds: float
    changes: int
    counts: Counter[str] = field(default_factory=Counter)


def start(words: tuple[str, ...], folder: Path) -> int:
    """Fork a process that runs a command in a folder; its stderr goes to the file `stderr` there."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.chdir(folder)
        from unfool.cli.main import run

        with (
            open("stderr", "w", encoding="utf-8") as stderr,
            contextlib.redirect_stderr(stderr),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                code = run(list(words))
            except BaseException:
                import traceback

                traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int, folder: Path, until: Callable[[float, int], bool]) -> tuple[Ended, int]:
    """Wait for a process, and kill it as soon as `until(seconds, changes)` is true.

    Returns:
        The end of the process, and the number of times its folder changed.
    """
    began, seen, changes = time.monotonic(), listing(folder), 0
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        now = listing(folder)
        changes, seen = changes + (now != seen), now
        if until(time.monotonic() - began, changes):
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            break
        time.sleep(0.0005)
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    stderr = folder / "stderr"
    return Ended(code, stderr.read_text("utf-8") if stderr.exists() else ""), changes


def listing(folder: Path) -> set[str]:
    """The names of all files below a folder, including temporary files of unfinished writes."""
    return {name for _, _, names in os.walk(folder) for name in names}


def contents(folder: Path) -> dict[str, Any]:
    """Read the output of a command, except for times, memory, and temporary files of killed writes.

    Outcomes and example images are keyed by image, because the names of their files depend on their
    content, which includes times.
    """
    results: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".jsonl" and path.parent.name == "outcomes":
            for line in path.read_text("utf-8").splitlines():
                table = json.loads(line)
                key = f"{name.parent} {table['index']}"
                results.setdefault(key, []).append(unmeasured(table))
        elif path.suffix == ".npz":
            arrays = read_arrays(path)
            keys = arrays.pop("index", None) if path.parent.name == "examples" else None
            key = str(name) if keys is None else f"{name.parent} {keys}"
            if arrays not in results.setdefault(key, []):  # a killed block leaves its images twice
                results[key].append(arrays)
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text("utf-8")]
            lines = lines[0].splitlines() if path.suffix == ".jsonl" else lines
            results[str(name)] = [unmeasured(json.loads(line)) for line in lines]
        elif path.suffix in (".png", ".safetensors"):
            results[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:  # pages, which contain times, and checkpoints: only whether they exist
            results[str(name)] = path.stat().st_size > 0
    return results


def read_arrays(path: Path) -> dict[str, str]:
    """Hash each array of an .npz file, except for `index`, which becomes text."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return {
            name: str(file[name].tolist())
            if name == "index"
            else hashlib.sha256(file[name].tobytes()).hexdigest()
            for name in file
        }


def unmeasured(value: Any) -> Any:
    """Remove measured times and memory from a JSON value."""
    if isinstance(value, dict):
        return {key: unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return [unmeasured(item) for item in value] if isinstance(value, list) else value


def differences(results: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names under which two results differ."""
    return [
        key
        for key in sorted(results.keys() | expected.keys())
        if results.get(key) != expected.get(key)
    ]


def prepare(name: str, folder: Path) -> Command:
    """Run a command undisturbed in `folder`, and record its initial folder and its output."""
    spec, words = COMMANDS[name]
    begin = folder / "begin"
    begin.mkdir(parents=True)
    (begin / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), "utf-8")
    if name == "merge":
        for part, out in enumerate(("a", "b")):
            shard = ("evaluate", "spec.yaml", "--out", out, "--shard", f"{part}/2", "--quiet")
            require(wait(start(shard, begin), begin, never)[0], name)
    elif name == "report":
        require(wait(start(COMMANDS["evaluate"][1], begin), begin, never)[0], name)
    undisturbed = folder / "undisturbed"
    shutil.copytree(begin, undisturbed)
    began = time.monotonic()
    ended, changes = wait(start(words, undisturbed), undisturbed, never)
    require(ended, name)
    took = time.monotonic() - began
    return Command(name, words, begin, contents(undisturbed / "out"), took, changes)


def never(seconds: float, changes: int) -> bool:
    """Never kill a process (an `until` of `wait`)."""
    return False


def require(ended: Ended, name: str) -> None:
    """Check that an undisturbed command succeeded.

    Raises:
        RuntimeError: The command failed.
    """
    if ended.code != 0:
        raise RuntimeError(f"{name} fails without being disturbed ({ended.code}): {ended.stderr}")


def round_of(command: Command, folder: Path, chance: random.Random, most: int) -> list[str]:
    """Kill a command up to `most` times, let it finish, and return a list of what went wrong."""
    shutil.copytree(command.start, folder)
    wrong = []
    command.counts["rounds"] += 1
    for _ in range(chance.randint(1, most)):
        by_time, by_change = (
            chance.uniform(0, command.seconds),
            chance.randint(1, max(1, command.changes)),
        )
        timed = chance.random() < 0.5
        ended, _ = wait(
            start(command.words, folder),
            folder,
            (lambda s, c, at=by_time: s >= at) if timed else (lambda s, c, at=by_change: c >= at),
        )
        command.counts["kills" if ended.code is None else "ended before"] += 1
        if ended.code not in (None, 0):
            wrong.append(f"exit code {ended.code}: {ended.stderr.strip()[-500:]}")
    drafts = {path for path in folder.rglob(".*.tmp") if path.is_file()}
    command.counts["drafts"] += len(drafts)
    ended, _ = wait(start(command.words, folder), folder, never)
    if ended.code != 0:
        return [*wrong, f"the last run: exit code {ended.code}: {ended.stderr.strip()[-500:]}"]
    return wrong + [
        f"differs: {key}" for key in differences(contents(folder / "out"), command.result)
    ]


def soak(names: list[str], seconds: float, seed: int, most: int, keep: Path) -> bool:
    """Run rounds of all commands in turn until the time is up; return whether all results agreed."""
    chance, good = random.Random(seed), True
    with tempfile.TemporaryDirectory() as scratch:
        commands = [prepare(name, Path(scratch) / name) for name in names]
        for command in commands:
            print(f"{command.name}: {command.seconds:.1f} s undisturbed", flush=True)
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            command, folder = commands[number % len(commands)], Path(scratch) / f"round-{number}"
            for difference in (wrong := round_of(command, folder, chance, most)):
                print(f"round {number}, {command.name}: {difference}", flush=True)
            if wrong:
                good = False
                command.counts["wrong"] += 1
                shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
                print(f"kept in {keep / folder.name}", flush=True)
            shutil.rmtree(folder)
            number += 1
    row = "{:10}" + "{:>14}" * 5
    columns = ("rounds", "kills", "ended before", "drafts", "wrong")
    print(row.format("command", *columns))
    for command in commands:
        print(row.format(command.name, *(command.counts[column] for column in columns)))
    total = sum((command.counts for command in commands), Counter[str]())
    print(row.format("all", *(total[column] for column in columns)))
    return good


def main() -> None:
    """Read the options, soak, and exit with 1 if anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=300, help="how long to kill, after the undisturbed runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=8, help="the most kills of a round")
    parser.add_argument("--keep", type=Path, default=Path("runs/soak"), help="for wrong results")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    import matplotlib.pyplot as _  # noqa: F401  # slow imports, done once here for all forks
    import torch

    from unfool.certification import certify as _c  # noqa: F401
    from unfool.evaluation import keep_attacked_images as _e  # noqa: F401
    from unfool.evaluation import sweep as _s  # noqa: F401
    from unfool.report import certification as _r  # noqa: F401
    from unfool.report import evaluation as _v  # noqa: F401
    from unfool.report import sweep as _w  # noqa: F401
    from unfool.training import run as _t  # noqa: F401

    torch.set_num_threads(1)
    good = soak(options.only, options.seconds, options.seed, options.kills, options.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
