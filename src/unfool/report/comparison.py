"""The report of a comparison: a table of paired differences, a figure, and JUnit XML for CI systems."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unfool.evaluation.sweep import name_of
from unfool.report.document import (
    Block,
    Code,
    Document,
    Doubts,
    Heading,
    Items,
    Paragraph,
    Style,
    Table,
    Tile,
    Tiles,
)
from unfool.report.figures.comparison import paired_accuracy, title_of
from unfool.report.formatting import cell, interval, points
from unfool.report.image_table import paired_table
from unfool.report.provenance import both_records
from unfool.report.write import write_document
from unfool.results.compare import Comparison, Paired
from unfool.results.gates import Gate
from unfool.results.report_json import share_entry
from unfool.statistics import Mean, percent

VERSION = 1
HEADS = ("condition", "A", "B", "B - A, points", "only A right", "only B right", "p")
ABOUT = (
    "A, B: how often one answer is right, with 95 % confidence intervals. B - A: the paired "
    "difference, with a 95 % confidence interval{how}. Only A, only B: the "
    "number of images that the majority of {draws} draws gets right in one run only; p: McNemar's "
    "exact test of these two counts."
)

AGREE = (
    "The runs agree on every image and draw {where}, so the difference there is exactly 0. Its "
    "interval says how large a difference could go unnoticed with so few images and draws."
)
IMAGE_BY_IMAGE = (
    "How many of the held-out answers to each image are right in A and in B. In the HTML report, choose "
    "what to show, or click a heading to sort by the difference."
)


def brief(comparison: Comparison, gates: Sequence[Gate] = ()) -> Document:
    """Make the short report for a terminal or notebook: differences, doubts, and bounds.

    Args:
        comparison: What `results.compare.compare` returned.
        gates: What `results.gates.gates` returned.
    """
    title, *opening = _opening(comparison)
    strong: dict[int, Style] = {
        i: "strong" for i, row in enumerate(comparison.rows) if row.name == "robust"
    }
    how = "" if all(row.agree for row in comparison.rows) else " by bootstrap over images"
    blocks: list[Block] = [
        *map(Paragraph, opening),
        Table(HEADS, _lines(comparison), strong),
        Paragraph(ABOUT.format(draws=comparison.draws, how=how), "note"),
        *_agreement(comparison),
    ]
    doubts = [
        {"name": f"{doubt['name']} (run {run})", "severity": doubt["severity"], "why": doubt["why"]}
        for run, entries in zip("AB", comparison.doubts, strict=True)
        for doubt in entries
    ]
    blocks += [Doubts(doubts)] if doubts else []
    blocks += [_bound(gate) for gate in gates]
    return Document(title, blocks)


def full(comparison: Comparison, gates: Sequence[Gate], command: str) -> Document:
    """Make the full report.

    Args:
        comparison: What `results.compare.compare` returned.
        gates: What `results.gates.gates` returned.
        command: The command to make it again.
    """
    short, figure = brief(comparison, gates), paired_accuracy(comparison.rows, gates)
    opening, (differences, *rest) = _opening(comparison)[1:], short.blocks[2:]
    blocks = [
        *map(Paragraph, opening),
        _tiles(comparison),
        *(
            [Heading("What neither run tried"), Items(comparison.not_tried)]
            if comparison.not_tried
            else []
        ),
        Heading("Accuracy"),
        differences,
        *rest,
        figure,
        Heading("Image by image"),
        Paragraph(IMAGE_BY_IMAGE, "note"),
        paired_table(comparison.images),
        Heading("Record"),
        both_records(*comparison.provenance),
        Heading("How to reproduce it"),
        Code(command),
    ]
    return Document(short.title, blocks, "Two runs compared")


def write_report(folder: Path, comparison: Comparison, gates: Sequence[Gate], command: str) -> None:
    """Write `compare.html`, `.md`, `.png`, `.json`, and `.csv` into a folder.

    `images.json` and `images.csv` hold the result of each image.

    Args:
        folder: The output folder.
        comparison: What `results.compare.compare` returned.
        gates: What `results.gates.gates` returned.
        command: The command to make it again.

    Raises:
        OSError: The folder cannot be written.
    """
    numbers: dict[str, Any] = {"version": VERSION, "command": command} | asdict(comparison)
    numbers["rows"] = [named(row) for row in comparison.rows]
    numbers["gates"] = [
        asdict(gate) | {"measured": gate.measured._asdict(), "ok": gate.ok, "decided": gate.decided}
        for gate in gates
    ]
    del numbers["images"]  # they have a file of their own
    document = full(comparison, gates, command)
    write_document(folder, "compare", document, numbers, numbers["rows"], images=comparison.images)


def junit(gates: Sequence[Gate], command: str = "compare", suffix: str = " of B") -> bytes:
    """Convert gates to a JUnit XML file for CI systems, with one test case per gate.

    Args:
        gates: The gates.
        command: The command that checked them.
        suffix: Words after "robust accuracy" (`describe_gate`).

    Raises:
        ValueError: There are no gates.
    """
    if not gates:
        raise ValueError(
            "--junit reports on bounds, and there is none: add --min-robust or --max-drop"
        )
    failed = str(sum(not gate.ok for gate in gates))
    count = {"tests": str(len(gates)), "failures": failed, "errors": "0"}
    root = ElementTree.Element("testsuites", count)
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"unfool {command}", **count})
    for gate in gates:
        name = f"{gate.name} {gate.bound:g} ({gate.condition})"
        attributes = {"classname": f"unfool.{command}", "name": name}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        tag = "failure" if not gate.ok else "system-out"
        failure_attributes = (
            {"type": gate.name, "message": describe_gate(gate, suffix)} if not gate.ok else {}
        )
        ElementTree.SubElement(case, tag, failure_attributes).text = describe_gate(gate, suffix)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def describe_gate(gate: Gate, suffix: str = " of B") -> str:
    """Describe a gate and its outcome in one sentence.

    Args:
        gate: The gate.
        suffix: Words after "robust accuracy".
    """
    if gate.name == "min-robust":
        share = {
            "accuracy": gate.measured.mean,
            "low": gate.measured.low,
            "high": gate.measured.high,
        }
        text = f"robust accuracy{suffix} is {cell(share)}"
        end, needed = "lower", f"must be at least {percent(gate.bound)}"
    else:
        text = f"{gate.condition} accuracy: the drop A - B is {_points(gate.measured)} points"
        end, needed = "upper", f"must be at most {100 * gate.bound:.1f}"
    which = f"the {end} end of the interval " if gate.strict else ""
    text += f", and {which}{needed}"
    unsure = "; the bound lies inside the interval, so more images would make the result clearer"
    return text + ("" if gate.decided else unsure)


def _opening(comparison: Comparison) -> list[str]:
    """Return the title with the main change, the two runs, and what differs between them."""
    rows = {row.name: row for row in comparison.rows}
    name = "robust" if "robust" in rows else "clean"
    change = _points(rows[name].change)
    a_folder, b_folder = comparison.folders
    images = (
        f"{comparison.n} images"
        if comparison.n == comparison.requested
        else f"{comparison.n} of {comparison.requested} images"
    )
    where = "; ".join(
        f"{path} {name_of(a)} in A, {name_of(b)} in B"
        for path, (a, b) in comparison.differs.items()
    )
    return [
        f"From A to B, {name} accuracy per draw changes by {change} points.",
        f"A: {a_folder}; B: {b_folder}; {images}, {comparison.draws} held-out draws each.",
        f"What differs: {where}."
        if where
        else "Both runs have the same spec and were made by the same versions.",
    ]


def _tiles(comparison: Comparison) -> Tiles:
    """Return the main accuracy of A and of B, and their difference."""
    row = next((row for row in comparison.rows if row.name == "robust"), comparison.rows[0])
    sides = [
        Tile(percent(share.value), f"{row.name} accuracy of {run}", interval(share_entry(share)))
        for run, share in (("A", row.a), ("B", row.b))
    ]
    change = points(row.change._asdict(), "+.1f").partition(" [")
    return Tiles([*sides, Tile(change[0], "B - A, percentage points", f"[{change[2]}")])


def _agreement(comparison: Comparison) -> list[Paragraph]:
    """Name the conditions under which both runs agree on every image and draw."""
    agreeing = [title_of(row) for row in comparison.rows if row.agree]
    if not agreeing:
        return []
    all_agree = len(agreeing) == len(comparison.rows)
    where = "under every condition" if all_agree else f"under {', '.join(agreeing)}"
    return [Paragraph(AGREE.format(where=where))]


def _bound(gate: Gate) -> Paragraph:
    text = f"{'pass' if gate.ok else 'FAIL'}: {gate.name}: {describe_gate(gate)}"
    return Paragraph(text, "" if gate.ok else "warning")


def _lines(comparison: Comparison) -> list[list[str]]:
    """Return a row of the table (`HEADS`) for each condition."""
    return [
        [
            title_of(row),
            cell(share_entry(row.a)),
            cell(share_entry(row.b)),
            _points(row.change),
            str(row.only_a),
            str(row.only_b),
            f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001",
        ]
        for row in comparison.rows
    ]


def named(row: Paired) -> dict[str, Any]:
    """Convert a condition to a dictionary for JSON."""
    shares = {"a": share_entry(row.a), "b": share_entry(row.b)}
    return asdict(row) | shares | {"change": row.change._asdict()}


def _points(change: Mean) -> str:
    return points(change._asdict(), "+.1f")
