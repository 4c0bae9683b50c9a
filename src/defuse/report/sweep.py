"""The report of a sweep: a table of its cells, and accuracy as lines over what was swept."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.evaluation import sweep as sweeps
from defuse.evaluation.converged import Verdict, sweep_doubts, told, verdicts
from defuse.evaluation.doubt import Doubt
from defuse.evaluation.record import Run
from defuse.evaluation.sweep import Cell
from defuse.files import write_bytes
from defuse.report.cells import cell as share_of
from defuse.report.drawing import (
    BLUE,
    GREY,
    RUST,
    TEAL,
    WIDTH,
    interval,
    legend,
    percent_axis,
    png,
    tidy,
)
from defuse.report.sheet import Part, sheet
from defuse.report.tables import markdown, quote

VERSION = 1
COLORS = (BLUE, RUST, TEAL, "#8a6d1f", "#6b4a8a", GREY)
MARKERS = "ovsD^PX"  # one more than colors, so that pairs of both do not soon come again
FIXED = {"clean": (BLUE, "o"), "robust": (RUST, "v")}
Done = Sequence[tuple[Cell, Mapping[str, Any]]]


def write_sweep(folder: Path, done: Done, of: int, command: str) -> str:
    """Write `sweep.json`, `sweep.md`, `sweep.html` and `sweep.png` into the folder of a sweep.

    Args:
        folder: The sweep's folder.
        done: The cells that are done, with the summaries of their runs.
        of: How many cells there are in all.
        command: How to make it again.

    Returns:
        The table, in Markdown, and the verdicts below it.
    """
    heads, rows = _table(done)
    found = verdicts(
        [(cell, Run.open(sweeps.place(folder, cell)), summary) for cell, summary in done]
    )
    doubts = list(sweep_doubts(found))
    lines = _lines_below(done, found, doubts)
    title = "Accuracy over " + " and ".join(done[0][0].values)
    images, draws = (_range(values) for values in _sizes(done))
    about = (
        f"{len(done)} of {of} combinations; {images} images and {draws} held-out draws each. "
        "Accuracy is per draw, in brackets 95 % intervals over images and draws."
    )
    about += _about_columns(done)
    numbers = None not in [_first(cell) for cell, _ in done]
    drawn = _over_numbers(done) if numbers else _by_name(done)
    table = markdown(heads, rows)
    write_bytes(folder / "sweep.png", drawn)
    below = "\n".join(f"- {quote(line)}" for line in lines)
    parts = [f"# {title}", about, table, below, "![accuracy](sweep.png)", f"Made by `{command}`"]
    write_bytes(folder / "sweep.md", ("\n\n".join(filter(None, parts)) + "\n").encode())
    page = [Part(about), Part(title, drawn), _part(heads, rows)]
    page += [*map(Part, lines), Part(command, code=True)]
    write_bytes(folder / "sweep.html", sheet(title, page).encode())
    cells = [{"values": cell.values, "summary": summary} for cell, summary in done]
    whole = {"version": VERSION, "of": of, "command": command, "cells": cells}
    whole |= {"verdicts": [asdict(each) | {"change": each.change._asdict()} for each in found]}
    whole |= {"doubts": [asdict(doubt) for doubt in doubts]}
    write_bytes(folder / "sweep.json", (json.dumps(whole, indent=1) + "\n").encode())
    return f"{table}\n\n{below}" if below else table


def _lines_below(done: Done, found: Sequence[Verdict], doubts: Sequence[Doubt]) -> list[str]:
    """What is told below the table: the doubts, the verdicts without one, the doubts of single runs."""
    lines = [f"{doubt.severity}: {doubt.name}: {doubt.why}" for doubt in doubts]
    lines += [told(each) for each in found if not any(told(each) in d.why for d in doubts)]
    single = Counter(doubt["name"] for _, summary in done for doubt in summary["doubts"])
    if single:
        names = ", ".join(f"{name} ({count})" for name, count in single.most_common())
        lines.append(f"doubts of the {len(done)} runs, each told in its own report: {names}")
    return lines


def _table(done: Done) -> tuple[list[str], list[list[str]]]:
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
        if any(summary.get("knowing") for _, summary in done):
            said += "; attackers who know some of the noise stand after it and do not count"
    return said and said + "."


def _shares(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Accuracy per draw by condition, in the order of a run's own report."""
    found = {"clean": summary["clean"]["mean"]}
    found |= {row["name"]: row["robust"]["mean"] for row in summary["attacks"]}
    if summary["attacks"]:
        found["robust"] = summary["robust"]["mean"]
    for key in ("beyond", "knowing"):
        found |= {row["name"]: row["robust"]["mean"] for row in summary.get(key, [])}
    if "corrupted" in summary:
        found["corrupted"] = summary["corrupted"]["mean"]
    return found


def _conditions(done: Done) -> list[str]:
    """The conditions of all the runs; where each has one attack alone, `robust` stands for it."""
    found = [list(_shares(summary)) for _, summary in done]
    if all(len(names) <= 3 and ("robust" in names[2:]) for names in found):
        return ["clean", "robust"]
    return list(dict.fromkeys(name for names in found for name in names))


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


def _by_name(done: Done) -> bytes:
    """A row for each combination: every condition of the table."""
    names = _conditions(done)
    step = 0.28 if len(names) == 2 else 0.7 / len(names)
    height = 0.34 if len(names) == 2 else 0.12 * len(names) + 0.12
    figure = Figure(figsize=(WIDTH, 1.2 + height * len(done)), layout="constrained")
    axes = figure.subplots()
    others = zip(COLORS[2:] * len(names), MARKERS[2:] * len(names), strict=False)
    for i, name in enumerate(names):
        color, marker = FIXED[name] if name in FIXED else next(others)
        style = {"color": color, "marker": marker, "markersize": 5.5}
        style |= {} if name == "clean" else {"markerfacecolor": "white"}
        told, shift = name, step * (i - (len(names) - 1) / 2)
        for place, (_, summary) in enumerate(done):
            if (share := _shares(summary).get(name)) is not None:
                interval(axes, share, place + shift, style, told)
                told = None
    rows = [", ".join(_named(path, value) for path, value in c.values.items()) for c, _ in done]
    percent_axis(axes, rows, "accuracy per draw, %")
    legend(figure, axes, min(len(names), 5))
    return png(figure)


def _over_numbers(done: Done) -> bytes:
    """Over the values of the first path, a line for each of the second, a panel for the others."""
    first, *rest = done[0][0].values
    second, others = (rest[0] if rest else None), rest[1:]
    clean = {summary["clean"]["accuracy"] for _, summary in done}
    readings = _readings(done)
    line = len(readings) > 1 and len(clean) == 1  # what is swept is the attack's: a line will do
    if line:
        readings.remove("clean")
    panels = list(dict.fromkeys(_panel(cell, others) for cell, _ in done))
    beside = len(panels) == 1  # then the readings stand side by side
    rows, columns = (1, len(readings)) if beside else (len(readings), len(panels))
    figure = Figure(
        figsize=(3.9 * columns + (0.4 if rows * columns > 1 else 1.6), 3.2 * rows + 0.6),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    values = [_first(cell) or 0.0 for cell, _ in done]
    apart = 0.006 * (max(values) - min(values))  # lest intervals hide each other
    for row, reading in enumerate(readings):
        for column, panel in enumerate(panels):
            axes: Axes = grid[0, row] if beside else grid[row, column]
            here = [(cell, s) for cell, s in done if _panel(cell, others) == panel]
            _lines(axes, here, second, reading, apart)
            if line:
                level = 100 * next(iter(clean))
                axes.axhline(level, color=GREY, linestyle=":", linewidth=1.4)
                axes.annotate(
                    "clean", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                    fontsize=9, color=GREY,
                )  # fmt: skip
            axes.set_title(panel, fontsize=10)
            if beside or row == len(readings) - 1:
                axes.set_xlabel(first, fontsize=9)
            if beside or column == 0:
                axes.set_ylabel(f"{reading} accuracy, %", fontsize=9)
    if second:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        told = {"loc": "outside upper center", "ncols": 2 * columns + 1, "frameon": False}
        figure.legend(handles, labels, fontsize=9, title=second, title_fontsize=9, **told)
    return png(figure)


def _readings(done: Done) -> list[str]:
    """What is drawn of the conditions: all but the attacks that `robust` is chosen from, if few."""
    attacks = {row["name"] for _, summary in done for row in summary["attacks"]}
    found = [name for name in _conditions(done) if name not in attacks]
    return found if len(found) <= 3 else [name for name in found if name in ("clean", "robust")]


def _lines(
    axes: Axes,
    done: Done,
    second: str | None,
    reading: str,
    apart: float,
) -> None:
    kinds = list(dict.fromkeys(cell.values[second] if second else "" for cell, _ in done))
    for i, kind in enumerate(kinds):
        mine = [(c, s) for c, s in done if not second or c.values[second] == kind]
        mine = [(c, s) for c, s in mine if reading in _shares(s)]
        mine.sort(key=lambda pair: _first(pair[0]) or 0.0)
        shift = apart * (i - (len(kinds) - 1) / 2)
        x = [(_first(cell) or 0.0) + shift for cell, _ in mine]
        shares = [_shares(summary)[reading] for _, summary in mine]
        y, low, high = ([100 * s[key] for s in shares] for key in ("accuracy", "low", "high"))
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        axes.plot(x, y, label=kind, color=color, marker=marker, markersize=5, linewidth=1.4)
        axes.vlines(x, low, high, color=color, linewidth=1)
    axes.grid(color="#e2e2e0", linewidth=0.7)
    tidy(axes)


def _number(name: str) -> float | None:
    """The number that a value is, such as 0.1 or 8/255; None if it is a word."""
    try:
        return float(Fraction(name))
    except ValueError:
        return None


def _first(cell: Cell) -> float | None:
    return _number(next(iter(cell.values.values())))


def _panel(cell: Cell, others: Sequence[str]) -> str:
    return ", ".join(_named(path, cell.values[path]) for path in others)


def _named(path: str, value: str) -> str:
    return f"{path} {value}" if _number(value) is not None else value
