"""The report of a sweep: a table of its cells, one that pools them over seeds, and the figure."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unfool.evaluation import sweep as sweeps
from unfool.report.document import Part, sheet
from unfool.report.rows import cell as share_of
from unfool.report.sweep_figure import Point, figure, legible, over_numbers
from unfool.report.tables import markdown, quote
from unfool.results.convergence import Convergence, describe, sweep_doubts, verdicts
from unfool.results.doubt import Doubt
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.seed_pooling import Pooled, is_seed, pool
from unfool.results.sweep_cell import Cell
from unfool.runtime.files import write_bytes

VERSION = 1
Done = Sequence[tuple[Cell, Summary]]


def write_sweep(folder: Path, done: Done, of: int, command: str, failed: Sequence[str] = ()) -> str:
    """Write `sweep.json`, `sweep.md`, `sweep.html` and `sweep.png` into the folder of a sweep.

    Args:
        folder: The sweep's folder.
        done: The cells that are done, with the summaries of their runs.
        of: How many cells there are in all.
        command: How to make it again.
        failed: Of each cell that cannot be run, its values and the reason.

    Returns:
        The tables, in Markdown, and the verdicts below them.
    """
    runs = [Run.open(sweeps.place(folder, cell)) for cell, _ in done]
    found = verdicts(
        [(cell, run, summary) for (cell, summary), run in zip(done, runs, strict=True)]
    )
    doubts = list(sweep_doubts(found))
    lines = [*(f"not run: {each}" for each in failed), *_lines_below(done, found, doubts)]
    pooled = pool([(cell, run) for (cell, _), run in zip(done, runs, strict=True)])
    pooled = pooled if len(pooled) < len(done) else []  # else no two differ in seeds alone
    points = [Point(each.values, each.shares) for each in pooled]
    points = points or [Point(cell.values, _shares(summary)) for cell, summary in done]
    names, attacks = _conditions(done), _attacks(done)
    drawn, title = figure(points, names, attacks), _title(done, pooled)
    about = _about(done, of) + _about_columns(done) + _about_figure(points, names, attacks)
    heads, rows = sweep_table(done)
    text, page = [markdown(heads, rows)], [_part(heads, rows)]
    if pooled:
        heads, rows = _pooled_table(pooled, names)
        note = _about_pooled(done, pooled)
        text += [markdown(heads, rows), quote(note)]
        page = [_part(heads, rows), Part(note), *page]
    text.append("\n".join(f"- {quote(line)}" for line in lines))
    said = "\n\n".join(filter(None, text))
    parts = [f"# {title}", about, said, "![accuracy](sweep.png)", f"Made by `{command}`"]
    write_bytes(folder / "sweep.png", drawn)
    write_bytes(folder / "sweep.md", ("\n\n".join(parts) + "\n").encode())
    page = [Part(about), Part(title, drawn), *page, *map(Part, lines), Part(command, code=True)]
    write_bytes(folder / "sweep.html", sheet(title, page).encode())
    cells = [{"values": cell.values, "summary": summary} for cell, summary in done]
    whole = {"version": VERSION, "of": of, "command": command, "cells": cells}
    whole |= {"failed": list(failed)}
    whole |= {"pooled": [asdict(each) for each in pooled]}
    whole |= {"verdicts": [asdict(each) | {"change": each.change._asdict()} for each in found]}
    whole |= {"doubts": [asdict(doubt) for doubt in doubts]}
    write_bytes(folder / "sweep.json", (json.dumps(whole, indent=1) + "\n").encode())
    return said


def _title(done: Done, pooled: Sequence[Pooled]) -> str:
    paths = list(done[0][0].values)
    if not pooled:
        return "Accuracy over " + " and ".join(paths)
    over = " and ".join(pooled[0].values)
    return f"Accuracy{over and f' over {over}'}, pooled over {_seeds(done)}"


def _seeds(done: Done) -> str:
    return " and ".join(path for path in done[0][0].values if is_seed(path))


def _about(done: Done, of: int) -> str:
    images, draws = (_range(values) for values in _sizes(done))
    return (
        f"{len(done)} of {of} combinations; {images} images and {draws} held-out draws each. "
        "Accuracy is per draw, in brackets 95 % intervals over images and draws."
    )


def _about_figure(points: Sequence[Point], names: Sequence[str], attacks: Sequence[str]) -> str:
    """What the figure leaves out for want of room."""
    left = len(legible(points, names, attacks, len(names))) - len(legible(points, names, attacks))
    if not (left and over_numbers(points)):
        return ""
    return f" The figure leaves out {left} of the attacks, those of the highest accuracy."


def _about_pooled(done: Done, pooled: Sequence[Pooled]) -> str:
    """How the pooled table came about, and what its intervals do not hold."""
    paths = [path for path in done[0][0].values if is_seed(path)]
    models = [path for path in paths if not path.startswith(("evaluation.", "data."))]
    images = _range([each.images for each in pooled])
    said = (
        f"Pooled over {_seeds(done)}: {_range([each.runs for each in pooled])} runs and {images} "
        "distinct images in each row. An image that several runs have counts once, with the mean of "
        "its draws, and a draw of the same noise once; so the intervals are over distinct images "
        "and their draws."
    )
    if models:
        said += (
            f" They take these values of {' and '.join(models)} as they are: what another would "
            "change of all images together is not in them."
        )
    return said


def _pooled_table(
    pooled: Sequence[Pooled], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    rows = []
    for each in pooled:
        shares = [share_of(each.shares[n]) if n in each.shares else "-" for n in names]
        rows.append([*each.values.values(), *shares, str(each.runs), str(each.images)])
    return [*pooled[0].values, *names, "runs", "distinct images"], rows


def _lines_below(done: Done, found: Sequence[Convergence], doubts: Sequence[Doubt]) -> list[str]:
    """What is told below the table: the doubts, the verdicts without one, the doubts of single runs."""
    lines = [f"{doubt.severity}: {doubt.name}: {doubt.why}" for doubt in doubts]
    lines += [describe(each) for each in found if not any(describe(each) in d.why for d in doubts)]
    single = Counter(doubt["name"] for _, summary in done for doubt in summary["doubts"])
    if single:
        names = ", ".join(f"{name} ({count})" for name, count in single.most_common())
        lines.append(f"doubts of the {len(done)} runs, each told in its own report: {names}")
    return lines


def sweep_table(done: Done) -> tuple[list[str], list[list[str]]]:
    """The cells that are done: headings, and a line for each."""
    names = _conditions(done)
    heads = [*done[0][0].values, *names, "network calls an image", "seconds an image"]
    rows = []
    for cell, summary in done:
        cost, n = summary["cost"], summary["n"]
        calls, found = (cost["nfe_forward"] + cost["nfe_vjp"]) / n, _shares(summary)
        *values, last = cell.values.values()
        last += f" ({n} of {summary['of']} images)" if n < summary["of"] else ""
        shares = [share_of(found[name]) if name in found else "-" for name in names]
        rows.append([*values, last, *shares, f"{calls:.0f}", f"{cost['seconds'] / n:.2f}"])
    return heads, rows


def _about_columns(done: Done) -> str:
    """What the columns of attacks are, where there are several."""
    said = ""
    if len(_conditions(done)) > 2 and any(summary["attacks"] for _, summary in done):
        said = " In robust counts, of each image, the attack that did best on draws of its own"
        if any(summary.get("known_noise") for _, summary in done):
            said += "; attackers who know some of the noise stand after it and do not count"
    return said and said + "."


def _shares(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Accuracy per draw by condition, in the order of a run's own report."""
    found = {"clean": summary["clean"]["per_draw"]}
    found |= {row["name"]: row["robust"]["per_draw"] for row in summary["attacks"]}
    if summary["attacks"]:
        found["robust"] = summary["robust"]["per_draw"]
    for key in ("unbounded", "known_noise"):
        found |= {row["name"]: row["robust"]["per_draw"] for row in summary.get(key, [])}
    if "corrupted" in summary:
        found["corrupted"] = summary["corrupted"]["per_draw"]
    return found


def _conditions(done: Done) -> list[str]:
    """The conditions of all the runs; where each has one attack alone, `robust` stands for it."""
    found = [list(_shares(summary)) for _, summary in done]
    if all(len(names) <= 3 and ("robust" in names[2:]) for names in found):
        return ["clean", "robust"]
    return list(dict.fromkeys(name for names in found for name in names))


def _attacks(done: Done) -> list[str]:
    """The attacks, of all the runs, that `robust` is chosen from."""
    return list(dict.fromkeys(row["name"] for _, s in done for row in s["attacks"]))


def _sizes(done: Done) -> tuple[list[int], list[int]]:
    """How many images were asked of each run, and how many draws."""
    return [s["of"] for _, s in done], [s["clean"]["k"] for _, s in done]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _part(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Part:
    """The table for a page; of a wide one, intervals stand below their numbers."""
    if len(heads) < 7:
        return Part(heads=heads, rows=rows)
    stacked = [[text.replace(" % [", " %\n[") for text in row] for row in rows]
    return Part(heads=[head.replace(" an image", "\nan image") for head in heads], rows=stacked)
