"""The report of a comparison: a table of paired differences, a figure, and JUnit for a CI system."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfool.evaluation.sweep import name_of
from unfool.report.document import Part, sheet
from unfool.report.rows import cell, percent
from unfool.report.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    WIDTH,
    blank,
    interval,
    legend,
    percent_axis,
    png,
    tidy,
)
from unfool.report.tables import SEVERITY, markdown, quote
from unfool.results.compare import Comparison, Gate, Paired
from unfool.results.report_json import DoubtEntry
from unfool.runtime.files import write_bytes
from unfool.statistics import Mean

VERSION = 1
HEADS = ("condition", "A", "B", "B - A, points", "only A right", "only B right", "p")
ABOUT = (
    "A, B: how often one answer is right, with 95 % intervals. B - A: the paired difference, with a "
    "95 % interval by bootstrap over images. Only A, only B: images on which the majority of {draws} "
    "draws is right in one run alone; p: the exact test of McNemar of these two counts."
)
CAPTION = "Accuracy per draw of A and B, and the paired differences, with 95 % intervals."
DASHED = " Dashed: the bounds."


def print_comparison(
    found: Comparison, kept: Sequence[Gate] = (), console: Console | None = None
) -> None:
    """Print a comparison, and whether its gates are kept.

    Args:
        found: What `results.compare.compare` returned.
        kept: What `results.compare.gates` returned.
        console: Where to; the standard output by default.
    """
    console = console or Console(highlight=False)
    for line in opening(found):
        console.print(Text(line), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for row, texts in zip(found.rows, lines(found), strict=True):
        style = "bold" if row.name == "robust" else ""
        if console.width < 120:
            texts = [text.replace(" [", "\n[") for text in texts]
        table.add_row(*(Text(text, style) for text in texts))
    console.print(table)
    console.print(Text(f"  {ABOUT.format(draws=found.draws)}", style="dim"))
    for run, doubt in _doubts(found):
        mark = Text(f"{doubt['severity']} doubt of {run} ", SEVERITY.get(doubt["severity"], ""))
        console.print(mark + Text(f"{doubt['name']}: {doubt['why']}", style="default"))
    for gate in kept:
        console.print(Text(_marked(gate), "" if gate.ok else "bold red"))


def write_comparison(folder: Path, found: Comparison, kept: Sequence[Gate], command: str) -> None:
    """Write `compare.json`, `compare.md`, `compare.html` and `compare.png` into a folder.

    Args:
        folder: Where to.
        found: What `results.compare.compare` returned.
        kept: What `results.compare.gates` returned.
        command: How to make it again.

    Raises:
        OSError: The folder cannot be written.
    """
    rows, drawn = lines(found), figure(found.rows, kept)
    first, about = opening(found), ABOUT.format(draws=found.draws)
    below = [_marked(gate) for gate in kept]
    below += [
        f"{d['severity']} doubt of {run}: {d['name']}: {d['why']}" for run, d in _doubts(found)
    ]
    title = "Two runs compared"
    parts = [f"# {title}", *map(quote, first), markdown(HEADS, rows), about]
    parts += ["\n".join(f"- {quote(line)}" for line in below)] if below else []
    parts += [f"![accuracy](compare.png)\n\n{CAPTION}{DASHED * bool(kept)}"]
    parts += [f"Made by `{command}`"]
    write_bytes(folder / "compare.png", drawn)
    write_bytes(folder / "compare.md", ("\n\n".join(parts) + "\n").encode())
    page = [*map(Part, first), Part(heads=HEADS, rows=rows), Part(about), *map(Part, below)]
    page += [Part(CAPTION + DASHED * bool(kept), drawn)]
    page += [Part(command, code=True)]
    write_bytes(folder / "compare.html", sheet(title, page).encode())
    whole: dict[str, Any] = {"version": VERSION, "command": command} | asdict(found)
    whole["rows"] = [named(row) for row in found.rows]
    whole["gates"] = [
        asdict(gate) | {"found": gate.found._asdict(), "ok": gate.ok, "sure": gate.sure}
        for gate in kept
    ]
    write_bytes(folder / "compare.json", (json.dumps(whole, indent=1) + "\n").encode())


def junit(kept: Sequence[Gate]) -> bytes:
    """The gates as an XML file that CI systems read: a test case each.

    Raises:
        ValueError: There are no gates.
    """
    if not kept:
        raise ValueError("--junit tells of gates: add --min-robust or --max-drop")
    failed = str(sum(not gate.ok for gate in kept))
    count = {"tests": str(len(kept)), "failures": failed, "errors": "0"}
    root = ElementTree.Element("testsuites", count)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "unfool compare", **count})
    for gate in kept:
        name = f"{gate.name} {gate.bound:g} ({gate.of})"
        told_of = {"classname": "unfool.compare", "name": name}
        case = ElementTree.SubElement(suite, "testcase", told_of)
        where = "failure" if not gate.ok else "system-out"
        beside = {"type": gate.name, "message": describe_gate(gate)} if not gate.ok else {}
        ElementTree.SubElement(case, where, beside).text = describe_gate(gate)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def describe_gate(gate: Gate) -> str:
    """A gate and what became of it, in one sentence."""
    if gate.name == "min-robust":
        share = {"accuracy": gate.found.mean, "low": gate.found.low, "high": gate.found.high}
        said = f"robust accuracy of B is {cell(share)}, at least {percent(gate.bound)} was asked"
    else:
        said = (
            f"{gate.of} accuracy: A - B is {_points(gate.found)} points, at most "
            f"{100 * gate.bound:.1f} was asked"
        )
    return said + ("" if gate.sure else "; the interval holds both sides of the bound")


def figure(rows: Sequence[Paired], kept: Sequence[Gate] = ()) -> bytes:
    """Accuracy of both runs, the paired differences beside it, and the bounds; a PNG file."""
    drawn = blank(WIDTH + 1.2, 1.25 + 0.42 * len(rows))
    left, right = drawn.subplots(1, 2, sharey=True)
    styles: dict[str, dict[str, Any]] = {
        "A": {"marker": "o", "color": GRAY, "markersize": 6},
        "B": {"marker": "s", "color": BLUE, "markersize": 5.5, "markerfacecolor": "white"},
    }
    for (name, style), shift in zip(styles.items(), (-0.14, 0.14), strict=True):
        for place, row in enumerate(rows):
            share = (row.a if name == "A" else row.b)._asdict()
            interval(left, share, place + shift, style, None if place else name)
    style = {"marker": "D", "color": INK, "markersize": 5}
    for place, row in enumerate(rows):
        mean, low, high = row.change
        interval(right, {"accuracy": mean, "low": low, "high": high}, place, style, None)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    places = {row.name: place for place, row in enumerate(rows)}
    for gate in kept:
        least = gate.name == "min-robust"
        axes, bound = (left, 100 * gate.bound) if least else (right, -100 * gate.bound)
        ends = [places[gate.of] - 0.4, places[gate.of] + 0.4]
        axes.plot([bound, bound], ends, color=RUST, linewidth=1.4, linestyle="--", zorder=2)
    most = max(abs(bound) for row in rows for bound in row.change)
    most = max(most, *(gate.bound for gate in kept if gate.name == "max-drop"), 0.0)
    right.set_xlim(-108 * most, 108 * most)
    right.set_xlabel("B - A, percentage points", fontsize=9, color=INK)
    right.grid(axis="x", color="#e2e2e0", linewidth=0.7)
    tidy(right)
    percent_axis(left, [_title(row) for row in rows], "accuracy per draw, %")
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.name == "robust" else "normal")
    for place in range(1, len(rows), 2):
        for axes in (left, right):
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f2", zorder=0, linewidth=0)
    legend(drawn, left, 2)
    return png(drawn)


def opening(found: Comparison) -> list[str]:
    """What is compared, what differs, and the number that counts."""
    row = {row.name: row for row in found.rows}
    name = "robust" if "robust" in row else "clean"
    change = _points(row[name].change)
    images = f"{found.n} images" if found.n == found.of else f"{found.n} of {found.of} images"
    where = "; ".join(
        f"{path} {name_of(a)} in A, {name_of(b)} in B" for path, (a, b) in found.differs.items()
    )
    return [
        f"From A to B, {name} accuracy per draw changes by {change} points.",
        f"A: {found.folders[0]}; B: {found.folders[1]}; {images}, {found.draws} held-out draws each.",
        f"What differs: {where}."
        if where
        else "Both were asked the same, and made by the same versions.",
    ]


def _marked(gate: Gate) -> str:
    return f"{'pass' if gate.ok else 'FAIL'}: {gate.name}: {describe_gate(gate)}"


def lines(found: Comparison) -> list[list[str]]:
    """A line of the table (`HEADS`) for each condition."""
    return [
        [
            _title(row),
            cell(row.a._asdict()),
            cell(row.b._asdict()),
            _points(row.change),
            str(row.only_a),
            str(row.only_b),
            f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001",
        ]
        for row in found.rows
    ]


def _title(row: Paired) -> str:
    return "random noise" if row.name == "random" else row.name


def named(row: Paired) -> dict[str, Any]:
    """A condition as JSON holds it."""
    shares = {name: getattr(row, name)._asdict() for name in ("a", "b", "change")}
    return asdict(row) | shares


def _doubts(found: Comparison) -> list[tuple[str, DoubtEntry]]:
    return [(run, d) for run, doubts in zip("AB", found.doubts, strict=True) for d in doubts]


def _points(change: Mean) -> str:
    """A difference of shares in points: `+3.1 [-0.4, +6.6]`."""
    mean, low, high = (round(100 * value, 1) + 0.0 for value in change)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
