"""The tables of an evaluation: where each condition, reading, and number of a summary appears."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfool.report.document import Table
from unfool.report.formatting import Share, cell, duration, mean, memory, points
from unfool.results.report_json import ClassRow, DoubtEntry, Readings, ShareEntry, Summary
from unfool.results.threat_model import known_words
from unfool.statistics import percent

SUBMITTED = {"clean": "clean", "random": "random noise", "robust": "robust"}


@dataclass(frozen=True)
class Column:
    """The column of a reading of accuracy.

    Attributes:
        key: Its name in `report.json`: `undefended`, `per_draw`, `majority`, or `all_draws`.
        title: The heading.
        meaning: An explanation in plain words.
    """

    key: str
    title: str
    meaning: str


@dataclass(frozen=True)
class TableRow:
    """The row of a condition.

    Attributes:
        name: Its name in `report.json`.
        title: Its name for readers.
        shares: Key of each column to the share.
        marks: The numbers, from 1, of the doubts about the row.
    """

    name: str
    title: str
    shares: dict[str, Share]
    marks: tuple[int, ...]


def doubts(summary: Summary) -> list[DoubtEntry]:
    """Return the doubts in the order in which they are numbered, the red ones first."""
    return sorted(summary["doubts"], key=lambda doubt: doubt["severity"] != "red")


def columns(summary: Summary) -> list[Column]:
    """Return the columns to show.

    One reading is enough if k is 1, or if the model has no defense and all its readings agree.
    """
    k = summary["robust"]["k"]
    shown = []
    if "undefended" in summary["robust"]:
        meaning = "the same images, given to the classifier without its defense"
        if summary["attacks"]:
            meaning += "; in the row robust, under the attack that hurts it most"
        shown.append(Column("undefended", "undefended", meaning))
    defended = "defended" if shown else "accuracy"
    if _one_reading(summary):
        return [*shown, Column("per_draw", defended, "how often the model is right")]
    attacker_note = f": the attacker may submit {k} times" if summary["attacks"] else ""
    scope = f", of the first {draws}" if (draws := summary["robust"].get("draws")) else ""
    return [
        *shown,
        Column(
            "per_draw",
            f"{defended}, per draw",
            f"how often one answer of the model is right{scope}",
        ),
        Column("majority", f"majority of {k}", f"how often the true class leads in {k} answers"),
        Column("all_draws", f"all {k} right", f"how often all {k} are{attacker_note}"),
    ]


def rows(summary: Summary) -> list[TableRow]:
    """Return a row per condition: clean, random noise, attacks, robust, and corruptions."""
    table: list[tuple[str, str, Readings]] = [("clean", "clean", summary["clean"])]
    if "random" in summary:
        table.append(("random", "random noise", summary["random"]))
    table += [(attack["name"], attack["name"], attack["robust"]) for attack in summary["attacks"]]
    if summary["attacks"]:
        table.append(("robust", "robust", summary["robust"]))
        if "undefended" in summary["robust"]:
            bare: ShareEntry = worst_undefended(summary)[1]
            table[-1] = ("robust", "robust", {**summary["robust"], "undefended": bare})
    table += [(row["name"], row["name"], row["robust"]) for row in summary.get("unbounded", [])]
    corruptions = summary.get("corruptions", [])
    table += [(row["name"], row["name"], row["robust"]) for row in corruptions]
    if "corrupted" in summary:
        table.append(("corrupted", "corrupted, on average", summary["corrupted"]))
    keys = [column.key for column in columns(summary)]
    return [
        TableRow(name, title, {key: shares[key] for key in keys}, _marks(summary, name, shares))
        for name, title, shares in table
    ]


def accuracy(summary: Summary) -> Table:
    """Tabulate accuracy under every condition, with marks for the doubts about a row."""
    heads, lines = columns(summary), rows(summary)
    return Table(
        ["condition", *(head.title for head in heads)],
        [[line.title, *(cell(line.shares[head.key]) for head in heads)] for line in lines],
        {i: "strong" for i, line in enumerate(lines) if line.name == "robust"},
        {i: line.marks for i, line in enumerate(lines)},
    )


def records(summary: Summary) -> list[dict[str, Any]]:
    """Return the table of accuracies as numbers, with a row per condition and reading."""
    return [
        {"condition": line.name, "reading": key, "n": summary["n"]}
        | {"k": _draws(summary["robust"], key)}
        | {bound: share[bound] for bound in ("accuracy", "low", "high")}
        for line in rows(summary)
        for key, share in line.shares.items()
    ]


def classes(summary: Summary) -> Table:
    """Tabulate accuracy by class; of many classes, only the least robust ones."""
    keys = ["clean", "robust"] if summary["attacks"] else ["clean"]
    body = [
        [row["name"], str(row["n"]), *(cell(row[key]) for key in keys)] for row in weakest(summary)
    ]
    return Table(["class", "images", *keys], body)


QUALITY = (
    ("psnr", "PSNR, dB", ".1f"),
    ("ssim", "SSIM", ".3f"),
    ("lpips", "LPIPS", ".3f"),
    ("l2", "l2", ".2f"),
)


def quality(summary: Summary) -> Table:
    """Tabulate distances to the clean images by condition; without rows if not measured."""
    lines, stages = summary.get("quality", []), (("before", ""), ("after", ", purified"))
    shown = [stage for stage in stages if any(stage[0] in line for line in lines)]
    metrics = [
        m
        for m in QUALITY
        if any(m[0] in line.get(stage, {}) for line in lines for stage, _ in stages)
    ]
    heads = ["images", *(name + suffix for _, name, _ in metrics for _, suffix in shown)]
    titles = {row.name: row.title for row in rows(summary)}
    body = [
        [titles[line["name"]]]
        + [
            mean(line.get(stage, {}).get(metric), digits)
            for metric, _, digits in metrics
            for stage, _ in shown
        ]
        for line in lines
    ]
    return Table(heads, body)


def ladder(summary: Summary) -> Table:
    """Tabulate accuracy after each further attack; without rows if there is only one."""
    rungs = summary.get("by_attack", [])
    heads = [column for column in columns(summary) if column.key in ("per_draw", "majority")]
    body = [
        [rung["name"], str(rung["attacked"]), *(cell(rung["robust"][head.key]) for head in heads)]
        for rung in rungs
    ]
    titles = ["after", "tried on", *(head.title for head in heads)]
    return Table(titles, body if len(rungs) > 1 else [])


def known_noise(summary: Summary) -> Table:
    """Tabulate accuracy if the attacker knows some of the noise; possibly without rows.

    The first rows are the attacks without this knowledge, for comparison.
    """
    table = summary.get("known_noise", [])
    compared = {row["compared_with"] for row in table if "compared_with" in row}
    body = [
        [row["name"], "none of the noise is known", cell(row["robust"]["per_draw"]), "-"]
        for row in summary["attacks"]
        if row["name"] in compared
    ]
    body += [
        [
            row["name"],
            known_words(row["knows"]),
            cell(row["robust"]["per_draw"]),
            points(row["gap"], unit=" points") + f" ({row['compared_with']})"
            if "gap" in row and "compared_with" in row
            else "-",
        ]
        for row in table
    ]
    heads = ["attack", "what is known", "right, per answer", "below that with none known"]
    return Table(heads, body)


def resubmission(summary: Summary) -> Table:
    """Tabulate how often all of m answers are right, for m = 1, 2, 4, ... submissions."""
    curve = summary.get("resubmission", {})
    names = [name for name in SUBMITTED if name in curve]
    if _one_reading(summary) or not curve:
        return Table([], [])
    most = len(curve["submissions"])
    shown = sorted({2**i for i in range(most.bit_length())} | {most})
    body = [[str(m), *(cell(curve[name][m - 1]) for name in names)] for m in shown]
    return Table(["submissions", *(SUBMITTED[name] for name in names)], body)


def costs(summary: Summary) -> Table:
    """Tabulate the evaluation's cost, in total and per image."""
    cost, n = summary["cost"], summary["n"]
    names = {
        "nfe_forward": "denoiser, forward calls",
        "nfe_vjp": "denoiser, backward calls",
        "classifier_forward": "classifier, forward calls",
        "classifier_vjp": "classifier, backward calls",
    }
    calls = [(title, f"{cost[k]:,}", f"{cost[k] / n:,.0f}") for k, title in names.items()]
    lines = [
        *calls,
        ("time", duration(cost["seconds"]), f"{cost['seconds'] / n:.3g} s"),
        ("images per second", f"{cost['images_per_second']:.3g}", ""),
        ("peak memory", memory(cost["peak_bytes"]), ""),
        *_forecast_rows(summary),
    ]
    return Table(["cost", "in all", "per image"], lines)


def _forecast_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Return rows with the forecast for this number of images, and the fraction of it used."""
    forecast, cost, n = summary.get("forecast"), summary["cost"], summary["n"]
    if not forecast:
        return []
    qualifier, fraction = ("at most " if forecast["is_upper_bound"] else ""), n / forecast["images"]
    calls, seconds = (fraction * sum(forecast["calls"].values()), fraction * forecast["seconds"])
    taken = sum(cost[key] for key in forecast["calls"])
    return [
        (
            "forecast, calls",
            f"{qualifier}{calls:,.0f}",
            f"{percent(taken / calls, 0)} taken" if calls else "",
        ),
        (
            "forecast, time",
            qualifier + duration(seconds),
            f"{percent(cost['seconds'] / seconds, 0)} taken",
        ),
    ]


def worst_undefended(summary: Summary) -> tuple[str, ShareEntry]:
    """Return what hurts the undefended classifier most, and the classifier's accuracy under it.

    The attack that counts against the defense may be harmless to the classifier alone; comparing both
    under it would make the defense look worthless.
    """
    candidates = [("the attack that counts", summary["robust"])]
    candidates += [
        (f"the attack '{attack['name']}'", attack["robust"]) for attack in summary["attacks"]
    ]
    accuracies = [(name, row["undefended"]) for name, row in candidates if "undefended" in row]
    return min(reversed(accuracies), key=lambda pair: pair[1]["accuracy"])


def weakest(summary: Summary, limit: int = 30) -> list[ClassRow]:
    """Return the classes in their own order, or the `limit` least robust ones if there are more."""
    classes = summary["classes"]
    if len(classes) <= limit:
        return list(classes)
    return sorted(classes, key=lambda row: row["robust"]["accuracy"])[:limit]


def _draws(readings: Readings, reading: str) -> int:
    """Return the number of draws per image behind a reading."""
    return readings.get("draws", readings["k"]) if reading == "per_draw" else readings["k"]


def _one_reading(summary: Summary) -> bool:
    robust = summary["robust"]
    if robust["k"] == 1:
        return True
    readings = [robust, summary["clean"], summary.get("random", robust)]
    for key in ("attacks", "unbounded", "corruptions"):
        readings += [row["robust"] for row in summary.get(key, [])]
    return "undefended" not in robust and all(
        row["per_draw"]["accuracy"] == row[key]["accuracy"]
        for row in readings
        for key in ("majority", "all_draws")
    )


def _marks(summary: Summary, name: str, shares: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the doubts about a row: all for the main row, else those that name the attack."""
    without = "corrupted" if summary.get("corruptions") else "clean"
    if name == ("robust" if summary["attacks"] else without):
        return tuple(range(1, len(summary["doubts"]) + 1))
    attack = any(attack["name"] == name for attack in summary["attacks"])
    numbered = enumerate(doubts(summary), 1)
    return tuple(number for number, doubt in numbered if attack and _mentions(doubt["why"], name))


def _mentions(text: str, name: str) -> bool:
    return f" {name} " in f" {text.replace(',', ' ').replace(':', ' ')} "
