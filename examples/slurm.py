"""An evaluation as an array of SLURM jobs, by submitit (pip install submitit).

    python examples/slurm.py my.yaml --shards 8 --out runs/whole --partition gpu --gpus 1
    python examples/slurm.py blobs --shards 2 --out runs/here --local

Each job does a shard of the images and writes into the one run folder, which must be on a disk that all
see. To go on after a kill, run it again: what is done stays done.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import submitit


def defuse(*words: str) -> None:
    """A command of defuse, in the Python of this one."""
    call = "from defuse.cli import main; main()"
    subprocess.run([sys.executable, "-c", call, *words], check=True)


def main() -> None:
    """Submit the shards, wait for them, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--local", action="store_true", help="processes here instead of SLURM")
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=0, help="per shard")
    parser.add_argument("--cpus", type=int, default=4, help="per shard")
    parser.add_argument("--minutes", type=int, default=24 * 60)
    given = parser.parse_args()

    executor = submitit.AutoExecutor(given.out / "jobs", cluster="local" if given.local else None)
    executor.update_parameters(
        name="defuse",
        timeout_min=given.minutes,
        cpus_per_task=given.cpus,
        gpus_per_node=given.gpus,
        slurm_array_parallelism=given.shards,
        **({"slurm_partition": given.partition} if given.partition else {}),
    )
    words = ["evaluate", given.spec, "--out", str(given.out), "--quiet"]
    words += [word for change in given.changes for word in ("--set", change)]
    shards = [[*words, "--shard", f"{i}/{given.shards}"] for i in range(given.shards)]
    with executor.batch():
        jobs = [executor.submit(defuse, *shard) for shard in shards]
    for job in jobs:
        job.result()  # raises if the shard failed, with its error
    defuse("report", str(given.out))


if __name__ == "__main__":
    main()
