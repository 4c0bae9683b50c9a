"""The provenance of a result: the date, the command, the hardware, and the package's commit."""

import contextvars
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

PACKAGE = Path(__file__).parents[1]
SECONDS = 5  # after which git is considered stuck
_command = contextvars.ContextVar[tuple[Sequence[str], float]]("command")
# Options that do not change a result, and whether a value follows.
_LOCAL_OPTIONS = {"--out": True, "--data": True, "--download": False, "--quiet": False}


class Start(TypedDict):
    """Facts about a process that worked on a result.

    Attributes:
        date: The start time in UTC, as ISO 8601.
        hardware: The hardware that it used.
        command: The command line; absent if called from Python.
        commit: The package's commit, with `-dirty` if its files have changed; absent if unknown.
    """

    date: str
    hardware: str
    command: NotRequired[str]
    commit: NotRequired[str]


class Made(Start):
    """Facts about a process that made a result alone.

    Attributes:
        seconds: Seconds from the start of the command to its result.
    """

    seconds: float


@contextmanager
def started_by(arguments: Sequence[str]) -> Iterator[None]:
    """Record the command line that runs in this block, and its start time."""
    token = _command.set((tuple(arguments), time.time()))
    try:
        yield
    finally:
        _command.reset(token)


def command_line(portable: bool = False) -> str:
    """Return the running command line, to be recorded with its result; empty if called from Python.

    It is what the user typed, quoted for a shell.

    Args:
        portable: Leave out `--out`, `--data`, `--download`, and `--quiet`, which do not change the
            result. This is for a file that is published, and whose content is part of an identity.
    """
    arguments, _ = _command.get(((), 0.0))
    words = _without_local_options(arguments) if portable else arguments
    line = shlex.join(["unfool", *words]) if arguments else ""
    return line.encode(errors="backslashreplace").decode()  # a path may hold bytes outside UTF-8


def _without_local_options(arguments: Iterable[str]) -> Iterator[str]:
    remaining = iter(arguments)
    for word in remaining:
        option, equals, _ = word.partition("=")
        if option not in _LOCAL_OPTIONS:
            yield word
        elif not equals and _LOCAL_OPTIONS[option]:
            next(remaining)  # its value


def describe_start(device: str) -> Start:
    """Return the facts about this process, which computes on `device`."""
    _, began = _command.get(((), time.time()))
    date = datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    start: Start = {"date": date, "hardware": hardware(device)}
    if command := command_line():
        start["command"] = command
    if commit_id := commit():
        start["commit"] = commit_id
    return start


def describe_made(device: str) -> Made:
    """Return the facts about this process, which has just computed a result on `device`."""
    _, began = _command.get(((), time.time()))
    return {**describe_start(device), "seconds": round(time.time() - began, 2)}


def hardware(device: str) -> str:
    """Describe the processor, its cores, the memory, and the GPU if `device` is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    description = f"{_processor()}, {cores} core{'' if cores == 1 else 's'}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        description += f", {memory / 2**30:.0f} GiB of memory"
    if device.startswith("cuda"):
        import torch  # slow to import, so only when it is needed

        gpu = torch.cuda.get_device_properties(device)
        description = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; {description}"
    return description


def commit() -> str | None:
    """Return the commit of this package; None if it is not from git, or git is not available."""
    try:
        direct_url = metadata.distribution("unfool").read_text("direct_url.json") or "{}"
        if commit_id := json.loads(direct_url).get("vcs_info", {}).get("commit_id"):
            return str(commit_id)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    # An environment inside another project's repository does not belong to that project's commit.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        for line in cpu.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
