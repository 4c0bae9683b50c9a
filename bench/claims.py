"""Tabulate the claims of papers about their defenses, next to our measurements by the same rules.

    unfool evaluate experiments/claims/NAME.yaml --out runs/claims/NAME
    python bench/claims.py runs/claims/* --write docs

The first command makes a row, and resumes when it is run again. The second writes docs/claims.md and
docs/claims.png, and keeps what it has read in bench/claims-rows, a file for each row; a later call needs
only the folders of new or changed rows. Each run folder is the row with the folder's name. Claims come
from bench/claims.yaml, which explains how to add a row; all measurements come from run folders. Without
--write, the page is printed.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims_rows import Claim, Entry, Kind, Measured, Row, read_claims, read_rows
from unfool.report.document import (
    Block,
    Code,
    Document,
    Drawing,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
)
from unfool.report.figures.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    blank,
    draw,
    interval,
    legend,
    percent_axis,
)
from unfool.report.formatting import cell
from unfool.report.render_markdown import to_markdown
from unfool.results.attack_roles import roles
from unfool.results.report_json import ShareEntry
from unfool.runtime.files import write_bytes

DATA = Path(__file__).with_name("claims.yaml")
ROWS = Path(__file__).with_name("claims-rows")
COMMAND = "python bench/claims.py runs/claims/* --write docs"
NAMES: dict[Kind, str] = {
    "transfer": "transfer",
    "bpda": "BPDA",
    "exact": "exact gradient",
    "dw-box": "DW-box",
    "square": "Square",
    "unbounded": "StAdv or LF",
}
COLUMNS: tuple[Kind, ...] = ("bpda", "exact", "dw-box", "square", "unbounded")
HEADS = (
    "defense",
    "claimed robust",
    "ours, same kind of attack",
    "BPDA",
    "exact gradient, EOT",
    "DW-box",
    "Square",
    "StAdv or LF",
    "clean",
    "doubts",
    "calls per image",
    "seconds per image",
)
ENOUGH = 64  # images per row
OPENING = (
    "The table below cannot say whether a paper's number is right. Our denoiser is small: it has 4.2 "
    "million parameters and takes a few steps, whereas the papers' networks have at least 35 million "
    "and take up to 1,000. Our attacks are short, and with so few images the intervals are wide. The "
    "table compares the defenses with each other, on the same images and under the same attacks, and "
    "it shows how much accuracy is left under stronger attacks than the paper's."
)
READING = (
    "Claimed accuracies are those of the papers; the number in parentheses refers to the list below "
    "the table. Ours are per draw, with 95 % confidence intervals, on CIFAR-10 in linf 8/255. StAdv "
    "(which moves pixels) and LF (which changes low frequencies) are not bounded by a norm. DW-box is "
    "scored on the noise that its attacker knows, and all other attacks on noise that their attackers "
    "have not seen. Calls are forward passes and gradients of the denoiser, including those of the "
    "attacks. Seconds are those of the machine that ran the row."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="run folders, named like the rows")
    parser.add_argument(
        "--write", type=Path, metavar="DOCS", help="the folder for claims.md, claims.png"
    )
    parser.add_argument("--claims", type=Path, default=DATA, help="the file of claims")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the folder of kept rows")
    options = parser.parse_args(arguments)
    rows = read_rows(options.folders, read_claims(options.claims), options.rows)
    page = document(rows)
    if not options.write:
        print(to_markdown(page), end="")
        return
    for row in rows:
        if row.run:
            text = json.dumps(row.run, indent=1, allow_nan=False) + "\n"
            write_bytes(options.rows / f"{row.name}.json", text.encode())
    for figure in page.figures:
        write_bytes(options.write / figure.file, figure.drawing.png)
    write_bytes(options.write / "claims.md", to_markdown(page).encode())


def document(rows: Sequence[Row]) -> Document:
    """Build the page."""
    numbers: dict[tuple[str, int], int] = {}
    for row in rows:
        for index in range(len(row.entry.claims)):
            numbers[row.name, index] = len(numbers) + 1
    blocks: list[Block] = [Paragraph(OPENING)]
    done = [row for row in rows if row.run]
    counts = sorted({row.run["n"] for row in done if row.run})
    if counts and counts[0] < ENOUGH:
        blocks.append(
            Paragraph(
                f"Some rows have only {counts[0]} images. They are trials of the command, not results.",
                "notice",
            )
        )
    blocks += [
        Figure("claims.png", "Claimed beside measured", CAPTION, figure(rows)),
        Paragraph(READING),
        Table(HEADS, [_cells(row, numbers) for row in rows]),
    ]
    if missing := [row.name for row in rows if not row.run]:
        blocks.append(Paragraph(f"Not run yet: {', '.join(missing)}."))
    blocks += [
        Heading("What is claimed"),
        Items(
            [
                _claim(numbers[row.name, index], row.entry, claim)
                for row in rows
                for index, claim in enumerate(row.entry.claims)
            ]
        ),
        Heading("What differs, apart from the size of the networks"),
        Items([f"{row.entry.title}: {row.entry.differs} {row.entry.note}".strip() for row in rows]),
    ]
    if doubts := [text for row in done for text in _doubts(row)]:
        blocks += [Heading("Doubts"), Items(doubts)]
    if done:
        blocks += [Heading("Attacks"), Items([_attacks(row) for row in done])]
    return Document("What claims are worth", [*blocks, Code(COMMAND)])


CAPTION = (
    "The diamond is the accuracy that the paper claims. The circle is ours under the same kind of "
    "attack, and the square is ours under the bounded attack that does best on each image, with 95 % "
    "confidence intervals."
)


def figure(rows: Sequence[Row]) -> Drawing:
    """Draw claimed and measured accuracies, one line per defense."""
    drawn = blank(8.4, 1.3 + 0.42 * len(rows))
    axes = drawn.subplots()
    styles: dict[str, dict[str, Any]] = {
        "claimed": {"marker": "D", "color": INK, "markersize": 6.5},
        "ours, same kind of attack": {"marker": "o", "color": BLUE, "markersize": 6},
        "ours, worst attack": {"marker": "s", "color": RUST, "markersize": 5.5},
    }
    labeled: set[str] = set()
    for y, row in enumerate(rows):
        claimed = dict.fromkeys(
            ("accuracy", "low", "high"), row.first.robust / 100 if row.first else 0
        )
        shown = {
            "claimed": claimed if row.first else None,
            "ours, same kind of attack": row.alike,
            "ours, worst attack": _worst(row.run),
        }
        if row.first and (near := row.alike or _worst(row.run)):
            ends = [row.first.robust, 100 * near["accuracy"]]
            axes.plot(ends, [y, y], color=GRAY, linewidth=5, alpha=0.25, zorder=1)
        for (name, share), shift in zip(shown.items(), (0, -0.12, 0.12), strict=True):
            if share:
                interval(axes, share, y + shift, styles[name], None if name in labeled else name)
                labeled.add(name)
    percent_axis(axes, [row.entry.title for row in rows], "accuracy under attack, %")
    legend(drawn, axes, 3)
    return draw(drawn)


def _worst(run: Measured | None) -> ShareEntry | None:
    """The robust accuracy of a run: under the worst attack on each image; None if it has no attack."""
    return run["robust"]["per_draw"] if run and roles(run["spec"]["attacks"]).attacks else None


def _cells(row: Row, numbers: Mapping[tuple[str, int], int]) -> list[str]:
    claim = row.first
    claimed = f"{claim.robust:g} % ({numbers[row.name, 0]})" if claim else "-"
    if row.run is None:
        return [row.entry.title, claimed, *["-"] * (len(HEADS) - 2)]
    name = row.entry.title
    if row.run["n"] != ENOUGH:
        name += f", {row.run['n']} images"
    alike = f"{NAMES[claim.like]}: {cell(row.alike)}" if claim and claim.like and row.alike else "-"
    by_kind = row.measured
    accuracies = [cell(by_kind[kind]) if kind in by_kind else "-" for kind in COLUMNS]
    severities = Counter(doubt["severity"] for doubt in row.run["doubts"])
    doubts = ", ".join(
        f"{severities[kind]} {kind}" for kind in ("red", "yellow") if severities[kind]
    )
    cost, count = row.run["cost"], row.run["n"]
    calls = (cost["nfe_forward"] + cost["nfe_vjp"]) / count
    return [
        name,
        claimed,
        alike,
        *accuracies,
        cell(row.run["clean"]),
        doubts or "none",
        f"{calls:,.0f}",
        f"{cost['seconds'] / count:.1f}",
    ]


def _claim(number: int, entry: Entry, claim: Claim) -> str:
    clean = f", clean {claim.clean:g} %" if claim.clean is not None else ""
    images = f", {claim.images} images" if claim.images else ""
    return (
        f"({number}) {entry.title}: {claim.robust:g} % under {claim.attack}{clean}; {claim.threat}, "
        f"{claim.network}{images}; {claim.source}."
    )


def _doubts(row: Row) -> list[str]:
    doubts = row.run["doubts"] if row.run else []
    return [f"{row.entry.title}: {d['severity']} doubt `{d['name']}`, {d['why']}." for d in doubts]


def _attacks(row: Row) -> str:
    assert row.run is not None
    keys = ("steps", "eot", "queries")
    listed = []
    for attack in row.run["spec"]["attacks"]:
        inner: Any = attack.get("attack", attack)
        options = ", ".join(f"{key} {inner[key]}" for key in keys if inner.get(key))
        listed.append(f"{attack['label']} ({options or 'default settings'})")
    draws = row.run["spec"]["evaluation"]["draws"]
    return f"{row.entry.title}: {'; '.join(listed)}; {draws} held-out draws."


if __name__ == "__main__":
    main()
