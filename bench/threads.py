"""Measure the cost of waiting OpenMP threads: run the demo under several wait policies.

    python bench/threads.py --images 16 --turns 3

For each policy it prints the least wall time and CPU time over all turns, both alone on the machine and
next to a process that keeps two threads busy. Run it on an otherwise idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLICIES: dict[str, dict[str, str]] = {
    "the library's own": {},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    **{
        f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)}
        for n in (300, 1000, 3000, 10_000, 100_000)
    },
}
NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COMMAND = "from unfool.cli.main import app; app()"  # the entry point `unfool` would set a policy
BUSY = "import torch\nx = torch.ones(2048, 2048)\nwhile True: x @ x"


def environment(policy: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with `policy` in place of its own wait policy."""
    return {name: value for name, value in os.environ.items() if name not in NAMES} | policy


@contextmanager
def busy(threads: int) -> Iterator[None]:
    """Keep `threads` threads busy with matrix products, in another process, inside the context."""
    if not threads:
        yield
        return
    own = environment({"OMP_NUM_THREADS": str(threads)})
    process = subprocess.Popen([sys.executable, "-c", BUSY], env=own)
    time.sleep(4)  # let it start
    try:
        yield
    finally:
        process.kill()
        process.wait()


def demo(images: int, policy: dict[str, str]) -> tuple[float, float]:
    """Run the demo on `images` images; return its wall time and CPU time in seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--set", f"evaluation.images={images}", "--quiet", "--out", folder]
        command = [sys.executable, "-c", COMMAND, "evaluate", "demo", *options]
        process = subprocess.Popen(command, env=environment(policy), stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the demo failed with exit code {process.returncode}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main() -> None:
    """Measure all policies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(POLICIES), choices=list(POLICIES))
    options = parser.parse_args()
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(options.turns):  # policies take turns, so that a slow minute affects all of them
        for threads in (0, 2):
            for name in options.only:
                with busy(threads):
                    times = demo(options.images, POLICIES[name])
                measured.setdefault((name, threads), []).append(times)
                print(
                    f"{name}, beside {threads}: {times[0]:.1f} s, CPU {times[1]:.1f} s", flush=True
                )
    print("\n| policy | idle: wall | CPU | beside 2 threads: wall | CPU |\n|---|---|---|---|---|")
    for name in options.only:
        least = [
            min(times) for threads in (0, 2) for times in zip(*measured[name, threads], strict=True)
        ]
        print(f"| {name} | " + " | ".join(f"{seconds:.1f} s" for seconds in least) + " |")


if __name__ == "__main__":
    main()
