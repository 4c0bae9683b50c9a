"""The report of a sweep: a table of its cells, a table pooled over seeds, and the figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unfool.evaluation import sweep as sweeps
from unfool.report.document import (
    Block,
    Code,
    Definitions,
    Document,
    Doubts,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
    Tile,
    Tiles,
)
from unfool.report.figures.sweep import Point, figure, legible, over_numbers
from unfool.report.formatting import cell as share_of
from unfool.report.formatting import duration
from unfool.report.provenance import UNKNOWN, start_entries
from unfool.report.write import write_document
from unfool.results.doubts.doubt import Doubt
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.sweep.cell import Cell
from unfool.results.sweep.convergence import Convergence, describe, sweep_doubts, verdicts
from unfool.results.sweep.seed_pooling import Pooled, is_seed, pool
from unfool.statistics import percent

VERSION = 1
Done = Sequence[tuple[Cell, Summary]]


def write_report(
    folder: Path, done: Done, total: int, command: str, failed: Sequence[str] = ()
) -> Document:
    """Write `sweep.html`, `.md`, `.png`, `.json`, and `.csv` into the folder of a sweep.

    Args:
        folder: The sweep's folder.
        done: The cells that are done, with the summaries of their runs.
        total: The total number of cells.
        command: The command to make it again.
        failed: The values of each cell that cannot be run, and the reason.

    Returns:
        The report.
    """
    runs = [Run.open(sweeps.run_folder_of(folder, cell)) for cell, _ in done]
    convergences = verdicts(
        [(cell, run, summary) for (cell, summary), run in zip(done, runs, strict=True)]
    )
    doubts = list(sweep_doubts(convergences))
    lines = [*(f"not run: {entry}" for entry in failed), *_lines_below(done, convergences, doubts)]
    pooled = pool([(cell, run) for (cell, _), run in zip(done, runs, strict=True)])
    pooled = pooled if len(pooled) < len(done) else []  # else no two cells differ only in seeds
    document = _full(done, total, pooled, doubts, lines, command)
    cells = [{"values": cell.values, "summary": summary} for cell, summary in done]
    numbers = {"version": VERSION, "requested": total, "command": command, "cells": cells}
    numbers |= {"failed": list(failed)}
    numbers |= {"pooled": [asdict(entry) for entry in pooled]}
    numbers |= {
        "verdicts": [asdict(entry) | {"change": entry.change._asdict()} for entry in convergences]
    }
    numbers |= {"doubts": [asdict(doubt) for doubt in doubts]}
    write_document(folder, "sweep", document, numbers, records(done))
    return document


def records(done: Done) -> list[dict[str, Any]]:
    """Return the table as numbers: each cell's values, and accuracy per draw by condition."""
    return [
        {**cell.values, "n": summary["n"], "requested": summary["requested"], **_shares(summary)}
        for cell, summary in done
    ]


def brief(done: Done, failed: Sequence[str] = ()) -> Document:
    """Make the short report for a terminal or notebook: the table, and what could not be run."""
    below = [Items([f"not run: {reason}" for reason in failed])] if failed else []
    return Document("Accuracy per draw", [sweep_table(done), *below])


def _full(
    done: Done,
    total: int,
    pooled: Sequence[Pooled],
    doubts: Sequence[Doubt],
    lines: Sequence[str],
    command: str,
) -> Document:
    points = [Point(row.values, row.shares) for row in pooled]
    points = points or [Point(cell.values, _shares(summary)) for cell, summary in done]
    names, attacks, title = _conditions(done), _attacks(done), _title(done, pooled)
    about = _about(done, total) + _about_columns(done) + _about_figure(points, names, attacks)
    tables: list[Block] = [sweep_table(done)]
    if pooled:
        note = Paragraph(_about_pooled(done, pooled), "note")
        tables = [_pooled_table(pooled, names), note, *tables]
    blocks = [
        Paragraph(about),
        _tiles(done),
        *_not_tried(done),
        Heading("Accuracy"),
        Figure("sweep.png", title, "Bars are 95 % intervals.", figure(points, names, attacks)),
        *tables,
    ]
    raised: list[Block] = [Doubts([asdict(doubt) for doubt in doubts])] if doubts else []
    below: list[Block] = [*raised, Heading("Notes"), Items(lines)] if lines else raised
    blocks += [*below, Heading("Record"), Definitions(_record(done))]
    return Document(title, [*blocks, Heading("How to reproduce it"), Code(command)], "A sweep")


def _tiles(done: Done) -> Tiles:
    """Return the lowest and the highest main accuracy, and the number of combinations."""
    key = "robust" if any(summary["attacks"] for _, summary in done) else "clean"
    accuracies = [(_shares(summary).get(key, {}), cell) for cell, summary in done]
    accuracies = [(share, cell) for share, cell in accuracies if share]
    ends = [pick(accuracies, key=lambda pair: pair[0]["accuracy"]) for pick in (min, max)]
    tiles = [
        Tile(percent(share["accuracy"]), f"{word} {key} accuracy", cell.name)
        for word, (share, cell) in zip(("lowest", "highest"), ends, strict=True)
    ]
    images = sum(summary["n"] for _, summary in done)
    return Tiles(
        [*tiles, Tile(str(len(done)), "combinations", f"{images} evaluations of an image")]
    )


def _not_tried(done: Done) -> list[Block]:
    """List what no run of the sweep tried."""
    first, *others = [summary["not_tried"] for _, summary in done]
    shared = [item for item in first if all(item in other for other in others)]
    return [Heading("What no run tried"), Items(shared)] if shared else []


def _record(done: Done) -> list[tuple[str, str]]:
    """Record where the numbers of all runs come from."""
    starts = [start for _, summary in done for start in summary["provenance"]["starts"]]
    seconds = sum(summary["cost"]["seconds"] for _, summary in done)
    entries = start_entries(sorted(starts, key=lambda start: start["date"]))
    entries.insert(1, ("duration", f"{duration(seconds)} of work in all"))
    for key in ("images", "weights"):
        hashes = dict.fromkeys(str(s["provenance"].get(key, UNKNOWN)) for _, s in done)
        text = f"`{next(iter(hashes))}`" if len(hashes) == 1 else "each run has its own"
        entries.append((f"{key}, SHA-256", text))
    return entries


def _title(done: Done, pooled: Sequence[Pooled]) -> str:
    paths = list(done[0][0].values)
    if not pooled:
        return "Accuracy over " + " and ".join(paths)
    over = " and ".join(pooled[0].values)
    return f"Accuracy{over and f' over {over}'}, pooled over {_seeds(done)}"


def _seeds(done: Done) -> str:
    return " and ".join(path for path in done[0][0].values if is_seed(path))


def _about(done: Done, total: int) -> str:
    images, draws = (_range(values) for values in _sizes(done))
    return (
        f"{len(done)} of {total} combinations; {images} images and {draws} held-out draws each. "
        "Accuracy is per draw; in brackets, 95 % confidence intervals over images and draws."
    )


def _about_figure(points: Sequence[Point], names: Sequence[str], attacks: Sequence[str]) -> str:
    """Say how many attacks the figure leaves out for lack of space."""
    hidden = len(legible(points, names, attacks, len(names))) - len(legible(points, names, attacks))
    if not (hidden and over_numbers(points)):
        return ""
    return f" The figure leaves out {hidden} of the attacks, those with the highest accuracy."


def _about_pooled(done: Done, pooled: Sequence[Pooled]) -> str:
    """Explain how the table was pooled, and which variation its intervals do not include."""
    paths = [path for path in done[0][0].values if is_seed(path)]
    models = [path for path in paths if not path.startswith(("evaluation.", "data."))]
    images = _range([row.images for row in pooled])
    text = (
        f"Pooled over {_seeds(done)}: {_range([row.runs for row in pooled])} runs and {images} "
        "distinct images in each row. An image in several runs counts once, with the mean of its "
        "draws, and a draw of the same noise counts once, so the intervals are over distinct "
        "images and their draws."
    )
    if models:
        text += (
            f" They do not include the variation between other values of {' and '.join(models)}, "
            "which would change all images together."
        )
    return text


def _pooled_table(pooled: Sequence[Pooled], names: Sequence[str]) -> Table:
    rows = []
    for row in pooled:
        shares = [share_of(row.shares[n]) if n in row.shares else "-" for n in names]
        rows.append([*row.values.values(), *shares, str(row.runs), str(row.images)])
    return Table([*pooled[0].values, *names, "runs", "distinct images"], rows)


def _lines_below(
    done: Done, convergences: Sequence[Convergence], doubts: Sequence[Doubt]
) -> list[str]:
    """Return the notes below the table: verdicts that raise no doubt, and the doubts of single runs."""
    lines = [
        describe(convergence)
        for convergence in convergences
        if not any(describe(convergence) in d.why for d in doubts)
    ]
    single = Counter(doubt["name"] for _, summary in done for doubt in summary["doubts"])
    if single:
        names = ", ".join(f"{name} ({count})" for name, count in single.most_common())
        lines.append(f"doubts about single runs (each run's report explains them): {names}")
    return lines


def sweep_table(done: Done) -> Table:
    """Tabulate the finished cells, a row each."""
    names = _conditions(done)
    heads = [*done[0][0].values, *names, "network calls an image", "seconds an image"]
    rows = []
    for cell, summary in done:
        cost, n = summary["cost"], summary["n"]
        calls, accuracies = (cost["nfe_forward"] + cost["nfe_vjp"]) / n, _shares(summary)
        *values, last = cell.values.values()
        last += f" ({n} of {summary['requested']} images)" if n < summary["requested"] else ""
        shares = [share_of(accuracies[name]) if name in accuracies else "-" for name in names]
        rows.append([*values, last, *shares, f"{calls:.0f}", f"{cost['seconds'] / n:.2f}"])
    return Table(heads, rows)


def _about_columns(done: Done) -> str:
    """Explain the columns of the attacks, if there are several."""
    text = ""
    if len(_conditions(done)) > 2 and any(summary["attacks"] for _, summary in done):
        text = " For robust, the attack that did best on its own draws counts for each image"
        if any(summary.get("known_noise") for _, summary in done):
            text += "; attackers who know some of the noise are listed after it and do not count"
    return text and text + "."


def _shares(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Return accuracy per draw by condition, in the order of a run's own report."""
    shares = {"clean": summary["clean"]["per_draw"]}
    shares |= {row["name"]: row["robust"]["per_draw"] for row in summary["attacks"]}
    if summary["attacks"]:
        shares["robust"] = summary["robust"]["per_draw"]
    for key in ("unbounded", "known_noise"):
        shares |= {row["name"]: row["robust"]["per_draw"] for row in summary.get(key, [])}
    if "corrupted" in summary:
        shares["corrupted"] = summary["corrupted"]["per_draw"]
    return shares


def _conditions(done: Done) -> list[str]:
    """List the conditions of all runs; if each run has just one attack, only clean and robust."""
    names_by_run = [list(_shares(summary)) for _, summary in done]
    if all(len(names) <= 3 and ("robust" in names[2:]) for names in names_by_run):
        return ["clean", "robust"]
    return list(dict.fromkeys(name for names in names_by_run for name in names))


def _attacks(done: Done) -> list[str]:
    """List the attacks of all runs from which `robust` is chosen."""
    return list(dict.fromkeys(row["name"] for _, s in done for row in s["attacks"]))


def _sizes(done: Done) -> tuple[list[int], list[int]]:
    """Return the number of images requested of each run, and the number of draws."""
    return [s["requested"] for _, s in done], [s["clean"]["k"] for _, s in done]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
