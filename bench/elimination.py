"""Compare elimination rules with 50 / 500: how often they decide the same, and their network calls.

    python bench/elimination.py --out runs/elimination
    python bench/elimination.py --images 50 --others 0 --of cifar10 --data FOLDER
    python bench/elimination.py --of cifar10 --data FOLDER --weights cifar10-multi-head --rules all

Prints the Markdown table of docs/classifier.md, for test digits (or CIFAR-10 images), the shipped
class-conditional denoiser, and the diffusion classifier with default options. Rules with the same number
of draws use the same draws, as in one classifier whose rule is changed: an error that several rules need
is computed once and counts for each. The agreement of 50 / 500 with itself on other draws is the
reference. A denoiser with one head per class evaluates all classes in one call. Outcomes are kept in
`--out`, so the same command resumes. Intervals are 95 % Wilson intervals.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfool import spec as specs
from unfool.data import fetch
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier, _rank_dropped_below
from unfool.defenses.diffusion_classifier.errors import ClassErrors, Loss
from unfool.diffusion.denoiser import Denoiser
from unfool.noise import Noise, permutation
from unfool.protocols import Dataset
from unfool.runtime.files import npz_bytes, write_bytes
from unfool.statistics import wilson

HEADS = (
    "| elimination | same decision as 50 / 500 | accuracy | images | calls "
    "| calls / those of 50 / 500 |"
)
NAMES = {"cifar10": "`cifar10` (50 / 500)", "food": "`food`, `aircraft`, `flowers`, `cifar100`"}
WEIGHTS = {"digits": "digits-conditional", "cifar10": "cifar10-conditional-small"}
BLOCK = 25  # images per file


class Decision(NamedTuple):
    """The decision of a rule on an image.

    Attributes:
        answer: The predicted class.
        label: The true class.
        calls: The number of network evaluations (rows) that the rule needed.
    """

    answer: int
    label: int
    calls: int


Decisions = dict[int, Decision]  # by index of the image


class Job(NamedTuple):
    """Rules that share their draws, and the images that they classify.

    Attributes:
        rules: Names of elimination rules.
        seed: Seed of the draws.
        images: The number of test images.
    """

    rules: tuple[str, ...]
    seed: int
    images: int


class Remembered(ClassErrors):
    """Class errors that are computed once and shared by all rules that need them."""

    table: Tensor
    known: Tensor

    def fill(self, table: Tensor, z: Tensor, wanted: Tensor) -> None:
        """Do what `ClassErrors.fill` does, but compute only errors that are not known yet."""
        if "table" not in self.__dict__:
            self.__dict__ |= {"table": torch.zeros_like(table), "known": torch.zeros_like(wanted)}
        super().fill(self.table, z, wanted & ~self.known)
        self.known.logical_or_(wanted)
        table += self.table * wanted


def main() -> None:
    """Run all rules and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/elimination"))
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--others", type=int, default=50, help="for all but `paired`; 0 for none")
    parser.add_argument("--loss", default="l2", choices=["l2", "l1", "huber"])
    parser.add_argument("--of", default="digits", choices=WEIGHTS)
    parser.add_argument("--data", help="the folder of the data")
    parser.add_argument("--weights", help="the denoiser, if not the shipped one of the data")
    parser.add_argument(
        "--rules", nargs="*", help="only these, set beside the first; `all` for none"
    )
    parser.add_argument("--draws", type=int, default=500, help="of `paired` and of `all`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = {"folder": options.data} if options.data else {}
    data = specs.check("data", {"name": options.of, "split": "test"} | folder)
    test: Dataset = specs.build("data", data)
    weights = options.weights or WEIGHTS[options.of]
    part = specs.check("denoiser", {"name": "trained", "weights": weights})
    denoiser = specs.build("denoiser", part).eval().requires_grad_(False)
    few = min(options.others, options.images)
    jobs = [
        Job(("cifar10", "paired"), 0, options.images),
        Job(("cifar10",), 1, few),
        Job(("stl10", "food"), 0, few),
        Job(("pets",), 0, few),
        Job(("imagenet", "objectnet"), 0, few),
    ]
    heads = HEADS
    if options.rules:
        jobs = [Job(tuple(options.rules), 0, options.images)]
        heads = HEADS.replace("50 / 500", options.rules[0])
    print(heads, "|---|---:|---:|---:|---:|---:|", sep="\n")
    first: Decisions = {}
    for job in (job for job in jobs if job.images):
        outcomes_of_rule: dict[str, Decisions] = {rule: {} for rule in job.rules}
        for rule, image, decision in decisions(
            denoiser, test, job, options.loss, options.draws, options.out / weights
        ):
            outcomes_of_rule[rule][image] = decision
        first = first or outcomes_of_rule[job.rules[0]]
        for rule, outcomes in outcomes_of_rule.items():
            name = "`cifar10` on other draws" if job.seed else NAMES.get(rule, f"`{rule}`")
            print(line(name, outcomes, first), flush=True)


def decisions(
    denoiser: Denoiser, data: Dataset, job: Job, loss: Loss, draws: int, out: Path
) -> Iterator[tuple[str, int, Decision]]:
    """Yield rule, image index and decision for all of a job; saved decisions are read from disk."""
    chosen = permutation(len(data), 0, "subset")[: job.images]
    for first in range(0, len(chosen), BLOCK):
        indices = chosen[first : first + BLOCK]
        path = out / f"{'-'.join(job.rules)}-{loss}-{draws}-{job.seed}-{first}-{len(indices)}.npz"
        x, y = fetch(data, indices)
        if not path.is_file():
            noise = Noise.of(job.seed, indices)
            results = decide(denoiser, x, noise, job.rules, loss, draws)
            write_bytes(path, npz_bytes({rule: rows.numpy() for rule, rows in results.items()}))
        with np.load(path) as table:
            for rule in job.rules:
                for image, label, (answer, calls) in zip(
                    indices, y.tolist(), table[rule].tolist(), strict=True
                ):
                    yield rule, image, Decision(answer, label, calls)


@torch.no_grad()
def decide(
    denoiser: Denoiser, x: Tensor, noise: Noise, rules: tuple[str, ...], loss: Loss, draws: int
) -> dict[str, Tensor]:
    """Return, for each rule, the predicted classes and the calls (B, 2) of images (B, C, H, W)."""
    results, errors = dict[str, Tensor](), None
    for rule in rules:
        model = DiffusionClassifier(
            denoiser,
            draws=draws if rule in ("paired", "all") else None,
            elimination=None if rule == "all" else rule,
            loss=loss,
            batch_size=500,
        )
        errors = errors or Remembered(
            denoiser, model.scales, noise.child("eps"), model.loss, model.row_limit
        )
        z = denoiser.encode(x)
        table, computed, dropped_in_round = model._measure(errors, z, model.weight)
        logits = _rank_dropped_below(
            -errors.mean(table, computed, z, model.weight), dropped_in_round
        )
        calls = computed.any(1).sum(1) if denoiser.multi_head else computed.sum((1, 2))
        results[rule] = torch.stack((logits.argmax(1), calls), 1)
    return results


def line(name: str, outcomes: Decisions, first: Decisions) -> str:
    """Format a row of the table, which compares the decisions of a rule with those of 50 / 500."""
    same = wilson(sum(d.answer == first[i].answer for i, d in outcomes.items()), len(outcomes))
    accuracy = wilson(sum(d.answer == d.label for d in outcomes.values()), len(outcomes))
    calls = sum(d.calls for d in outcomes.values()) / len(outcomes)
    calls_of_first = sum(first[i].calls for i in outcomes) / len(outcomes)
    ratio = calls / calls_of_first
    return f"| {name} | {same} | {accuracy} | {len(outcomes)} | {calls:,.0f} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
