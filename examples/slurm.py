"""Run an evaluation as an array of SLURM jobs, with submitit (pip install submitit).

    python examples/slurm.py my.yaml --shards 8 --out runs/whole --partition gpu --gpus 1
    python examples/slurm.py blobs --shards 2 --out runs/here --cluster local

Each job evaluates a shard of the images and writes into the same run folder, which must be on a shared
file system. To resume after a kill, run the same command again: finished work is kept.
"""

import argparse
from pathlib import Path

import submitit

from unfool.cli.main import run


def unfool(*words: str) -> None:
    """Run a command of unfool; the log of the job contains its error messages."""
    if run(list(words)):
        raise RuntimeError(f"unfool {' '.join(words)} failed: see the end of its log")


def main(arguments: list[str] | None = None) -> None:
    """Submit the shards, wait for them, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="local: processes here; debug: one after another, in this one",
    )
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=0, help="per shard")
    parser.add_argument("--cpus", type=int, default=4, help="per shard")
    parser.add_argument("--minutes", type=int, default=24 * 60)
    options = parser.parse_args(arguments)

    executor = submitit.AutoExecutor(options.out / "jobs", cluster=options.cluster)
    executor.update_parameters(
        name="unfool",
        timeout_min=options.minutes,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus,
        slurm_array_parallelism=options.shards,
        **({"slurm_partition": options.partition} if options.partition else {}),
    )
    words = ["evaluate", options.spec, "--out", str(options.out), "--quiet"]
    words += [word for change in options.changes for word in ("--set", change)]
    shards = [[*words, "--shard", f"{i}/{options.shards}"] for i in range(options.shards)]
    with executor.batch():
        jobs = [executor.submit(unfool, *shard) for shard in shards]
    for job in jobs:
        job.result()  # raises the error of a shard that failed
    unfool("report", str(options.out))


if __name__ == "__main__":
    main()
