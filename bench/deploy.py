"""Measure what it takes to serve a model: memory and latency of a pass with 1, 8 and 64 images.

    python bench/deploy.py                                     # the shipped models
    python bench/deploy.py --spec my.yaml --set purifier.steps=10 --images 1 256 --device cuda

Each number of images is measured in a process of its own, so that the memory is that of a service with
such requests, including torch and the weights. Both wall time and CPU time are reported; their difference
shows the effect of a busy machine. Reading the memory of a process requires Linux.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from measuring import high_water, machine, table
from unfool import spec as specs
from unfool.api.apply import load_defended
from unfool.noise import Noise
from unfool.runtime.device import pick_device

SHIPPED = (  # specs, each with changes to it
    ("demo", ("purifier=null",)),
    ("demo", ()),
    ("cifar10-demo", ("purifier=null",)),
    ("cifar10-demo", ()),
)
COUNTS = (1, 8, 64)
HEADS = ("model", "images", "loading, s", "memory, MiB", "pass, ms", "its CPU time, ms")


class Cost(NamedTuple):
    """The cost of passes with a given number of images.

    Attributes:
        load: Seconds to load the model.
        memory: Peak memory of the process in MiB; on a GPU, peak memory of the GPU.
        wall: Median wall time of a pass, in seconds.
        cpu: Median CPU time of a pass, in seconds.
    """

    load: float
    memory: float
    wall: float
    cpu: float


def measure(spec: str, changes: Sequence[str], images: int, device: str, seconds: float) -> Cost:
    """Load a model and pass images through it for `seconds`, in this process.

    Raises:
        ValueError: The size of the model's images is not known.
    """
    began = time.perf_counter()
    loaded = load_defended(specs.load(spec, list(changes)), None, device)
    load = time.perf_counter() - began
    if loaded.shape is None:
        raise ValueError(f"{spec} does not tell the size of its images: name data in it")
    x = torch.full((images, *loaded.shape), 0.5, device=device)
    walls, cpus, until = list[float](), list[float](), time.perf_counter() + seconds
    with torch.no_grad():
        loaded.model(x, Noise.fresh(images)).cpu()  # warm-up
        while len(walls) < 3 or time.perf_counter() < until:
            began, used = time.perf_counter(), time.process_time()
            loaded.model(x, Noise.fresh(images)).cpu()
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - used)
    if device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:  # not getrusage, which reports at least the memory of the parent process
        memory = high_water() / 2**10
    return Cost(load, memory, statistics.median(walls), statistics.median(cpus))


def in_a_process(
    spec: str, changes: Sequence[str], images: int, device: str, seconds: float, threads: int
) -> Cost:
    """Run `measure` in a process of its own.

    Raises:
        RuntimeError: The process failed.
    """
    words = [spec, *changes, f"--images={images}", f"--device={device}"]
    words += [f"--seconds={seconds}", f"--threads={threads}"]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def number(value: float) -> str:
    """Format a number with three significant digits, or as an integer: 0.178, 19.5, 5,660."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def child(words: Sequence[str]) -> None:
    """Measure one case, and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("changes", nargs="*")
    for name, of in (("images", int), ("device", str), ("seconds", float), ("threads", int)):
        parser.add_argument(f"--{name}", type=of)
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    print(
        json.dumps(
            measure(options.spec, options.changes, options.images, options.device, options.seconds)
        )
    )


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", help="a spec in place of the shipped models")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5, help="of each case")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    device, rows = pick_device(options.device), []
    cases = [(options.spec, tuple(options.changes))] if options.spec else SHIPPED
    for spec, changes in cases:
        for images in options.images:
            cost = in_a_process(spec, changes, images, device, options.seconds, options.threads)
            name = " ".join([Path(spec).stem, *changes])
            times = [number(1000 * value) for value in (cost.wall, cost.cpu)]
            row = [name, images, f"{cost.load:.1f}", f"{cost.memory:.0f}"]
            rate = images / (cost.cpu if device == "cpu" else cost.wall)
            rows.append([*row, *times, number(rate)])
            print(*rows[-1], flush=True)
    conditions = machine(device).replace("one thread", f"threads: {options.threads}")
    last = "images per CPU second" if device == "cpu" else "images/s"
    print("\n".join(["", f"{conditions}.", "", *table((*HEADS, last), rows)]))


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
