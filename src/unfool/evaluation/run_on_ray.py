"""Runs an evaluation on many machines: its blocks of images are Ray tasks, here or on a cluster.

The outcomes equal those of one process, because an image's noise depends only on the seed and the
image's place in the data set. Workers return them to the process that started the run, which writes
the run folder as usual. If a worker dies, another one repeats its block. Needs the extra `ray`.
"""

import importlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from unfool.errors import SpecError
from unfool.evaluation.evaluate import Machine
from unfool.evaluation.prepare import Prepared, prepare, run_blocks
from unfool.results.manifest import Manifest
from unfool.results.outcome import Outcome
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.starts import record_start
from unfool.runtime.memory import shared_by
from unfool.runtime.progress import progress

RETRIES = 5  # retries of a block whose worker died
CONNECT_TIMEOUT = 5  # seconds until a host counts as unreachable
MUST_MATCH = {  # what must be the same on a worker and on the machine that started the run
    "version": "version of unfool",
    "identity": "weights, or another file that the spec names",
    "images": "images or labels",
    "code": "code of a module that the spec names, or of one that it imports",
    "weights": "weights of the model as it is built",
}


def run(
    spec: EvaluationSpec, prepared: Prepared, folder: Path, shard: tuple[int, int], quiet: bool
) -> Run:
    """Evaluate a checked `spec` on Ray, from where `folder` left off.

    `machine.cluster` is Ray's address. Without one, `ray.init` decides: it uses RAY_ADDRESS or a
    Ray that runs here, or starts one for this run. On other machines, this package, the data, and
    the weights must be where they are here; a worker on which they differ refuses to work. A task
    takes a processor, and a GPU if the cluster has any.

    Args:
        spec: What `run.check` returned.
        prepared: Its parts.
        folder: The run folder.
        shard: (i, n): only images i, i + n, i + 2 n, ...
        quiet: Show no progress.

    Raises:
        SpecError: Ray is not installed, does not start, or does not run at the address; or a worker
            has other weights, images, or code than this machine.
        RuntimeError: An attack exceeded the threat, the logits are not finite, or workers died
            again and again.
    """
    with connected(spec) as ray:
        store = Run.begin(folder, prepared.manifest, prepared.fingerprint)
        record_start(store, prepared.device)
        done = {outcome.index for outcome in store.outcomes()}
        mine = prepared.indices[shard[0] :: shard[1]]
        todo, size = [i for i in mine if i not in done], spec["machine"]["images_per_block"]
        blocks = [todo[first : first + size] for first in range(0, len(todo), size)]
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(evaluate_block)
        slots = max(node["Resources"].get("GPU" if gpus else "CPU", 0) for node in ray.nodes())
        common = worker_payload(prepared.manifest), max(1, min(int(slots), len(blocks)))
        waiting = [task.remote(spec, block, *common) for block in blocks]
        try:
            finished = len(mine) - len(todo)
            with progress("evaluating images on Ray", len(mine), finished, quiet) as show:
                while waiting:
                    (ready,), waiting = ray.wait(waiting)
                    outcomes, examples = ray.get(ready)
                    store.add(outcomes, examples)
                    finished += len(outcomes)
                    show(finished, "")
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"Ray lost the worker of a block of images {RETRIES + 1} times ({reason}): run the "
                "same command again, with fewer images per block or more memory if it repeats"
            ) from error
        finally:
            for task in waiting:  # after an error, an existing cluster would continue with them
                ray.cancel(task)
    return store


@contextmanager
def connected(spec: EvaluationSpec) -> Iterator[Any]:
    """Connect to Ray, or start it, as `run` says; a Ray started here stops after the `with`.

    Raises:
        SpecError: As in `run`.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        address = spec["machine"].get("cluster")
        _require_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except Exception as error:  # Ray raises a plain Exception if it does not start in time
            raise SpecError(
                f"machine.engine: Ray did not start ({error}): fix that, or leave the engine out"
            ) from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def workers(spec: EvaluationSpec) -> int:
    """The number of blocks that Ray runs at a time: one per GPU, or per processor without GPUs.

    Raises:
        SpecError: As in `run`.
    """
    with connected(spec) as ray:
        resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU") or resources.get("CPU", 1)))


def worker_payload(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest's entries that a worker compares with its own, by the keys of `SAME`."""
    entries = {**manifest, "version": manifest["versions"].get("unfool")}
    return {key: entries[key] for key in MUST_MATCH}


def evaluate_block(
    spec: EvaluationSpec, block: Sequence[int], driver: Mapping[str, Any], tasks_per_machine: int
) -> tuple[list[Outcome], Mapping[str, np.ndarray]]:
    """Return the outcomes of a block of a checked spec's images, and the arrays of its examples.

    Args:
        spec: What `run.check` returned.
        block: The indices of the images.
        driver: `worker_payload` of the machine that started the run.
        tasks_per_machine: How many such tasks share the machine and its memory.

    Raises:
        SpecError: This machine differs from that one.
    """
    collected = _BlockStore()
    with shared_by(tasks_per_machine):
        prepared, machine = _prepared(json.dumps(spec), json.dumps(driver))
        run_blocks(spec, prepared, collected, machine, only=block)
    return collected.stored, collected.examples


class _BlockStore:
    """The outcomes of one block, on their way from a worker to the run."""

    def __init__(self) -> None:
        self.stored: list[Outcome] = []
        self.examples: Mapping[str, np.ndarray] = {}

    def outcomes(self) -> list[Outcome]:
        return self.stored

    def add(self, outcomes: Sequence[Outcome], examples: Mapping[str, np.ndarray]) -> None:
        self.stored, self.examples = list(outcomes), examples


@lru_cache(maxsize=1)
def _prepared(text: str, driver: str) -> tuple[Prepared, Machine]:
    """Build the parts of a spec once per worker, and check that they equal those of the driver."""
    spec, expected = json.loads(text), json.loads(driver)
    prepared = prepare(spec)
    actual = worker_payload(prepared.manifest)
    if differing := [what for key, what in MUST_MATCH.items() if actual[key] != expected[key]]:
        raise SpecError(
            f"machine.engine: the Ray worker on {socket.gethostname()} differs from the machine "
            f"that started the run, in its {', and in its '.join(differing)}: make both the same, and "
            "run the same command again"
        )
    return prepared, prepared.set_up_machine(spec, (0, 1), quiet=True)


def _require_reachable(address: str) -> None:
    """Try to connect to the address, if it has host and port: Ray itself would try for minutes.

    Raises:
        SpecError: Nobody answers.
    """
    url = urlsplit(address if "://" in address else f"//{address}")
    try:
        if url.hostname and url.port:  # unlike `auto` and `local`
            socket.create_connection((url.hostname, url.port), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise SpecError(
            f"machine.cluster: there is no Ray at {address} ({error}): start it there with `ray "
            "start --head`, name another address (RAY_ADDRESS counts, too), or name none"
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except (ImportError, RuntimeError) as error:
        raise SpecError(
            "machine.engine: ray is not installed: pip install 'unfool[ray]', or leave the engine out"
        ) from error
