"""Compare the throughput of the service with that of the bare model, on the same images.

    python bench/serve.py                                  # the demo, batches of 64
    python bench/serve.py --spec my.yaml --batch-size 256 --device cuda

The service runs in a process of its own, and clients send requests all the time, on fresh noise. The bare
model takes turns with it, in calls of the same size, and each ratio is taken within one turn. Passes per
second are per second of wall time, which includes the clients and everything else that runs; the ratio of
CPU time compares only the two processes.
"""

import argparse
import http.client
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from measuring import machine, ratio, table
from unfool import spec as specs
from unfool.api.apply import load_defended
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.runtime.device import pick_device

SHAPES = ((1, 1), (1, 8), (4, 8), (8, 8))  # images and votes per request


class Rate(NamedTuple):
    """Passes per second of wall time, and per second of CPU time of the process."""

    wall: float
    cpu: float


def cpu_seconds(process: int) -> float:
    """The CPU time of a process so far, in seconds; NaN if the system does not report it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bare(model: Classifier, x: Tensor, seconds: float) -> Rate:
    """Measure the rate of the bare model, in calls of `len(x)` images."""
    calls, began, used = 0, time.perf_counter(), time.process_time()
    with torch.no_grad():
        while time.perf_counter() - began < seconds:
            model(x, Noise.fresh(len(x))).cpu()
            calls += 1
    rows = calls * len(x)
    return Rate(rows / (time.perf_counter() - began), rows / (time.process_time() - used))


def served(process: int, port: int, x: Tensor, votes: int, clients: int, seconds: float) -> Rate:
    """Measure the rate of the service with `clients` clients at once.

    Raises:
        RuntimeError: A request failed.
    """
    body = json.dumps({"images": x.tolist(), "votes": votes}).encode()
    done, failed, until = [0] * clients, [], time.perf_counter() + seconds

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < until:
            connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                failed.append(content)
                return
            done[number] += len(x) * votes
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    began, used = time.perf_counter(), cpu_seconds(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} of {clients} clients got an error: {failed[0]!r}")
    taken = cpu_seconds(process) - used
    return Rate(sum(done) / (time.perf_counter() - began), sum(done) / taken)


def main() -> None:
    """Measure all shapes of requests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="demo")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_defended(specs.load(options.spec, []), None, pick_device(options.device))
    if loaded.shape is None:
        sys.exit("the size of the model's images is not known: name a spec with a purifier or data")
    x = torch.full((options.batch_size, *loaded.shape), 0.5, device=pick_device(options.device))
    arguments = ["--port", "0", "--batch-size", str(options.batch_size), "--device", options.device]
    command = [
        sys.executable,
        "-u",
        "-m",
        "unfool",
        "serve",
        options.spec,
        *arguments,
        "--timeout",
        "600",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    rows = []
    try:
        port = int(re.findall(r":(\d+);", process.stdout.readline())[0])
        for images, votes in SHAPES:
            clients = max(
                2 * options.batch_size // (images * votes), 2
            )  # enough to fill one call while another waits
            turns = []
            for turn in range(-1, options.turns):
                alone = bare(loaded.model, x, options.seconds)
                through = served(
                    process.pid, port, x[:images].cpu(), votes, clients, options.seconds
                )
                if turn >= 0:
                    turns.append((alone, through))
                    print(f"{images} x {votes}: {alone}, {through}", flush=True)
            best = [f"{max(rate.wall for rate in way):.0f}" for way in zip(*turns, strict=True)]
            ratios = [ratio([b[i] / a[i] for a, b in turns]) for i in (0, 1)]
            rows.append((f"{images} x {votes}", clients, *best, *ratios))
    finally:
        process.terminate()
        process.wait()
    print(f"\n{options.spec}, calls of {options.batch_size} images, {machine(options.device)}\n")
    heads = (
        "images x votes",
        "clients",
        "bare model, passes/s",
        "service",
        "ratio",
        "ratio of CPU time",
    )
    print("\n".join(table(heads, rows)))


if __name__ == "__main__":
    main()
