"""Whether the accuracies of a sweep have converged: in steps, draws, restarts, or eps.

A verdict compares the two largest values of a swept path, on the same images and the same draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unfool.results.doubts.doubt import Doubt
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.spec import ThreatSection
from unfool.results.sweep.cell import Cell
from unfool.statistics import Mean, paired_difference_interval

EFFORT = ("eot", "queries", "restarts", "steps", "targets")  # options of attacks; more is stronger
PLATEAU_WIDTH = 0.02  # a change up to this counts as none
GRAY_BUDGET = {"linf": 0.5, "l0": 1.0}  # budgets at which every image can be made the same
Done = Sequence[tuple[Cell, Run, Summary]]


@dataclass(frozen=True)
class Convergence:
    """The change of an accuracy between the two largest values of a swept path.

    Attributes:
        path: The swept path of the spec.
        at: The values of the other paths, in words.
        values: The second largest value, and the largest.
        accuracy: `"clean"` or `"robust"`.
        change: The change of the accuracy from the former to the latter, with its paired interval.
        verdict: `"plateau"`: the interval is within 2 points of 0; `"falling"` or `"rising"`: it is
            not, and excludes 0; `"undecided"`: it includes 0. For eps: `"reaches guessing"`,
            `"stays above"`, or `"budget too small"`: above guessing, but the budget cannot make
            all images the same.
    """

    path: str
    at: dict[str, str]
    values: tuple[str, str]
    accuracy: str
    change: Mean
    verdict: str


def verdicts(done: Done) -> list[Convergence]:
    """Return the verdicts on the finished cells, each given with its run and its summary.

    A path is judged at each combination of the other paths. But of other paths that say how hard an
    attack tries, only the largest value is used.
    """
    result = []
    for path in done[0][0].values if done else ():
        if not (_is_effort(path) or path in ("purifier.steps", "threat.eps")):
            continue
        others = [other for other in done[0][0].values if other != path]
        numeric = [row for row in done if _number(row[0], path) is not None]
        for other in filter(_is_effort, others):
            largest = max((_number(cell, other) or 0 for cell, *_ in numeric), default=0)
            numeric = [row for row in numeric if (_number(row[0], other) or 0) == largest]
        at = lambda row, others=others: [row[0].values[other] for other in others]  # noqa: E731
        for _, rows in groupby(sorted(numeric, key=at), at):
            result += _judged(
                path, others, sorted(rows, key=lambda row: _number(row[0], path) or 0)
            )
    return result


def sweep_doubts(convergences: Sequence[Convergence]) -> Iterator[Doubt]:
    """Yield the doubts that follow from the verdicts on a sweep."""
    for convergence in convergences:
        if convergence.verdict in ("falling", "rising"):
            yield Doubt(
                "not-converged",
                "yellow",
                f"{describe(convergence)}, so the number belongs to {convergence.path} "
                f"{convergence.values[1]} and would still change with more effort: "
                "sweep on to larger values",
            )
        if convergence.verdict == "stays above":
            yield Doubt(
                "accuracy-does-not-reach-zero",
                "red",
                f"{describe(convergence)}, although with so large a budget every image can be "
                "turned into any other, so the attacks fail where they must succeed, and no "
                "number of this sweep shows that the defense is robust: look for masked gradients, or "
                "give the attacks more steps",
            )


def describe(convergence: Convergence) -> str:
    """Describe a verdict in one sentence, without its period."""
    at = "".join(f", {path} {value}" for path, value in convergence.at.items())
    change = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(
        *(100 * bound for bound in convergence.change)
    )
    words = {
        "plateau": "plateau",
        "falling": "still falling",
        "rising": "still rising",
        "undecided": "undecided (more images or draws would decide)",
        "reaches guessing": "down to guessing at the largest",
        "stays above": "above guessing at the largest",
        "budget too small": (
            "whether it falls to guessing is checked only for a budget that can make all images "
            "the same (linf 0.5)"
        ),
    }[convergence.verdict]
    below, top = convergence.values
    kind = f"{convergence.accuracy} accuracy"
    return f"{convergence.path} {below} to {top}{at}: {kind} changes by {change}: {words}"


def _judged(path: str, others: Sequence[str], rows: Done) -> Iterator[Convergence]:
    if len(rows) < 2:
        return
    (below, before, _), (top, after, summary) = rows[-2:]
    at = {other: top.values[other] for other in others}
    values = (below.values[path], top.values[path])
    attacked = bool(summary["attacks"])
    kinds = ["clean"] if path == "purifier.steps" or not attacked else []
    for kind in [*kinds, *(["robust"] if attacked else [])]:
        first, second = ({o.index: o for o in run.outcomes()} for run in (before, after))
        both = [(first[i], second[i]) for i in first if i in second]
        if len(both) < 2:
            continue
        gaps = [late.rate(kind) - early.rate(kind) for early, late in both]
        change = paired_difference_interval(
            gaps, summary["clean"].get("draws", summary["clean"]["k"])
        )
        verdict = _verdict(change)
        if path == "threat.eps":
            share, guess = summary["robust"]["per_draw"], 1 / summary["number_of_classes"]
            verdict = "stays above" if share["low"] > guess else "reaches guessing"
            if not _can_make_all_gray(top.spec["threat"], after) and verdict == "stays above":
                verdict = "budget too small"
        if path != "threat.eps" or kind == "robust":
            yield Convergence(path, at, values, kind, change, verdict)


def _verdict(change: Mean) -> str:
    if max(abs(change.low), abs(change.high)) <= PLATEAU_WIDTH:
        return "plateau"
    if change.low <= 0 <= change.high:
        return "undecided"
    return "falling" if change.high < 0 else "rising"


def _can_make_all_gray(threat: ThreatSection, run: Run) -> bool:
    """Whether the threat allows making every image the same gray."""
    values = 1
    for size in run.manifest.get("shape", [0]):
        values *= size
    power = {"l2": 0.5, "l1": 1.0}.get(threat["norm"], 0)
    needed = GRAY_BUDGET.get(threat["norm"]) or (0.5 * values**power if values else float("inf"))
    return threat["eps"] >= needed


def _is_effort(path: str) -> bool:
    return path.startswith("attacks.") and path.rpartition(".")[2] in EFFORT


def _number(cell: Cell, path: str) -> float | None:
    """The number at `path` of a cell's spec; None if there is none."""
    value: Any = cell.spec
    for key in path.split("."):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return float(value) if isinstance(value, int | float) else None
