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
MARKERS = "osvD^x"
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
    about = (
        f"{len(done)} of {of} combinations; {done[0][1]['n']} images and "
        f"{done[0][1]['clean']['k']} held-out draws each. Accuracy is per draw, in brackets 95 % "
        "intervals over images and draws."
    )
    numbers = None not in [_first(cell) for cell, _ in done]
    drawn = _over_numbers(done) if numbers else _by_name(done)
    table = markdown(heads, rows)
    write_bytes(folder / "sweep.png", drawn)
    below = "\n".join(f"- {quote(line)}" for line in lines)
    parts = [f"# {title}", about, table, below, "![accuracy](sweep.png)", f"Made by `{command}`"]
    write_bytes(folder / "sweep.md", ("\n\n".join(filter(None, parts)) + "\n").encode())
    page = [Part(about), Part(title, drawn), Part(heads=heads, rows=rows)]
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
    attacked = bool(done[0][1]["attacks"])
    heads = [*done[0][0].values, "clean", *(["robust"] if attacked else [])]
    heads += ["network calls an image", "seconds an image"]
    rows = []
    for cell, summary in done:
        cost, n = summary["cost"], summary["n"]
        calls = (cost["nfe_forward"] + cost["nfe_vjp"]) / n
        shares = [summary["clean"]["mean"]] + ([summary["robust"]["mean"]] if attacked else [])
        row = [*cell.values.values(), *map(share_of, shares)]
        rows.append([*row, f"{calls:.0f}", f"{cost['seconds'] / n:.2f}"])
    return heads, rows


def _by_name(done: Done) -> bytes:
    """A row for each combination, clean and robust."""
    figure = Figure(figsize=(WIDTH, 1 + 0.34 * len(done)), layout="constrained")
    axes = figure.subplots()
    kinds: list[tuple[str, float, dict[str, Any]]] = [
        ("clean", -0.14, {"marker": "o", "color": BLUE, "markersize": 6})
    ]
    if done[0][1]["attacks"]:
        style = {"marker": "v", "color": RUST, "markersize": 6.5, "markerfacecolor": "white"}
        kinds.append(("robust", 0.14, style))
    for key, shift, style in kinds:
        for place, (_, summary) in enumerate(done):
            interval(axes, summary[key]["mean"], place + shift, style, None if place else key)
    names = [", ".join(_named(path, value) for path, value in c.values.items()) for c, _ in done]
    percent_axis(axes, names, "accuracy per draw, %")
    legend(figure, axes, len(kinds))
    return png(figure)


def _over_numbers(done: Done) -> bytes:
    """Over the values of the first path, a line for each of the second, a panel for the others."""
    first, *rest = done[0][0].values
    second, others = (rest[0] if rest else None), rest[1:]
    clean = {summary["clean"]["accuracy"] for _, summary in done}
    readings = ["clean", "robust"] if done[0][1]["attacks"] else ["clean"]
    if len(readings) == 2 and len(clean) == 1:  # what is swept is the attack's: a line will do
        readings = ["robust"]
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
            if readings == ["robust"]:
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
        mine.sort(key=lambda pair: _first(pair[0]) or 0.0)
        shift = apart * (i - (len(kinds) - 1) / 2)
        x = [(_first(cell) or 0.0) + shift for cell, _ in mine]
        shares = [summary[reading]["mean"] for _, summary in mine]
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
