"""Pools the cells of a sweep that differ only in seeds: a seed is a repetition, not a condition.

Each distinct image counts once. If several seeds chose it, its accuracy is only known better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unfool.results.attack_roles import roles
from unfool.results.outcome import Outcome
from unfool.results.report_json import ShareEntry, share_entry
from unfool.results.run_folder import Run
from unfool.results.spec import AttackEntry
from unfool.results.sweep.cell import Cell
from unfool.statistics import mean_rate_interval

Group = Sequence[tuple[Cell, Run]]


@dataclass(frozen=True)
class Pooled:
    """The cells that differ only in seeds, taken together.

    Attributes:
        values: The value of each swept path that is not a seed, in words.
        runs: Number of cells.
        images: Number of distinct images.
        shares: By condition, such as `clean` and `robust`: the mean `accuracy` per draw, and its
            95 % interval from `low` to `high`.
    """

    values: dict[str, str]
    runs: int
    images: int
    shares: dict[str, ShareEntry]


def is_seed(path: str) -> bool:
    """Whether a swept path is a seed, such as `evaluation.subset_seed`."""
    return path.endswith("seed")


def pool(done: Group) -> list[Pooled]:
    """Pool the finished cells, each with its run, in groups that differ only in seeds.

    An image is identified by its place in the data set (and the data set's seeds). It counts once,
    with the mean of all its draws. Another `evaluation.seed` gives it other draws, which are added.
    Another `evaluation.subset_seed` only repeats the same draws, which count once. So the interval
    is that of a mean over distinct images with several draws each (`statistics.mean_rate_interval`).
    """
    groups: dict[tuple[str, ...], list[tuple[Cell, Run]]] = {}
    for cell, run in done:
        key = tuple(value for path, value in cell.values.items() if not is_seed(path))
        groups.setdefault(key, []).append((cell, run))
    return [_together(group) for group in groups.values()]


def _together(group: Group) -> Pooled:
    repeats_by_image: dict[tuple[Any, ...], dict[tuple[str, ...], Outcome]] = {}
    for cell, run in group:
        seeds = {path: value for path, value in cell.values.items() if is_seed(path)}
        seeds.pop("evaluation.subset_seed", None)
        data = tuple(value for path, value in seeds.items() if path.startswith("data."))
        noise = tuple(value for path, value in seeds.items() if not path.startswith("data."))
        for outcome in run.outcomes():
            repeats_by_image.setdefault((*data, outcome.index), {})[noise] = outcome
    images = [list(repeats.values()) for repeats in repeats_by_image.values()]
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
    """The reported conditions, each with those that it averages; `[]` is the attack that counts."""
    labels, unbounded, corruptions, known_noise = (
        [row["label"] for row in rows] for rows in roles(attacks)
    )
    result = {name: [name] for name in ("clean", *labels)}
    result |= {"robust": []} if labels else {}
    result |= {name: [name] for name in (*unbounded, *known_noise)}
    return result | ({"corrupted": corruptions} if corruptions else {})


def _share(images: Sequence[Sequence[Outcome]], names: Sequence[str]) -> ShareEntry:
    answers = [[right for outcome in image for right in _right(outcome, names)] for image in images]
    draws = sum(map(len, answers)) / len(answers)
    return share_entry(
        mean_rate_interval([fmean(image_answers) for image_answers in answers], draws)
    )


def _right(outcome: Outcome, names: Sequence[str]) -> list[bool]:
    """Whether each draw is right under the conditions `names`; if empty, under the chosen one."""
    chosen = names or [outcome.chosen]
    return [answer == outcome.label for name in chosen for answer in outcome.conditions[name].draws]
