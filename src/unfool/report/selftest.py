"""The report of a self-test: what is known, what was found, and whether that may be."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfool.evaluation.selftest_check import Check, Unit
from unfool.report.rows import percent
from unfool.report.style import BLUE, INK, RUST, WIDTH, blank, png, tidy
from unfool.report.tables import markdown
from unfool.runtime.device import versions
from unfool.runtime.files import write_bytes

VERSION = 1
HEADS = ("what is known", "check", "truth", "found", "may be", "")
CAPTION = (
    "How far what was found is from the truth, in percentage points. Bars: what may be found. Checks "
    "of counts are in the table alone."
)


def print_selftest(checks: Sequence[Check], console: Console | None = None) -> None:
    """Print the table of a self-test, and what it comes to.

    Args:
        checks: What `evaluation.selftest.run` returned.
        console: Where to; the standard output by default.
    """
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(HEADS[1:]):
        table.add_column(head, justify="right" if 0 < i < 4 else "left", overflow="fold")
    before = ""
    for check, (part, *row) in zip(checks, _rows(checks), strict=True):
        if part != before:
            table.add_row(Text(part, "bold"))
        style = "" if check.ok else "bold red"
        table.add_row(*(Text(text, style) for text in (f"  {row[0]}", *row[1:])))
        before = part
    console.print(table)
    console.print(Text(headline(checks), "bold" if all(c.ok for c in checks) else "bold red"))


def write_selftest(folder: Path, checks: Sequence[Check], machine: dict[str, Any]) -> None:
    """Write `selftest.json`, `selftest.md` and `selftest.png` into a folder.

    Args:
        folder: Where to.
        checks: What `evaluation.selftest.run` returned.
        machine: What it ran on and how long, for the record.

    Raises:
        OSError: The folder cannot be written.
    """
    made = machine | versions()
    on = ", ".join(f"{name} {value}" for name, value in made.items())
    parts = [
        "# Self-test",
        headline(checks),
        markdown(HEADS, _rows(checks)),
        f"![found less truth](selftest.png)\n\n{CAPTION}",
        f"Made by `unfool selftest`: {on}.",
    ]
    write_bytes(folder / "selftest.png", figure(checks))
    write_bytes(folder / "selftest.md", ("\n\n".join(parts) + "\n").encode())
    told = {
        "version": VERSION,
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) | {"ok": check.ok} for check in checks],
        "machine": machine,
        "versions": versions(),
    }
    write_bytes(folder / "selftest.json", (json.dumps(told, indent=1) + "\n").encode())


def headline(checks: Sequence[Check]) -> str:
    """The result in one sentence."""
    failed = [check for check in checks if not check.ok]
    if not failed:
        return (
            f"All {len(checks)} checks passed: intervals and attacks agree with the known answers."
        )
    return (
        f"{len(failed)} of {len(checks)} checks FAILED: do not believe numbers that this installation "
        f"reports ({failed[0].part}: {failed[0].what}{', ...' if len(failed) > 1 else ''})."
    )


def figure(checks: Sequence[Check]) -> bytes:
    """By how much what was found differs from what is known, and by how much it may; a PNG file."""
    shown = [check for check in checks if check.unit in ("accuracy", "coverage", "times")]
    drawn = blank(WIDTH, 0.9 + 0.19 * len(shown))
    axes = drawn.subplots()
    for place, check in enumerate(shown):
        low, found, high = (100 * (v - check.truth) for v in (check.low, check.found, check.high))
        axes.plot(
            [low, high], [place, place], "#d5d5d1", linewidth=5, solid_capstyle="butt", zorder=1
        )
        marker, color, size = ("o", BLUE, 5) if check.ok else ("X", RUST, 8)
        axes.plot([found], [place], marker=marker, color=color, markersize=size, zorder=3)
    names = [f"{check.part}: {check.what}" for check in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=2)
    axes.set_xlabel("found less truth, percentage points", fontsize=9, color=INK)
    axes.grid(axis="x", color="#e2e2e0", linewidth=0.7)
    tidy(axes)
    axes.tick_params(axis="y", labelsize=7.5)
    return png(drawn)


def _rows(checks: Sequence[Check]) -> list[list[str]]:
    return [
        [
            check.part,
            check.what,
            _number(check.truth, check.unit),
            _number(check.found, check.unit),
            _range(check),
            "ok" if check.ok else "FAILED",
        ]
        for check in checks
    ]


def _range(check: Check) -> str:
    low, high = check.low, check.high
    if check.unit in ("accuracy", "coverage"):
        low, high = max(low, 0.0), min(high, 1.0)
    low, high = _number(low, check.unit), _number(high, check.unit)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _number(value: float, unit: Unit) -> str:
    if unit == "yes":
        return "yes" if value else "no"
    if unit == "images":
        return f"{value:.0f}"
    return f"{value:.3f}" if unit == "times" else percent(value)
