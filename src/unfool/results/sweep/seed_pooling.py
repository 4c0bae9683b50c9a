"""Pools the cells of a sweep that differ only in seeds: a seed is a repetition, not a condition.

What is counted are images. One that several seeds chose is still one image, known better at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unfool.results.attack_roles import roles
from unfool.results.outcome import Outcome
from unfool.results.run_folder import Run
from unfool.results.spec import AttackEntry
from unfool.results.sweep.cell import Cell
from unfool.statistics import mean_of

Group = Sequence[tuple[Cell, Run]]


@dataclass(frozen=True)
class Pooled:
    """The cells of one combination of all that is no seed.

    Attributes:
        values: What each swept path but the seeds is here, in the reader's words.
        runs: How many cells there are.
        images: How many distinct images they have.
        shares: By condition, as `clean` and `robust`: the mean `accuracy` per draw, and its 95 %
            interval from `low` to `high`.
    """

    values: dict[str, str]
    runs: int
    images: int
    shares: dict[str, dict[str, float]]


def is_seed(path: str) -> bool:
    """Whether a swept path is a seed, such as `evaluation.subset_seed`."""
    return path.endswith("seed")


def pool(done: Group) -> list[Pooled]:
    """The cells that are done, each with its run, in groups that differ in seeds alone.

    An image is known by its place in the data set, and counts once, with the mean of all its draws.
    Its draws are those of each noise it met: under another `evaluation.seed` they are others, but
    under another `evaluation.subset_seed` they are the same ones, measured again, and are taken once.
    So the interval is that of a mean over distinct images with several draws each
    (`statistics.mean_of`).
    """
    groups: dict[tuple[str, ...], list[tuple[Cell, Run]]] = {}
    for cell, run in done:
        key = tuple(value for path, value in cell.values.items() if not is_seed(path))
        groups.setdefault(key, []).append((cell, run))
    return [_together(group) for group in groups.values()]


def _together(group: Group) -> Pooled:
    seen: dict[tuple[Any, ...], dict[tuple[str, ...], Outcome]] = {}
    for cell, run in group:
        seeds = {path: value for path, value in cell.values.items() if is_seed(path)}
        seeds.pop("evaluation.subset_seed", None)
        data = tuple(value for path, value in seeds.items() if path.startswith("data."))
        noise = tuple(value for path, value in seeds.items() if not path.startswith("data."))
        for outcome in run.outcomes():
            seen.setdefault((*data, outcome.index), {})[noise] = outcome
    images = [list(repeats.values()) for repeats in seen.values()]
    (cell, run), *_ = group
    return Pooled(
        values={path: value for path, value in cell.values.items() if not is_seed(path)},
        runs=len(group),
        images=len(images),
        shares={
            name: _share(images, names) for name, names in _conditions(run.spec["attacks"]).items()
        },
    )


def _conditions(attacks: Sequence[AttackEntry]) -> dict[str, list[str]]:
    """The conditions that are told, each with those it is the mean of; none: the one chosen."""
    labels, beyond, corruptions, knowing = (
        [row["label"] for row in rows] for rows in roles(attacks)
    )
    found = {name: [name] for name in ("clean", *labels)}
    found |= {"robust": []} if labels else {}
    found |= {name: [name] for name in (*beyond, *knowing)}
    return found | ({"corrupted": corruptions} if corruptions else {})


def _share(images: Sequence[Sequence[Outcome]], names: Sequence[str]) -> dict[str, float]:
    answers = [[right for outcome in image for right in _right(outcome, names)] for image in images]
    draws = sum(map(len, answers)) / len(answers)
    return mean_of([fmean(each) for each in answers], draws)._asdict()


def _right(outcome: Outcome, names: Sequence[str]) -> list[bool]:
    """Of each draw under some conditions, whether it is right."""
    chosen = names or [outcome.chosen]
    return [answer == outcome.label for name in chosen for answer in outcome.conditions[name].draws]
