"""The report of a self-test: known values, measured values, and whether they agree."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from unfool.evaluation.selftest_check import Check, Unit
from unfool.report.document import Document, Paragraph, Style, Table
from unfool.report.figures.selftest import gaps
from unfool.report.write import write_document
from unfool.runtime.device import versions
from unfool.statistics import percent

VERSION = 1
HEADS = ("known value", "check", "truth", "measured", "accepted range", "passed")


def brief(checks: Sequence[Check]) -> Document:
    """Make the short report for a terminal: a table of the checks, grouped by part.

    Args:
        checks: What `evaluation.selftest.run` returned.
    """
    lines: list[list[str]] = []
    styles: dict[int, Style] = {}
    for part, checks_of_part in groupby(checks, lambda check: check.part):
        styles[len(lines)] = "strong"
        lines.append([part, *[""] * (len(HEADS) - 2)])
        for check in checks_of_part:
            styles |= {} if check.ok else {len(lines): "failed"}
            lines.append([f"  {check.what}", *_numbers(check)])
    return Document(headline(checks), [Table(HEADS[1:], lines, styles)])


def full(checks: Sequence[Check], machine: dict[str, Any]) -> Document:
    """Make the full report.

    Args:
        checks: What `evaluation.selftest.run` returned.
        machine: The hardware and the duration, for the record.
    """
    environment = ", ".join(f"{name} {value}" for name, value in (machine | versions()).items())
    lines = [[check.part, check.what, *_numbers(check)] for check in checks]
    failed: dict[int, Style] = {i: "failed" for i, check in enumerate(checks) if not check.ok}
    note = Paragraph(f"Made by `unfool selftest`: {environment}.", "note")
    return Document(
        headline(checks), [Table(HEADS, lines, failed), gaps(checks), note], "Self-test"
    )


def write_report(folder: Path, checks: Sequence[Check], machine: dict[str, Any]) -> None:
    """Write `selftest.json`, `selftest.md`, `selftest.html`, and `selftest.png` into a folder.

    Args:
        folder: The output folder.
        checks: What `evaluation.selftest.run` returned.
        machine: The hardware and the duration, for the record.

    Raises:
        OSError: The folder cannot be written.
    """
    numbers = {
        "version": VERSION,
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) | {"ok": check.ok} for check in checks],
        "machine": machine,
        "versions": versions(),
    }
    write_document(folder, "selftest", full(checks, machine), numbers)


def headline(checks: Sequence[Check]) -> str:
    """State the result in one sentence."""
    failed = [check for check in checks if not check.ok]
    if not failed:
        return (
            f"All {len(checks)} checks passed: intervals and attacks agree with the known answers."
        )
    return (
        f"{len(failed)} of {len(checks)} checks FAILED: do not believe numbers that this installation "
        f"reports ({failed[0].part}: {failed[0].what}{', ...' if len(failed) > 1 else ''})."
    )


def _numbers(check: Check) -> list[str]:
    truth, measured = _number(check.truth, check.unit), _number(check.measured, check.unit)
    return [truth, measured, _range(check), "ok" if check.ok else "FAILED"]


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
