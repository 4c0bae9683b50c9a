"""Count the network calls of an attack's plain loop, and how many of them are needed.

    python bench/ledger.py [--images 64] [--out runs/ledger] [--spec cifar10-diffpure --data FOLDER]

PGD-20 + EOT-10 on the demo's defense, or on a spec's. The plain loop computes ten gradients per step
and image, then evaluates the iterate on ten more draws. It never stops early, and returns the last
iterate that most of these draws got wrong. `separate queries` is the library's rule without any saving:
the answers that it needs are computed once more, in addition to the gradients on the same draws. Every
draw of the loop is recorded, so the calls of each saving alone can be counted on the same iterates. All
savings together are the library's attack (`early_stop`) and its vote, which run and are counted
separately. `replaying` is the plain loop with a gradient that keeps no graphs, as in
checkpointing. Each block of images is saved when it is done, so a second run resumes.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfool import spec as specs
from unfool.attacks.candidates import choose
from unfool.attacks.losses import query_logits, query_model
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.data import fetch
from unfool.defenses.purified_classifier import majority_class, majority_vote, predict_draws
from unfool.diffusion.gradient import keep_graphs
from unfool.evaluation import prepare
from unfool.evaluation import run as evaluation
from unfool.evaluation.cost import CallCounter
from unfool.noise import Noise
from unfool.runtime.files import write_bytes
from unfool.statistics import wilson
from unfool.threat import Threat

STEPS, EOT, VOTES, CLASSES = 20, 10, 15, 10
# An image is done as soon as 9 of 10 draws of its step, and 9 of 10 fresh ones, are wrong.
STOP, SHARE = 10, 0.9


class Bench:
    """Runs a block of images through the plain loop and through the library's attack."""

    def __init__(self, prepared: prepare.Prepared, threat: Threat, rows: int):
        self.prepared, self.threat = prepared, threat
        self.model, self.ledger = Batched(prepared.model, rows), CallCounter()

    def calls(self) -> int:
        """Return the network calls since the last call of this method."""
        return sum(self.ledger.take().values())

    def block(self, indices: list[int]) -> dict[str, Any]:
        """Attack one block of images in both ways; return the outcomes and the costs."""
        x, y = fetch(self.prepared.data, indices)
        noise = Noise.of(0, indices)
        with self.ledger.watching(self.prepared.model):
            record = self.plain(x, y, noise)
            began = time.perf_counter()
            self.calls()
            ours = PGD(STEPS, EOT, loss="margin", early_stop=STOP, early_stop_share=SHARE)(
                self.model, x, y, self.threat, noise.child("search")
            )
            streams = [noise.child("verdict", "vote", i) for i in range(VOTES)]
            wrong = majority_vote(self.model, ours, streams) != y
            record |= {"all": self.calls(), "all_wrong": wrong.tolist()}
            record["all_seconds"] = time.perf_counter() - began
            with keep_graphs(0):
                query_model(self.model, x[:1], y[:1], "margin", noise.take([0]), 0, 1)
            record["replayed"] = self.calls()
        return record | {"images": indices}

    def plain(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Any]:
        """Run the plain loop; record which draws were wrong, for each image and step."""
        began, run = time.perf_counter(), noise.child("search", "restart", 0)
        attack, iterates, judged, certain, losses = PGD(STEPS, EOT, loss="margin"), [], [], [], []
        gradients = forwards = 0
        self.calls()
        for i, (x_adv, step_losses) in enumerate(attack.path(self.model, x, y, self.threat, run)):
            gradients += self.calls()
            iterates.append(x_adv)
            if step_losses is not None:
                certain.append(step_losses.error_rate > SHARE - 1e-6)
                losses.append(step_losses.loss)
            answers = query_logits(self.model, x_adv, run.child("stop", i), 0, EOT).argmax(2)
            judged.append(answers != y[:, None])
            forwards += self.calls()
        wrong = torch.stack(judged, 1)  # (B, steps + 1, draws)
        ends = {
            "plain": _latest(iterates, wrong.float().mean(2) > 0.5),
            "early stop": _first(
                iterates,
                torch.stack(certain, 1) & (wrong[:, :STEPS].float().mean(2) > SHARE - 1e-6),
            ),
        }
        stopped_at = ends["early stop"][1]
        ends["early stop"] = (
            torch.where(
                (stopped_at < STEPS)[:, None, None, None], ends["early stop"][0], ends["plain"][0]
            ),
            stopped_at,
        )
        peak = torch.stack(losses, 1).argmax(1)
        highest = torch.stack(iterates, 1)[torch.arange(len(x)), peak]
        compare = noise.child("search", "compare")
        ends["shared draws"] = (
            choose(self.model, y, [iterates[-1], highest, x], "margin", compare, EOT),
            stopped_at,
        )
        self.calls()
        ballots = {
            name: predict_draws(self.model, end, noise.child("verdict"), VOTES)
            for name, (end, _) in ends.items()
        }
        self.calls()
        return {
            "gradient": gradients / (len(x) * STEPS * EOT),
            "forward": forwards / (len(x) * (STEPS + 1) * EOT),
            "left": stopped_at.tolist(),
            "judged": wrong.tolist(),
            "ballots": {name: b.tolist() for name, b in ballots.items()},
            "wrong": {
                name: (majority_class(b, CLASSES) != y).tolist() for name, b in ballots.items()
            },
            "labels": y.tolist(),
            "plain_seconds": time.perf_counter() - began,
        }


def _latest(iterates: list[Tensor], fooled: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's last iterate that fooled the model, or the very last one, and its number."""
    numbers = torch.arange(fooled.shape[1]).expand_as(fooled)
    last = torch.where(fooled, numbers, -1).amax(1)
    last = torch.where(last < 0, fooled.shape[1] - 1, last)
    return torch.stack(iterates, 1)[torch.arange(len(last)), last], last


def _first(iterates: list[Tensor], fallen: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's first iterate marked in `fallen`, or the very last one, and its number."""
    numbers = torch.arange(fallen.shape[1]).expand_as(fallen)
    first = torch.where(fallen, numbers, fallen.shape[1]).amin(1)
    return torch.stack(iterates, 1)[torch.arange(len(first)), first], first


def curtailed(wrong: list[bool]) -> int:
    """The number of draws after which it is certain whether most of them are wrong."""
    for drawn in range(1, len(wrong) + 1):
        bad = sum(wrong[:drawn])
        good, rest = drawn - bad, len(wrong) - drawn
        if bad > good + rest or good >= bad + rest:
            return drawn
    return len(wrong)


def elections(ballot: list[int]) -> int:
    """The number of draws after which the class with most votes is certain."""
    for drawn in range(1, len(ballot) + 1):
        counts = [ballot[:drawn].count(c) for c in range(CLASSES)]
        first, rest = counts.index(max(counts)), len(ballot) - drawn
        others = ((n + rest, -c) for c, n in enumerate(counts) if c != first)
        if max(others) < (counts[first], -first):
            return drawn
    return len(ballot)


def table(blocks: list[dict[str, Any]]) -> str:
    """The calls per image with each saving, as a Markdown table."""
    names = (
        "replaying",
        "plain",
        "early stop",
        "early vote",
        "separate queries",
        "shared draws",
        "all",
    )
    totals = dict.fromkeys(names, 0.0)
    wrong: dict[str, list[bool]] = {"plain": [], "early stop": [], "shared draws": [], "all": []}
    for b in blocks:
        f, g = b["forward"], b["gradient"]
        for i, stopped_at in enumerate(b["left"]):
            steps, judged = min(stopped_at + 1, STEPS), b["judged"][i]
            evaluated = steps if stopped_at < STEPS else STEPS + 1
            totals["plain"] += EOT * (STEPS * g + (STEPS + 1) * f) + VOTES * f
            totals["early stop"] += EOT * (steps * g + evaluated * f) + VOTES * f
            totals["shared draws"] += EOT * (STEPS * g + 3 * f) + VOTES * f
            totals["separate queries"] += EOT * (STEPS * (g + f) + 3 * f) + VOTES * f
            drawn = sum(curtailed(draws) for draws in judged)
            drawn += elections(b["ballots"]["plain"][i])
            totals["early vote"] += EOT * STEPS * g + drawn * f
            replays = EOT * STEPS * (b["replayed"] - g)
            totals["replaying"] += replays + EOT * (STEPS * g + (STEPS + 1) * f) + VOTES * f
        totals["all"] += b["all"]
        for name in ("plain", "early stop", "shared draws"):
            wrong[name] += b["wrong"][name]
        wrong["all"] += b["all_wrong"]
    # The same decisions at another cost, and the same answers, computed apart from the gradients.
    wrong |= dict.fromkeys(("replaying", "early vote"), wrong["plain"])
    wrong["separate queries"] = wrong["shared draws"]
    n = len(wrong["plain"])
    lines = [
        f"{n} images; a gradient is {blocks[0]['gradient']:.2f} calls, an answer "
        f"{blocks[0]['forward']:.2f}; left early {sum(x < STEPS for b in blocks for x in b['left'])}",
        "",
        "| what | calls per image | plain loop / it | accuracy by majority "
        "| same verdict as the plain loop "
        "| same verdict as the library without savings |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, total in totals.items():
        accuracy = wilson(n - sum(wrong[name]), n)
        same = [
            sum(a == b for a, b in zip(wrong[of], wrong[name], strict=True))
            for of in ("plain", "separate queries")
        ]
        lines.append(
            f"| {name} | {total / n:,.0f} | {totals['plain'] / total:.2f} | {accuracy} "
            f"| {same[0]} of {n} | {same[1]} of {n} |"
        )
    seconds = [sum(b[f"{name}_seconds"] for b in blocks) for name in ("plain", "all")]
    return "\n".join([*lines, "", f"seconds: plain {seconds[0]:.0f}, all {seconds[1]:.0f}"])


def main() -> None:
    """Run the blocks that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/ledger"))
    parser.add_argument("--spec", default="demo")
    parser.add_argument("--data", help="the folder of the spec's data")
    options = parser.parse_args()
    change = [f"evaluation.images={options.images}", "machine.device=cpu"]
    spec = evaluation.check(specs.load(options.spec, change), options.data)
    prepared = prepare.prepare(spec)
    rows = spec["machine"]["batch_size"]
    if rows == "auto":
        raise SystemExit("give a number: --set machine.batch_size=256")
    bench = Bench(prepared, Threat(**spec["threat"]), rows)
    blocks = []
    for first in range(0, options.images, options.block):
        indices = prepared.indices[first : first + options.block]
        path = options.out / f"{options.spec}-{options.images}-{options.block}-{first:05}.json"
        if not path.exists():
            write_bytes(path, json.dumps(bench.block(indices)).encode())
        blocks.append(json.loads(path.read_text("utf-8")))
        print(table(blocks), "\n", flush=True)


if __name__ == "__main__":
    main()
