"""Measure the CPU time of whole commands, and compare it with an older version of the code.

    python bench/jobs.py --data FOLDER                                    # this version alone
    python bench/jobs.py --data FOLDER --before OLD/src --package defuse  # the table of docs/speed.md

Each command runs in a new process, so start-up, imports, and reports count. The versions take turns
in the same environment, with one thread. `git worktree add OLD COMMIT` creates the folder of an older
version; `--package` is its import name at that commit.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from measuring import machine, ratio, shown, table

ROOT = Path(__file__).resolve().parents[1]
JOBS = {
    "`evaluate demo`": ["evaluate", "demo"],
    "`evaluate cifar10-diffpure`, 4 images": [
        *("evaluate", "cifar10-diffpure", "--data", "{data}"),
        *("--set", "evaluation.images=4", "--set", "classifier.weights=cifar10-classifier"),
    ],
    "`certify digits-certify`, 1 image": [
        *("certify", "digits-certify", "--set", "certification.images=1"),
    ],
    "`purify`, one CIFAR-10 image": ["purify", "{image}", "--spec", "cifar10-diffpure"],
}


def main() -> None:
    """Measure all jobs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10")
    parser.add_argument("--before", type=Path, help="the src folder of an older version")
    parser.add_argument("--package", default="unfool", help="the import name of that version")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    versions = {"now": (ROOT / "src", "unfool")}
    if options.before:
        versions["before"] = (options.before.resolve(), options.package)
    rows = []
    for name, job in JOBS.items():
        took: dict[str, list[float]] = {version: [] for version in versions}
        for _ in range(options.turns):
            for version, (source, package) in versions.items():
                took[version].append(cpu_seconds(source, package, job, options.data.resolve()))
        middle = {version: shown(ratio(times).middle) for version, times in took.items()}
        if options.before:
            over = [now / old for now, old in zip(took["now"], took["before"], strict=True)]
            rows.append([name, middle["before"], middle["now"], str(ratio(over))])
        else:
            rows.append([name, middle["now"]])
        print(rows[-1], flush=True)
    heads = ["command", "before, s", "now, s", "now / before"]
    print("\n".join(table(heads if options.before else ["command", "now, s"], rows)))
    print(f"Measured on {machine('cpu')}.")


def cpu_seconds(source: Path, package: str, job: Sequence[str], data: Path) -> float:
    """Run one command, and return the CPU seconds of the process and its children.

    Raises:
        SystemExit: The command failed; the message contains its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.png")
        Image.open(ROOT / "src/unfool/data/cifar10_sample.png").crop((0, 0, 32, 32)).save(image)
        words = [word.format(data=data, image=image) for word in job]
        command = [sys.executable, "-m", package, *words, "--out", str(Path(folder, "out"))]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        began = _children()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return _children() - began


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
