"""Make the main table of CIFAR-10 from the folders of finished sweeps.

    unfool sweep experiments/cifar10-headline.yaml --data FOLDER --out runs/cifar10-headline
    python bench/main_table.py runs/cifar10-headline ... --write

The first command evaluates the rows, and resumes when it is run again; experiments/ has a spec for each
of the other sweeps. With --write, the second command writes bench/main-table.csv, which
bench/readme_figure.py draws, and the table in docs/results.md. Rows of the file whose combination is not
in the folders are kept in their places; new rows come last, until someone moves their lines. Without
--write, the table is printed.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import measuring
from unfool.results.attack_roles import view_name
from unfool.results.export.conditions import threat
from unfool.results.report_json import ShareEntry, Summary
from unfool.runtime.files import write_bytes
from unfool.statistics import percent_interval

NUMBERS = Path(__file__).with_name("main-table.csv")
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
MARKS = "<!-- made by bench/main_table.py: begin -->", "<!-- end -->"
HEADS: tuple[str, ...] = ("threat", "defense", "images", "condition", "accuracy", "low", "high")
Numbers = dict[str, str]  # a row of the file of numbers, by its heads


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="folders of sweeps")
    parser.add_argument(
        "--write", action="store_true", help="write the files instead of printing the table"
    )
    options = parser.parse_args(arguments)
    found = [row for folder in options.folders for row in read_sweep(folder)]
    rows = merge(read_numbers(NUMBERS) if NUMBERS.exists() else [], found)
    if not options.write:
        print("\n".join(tables(rows)))
        return
    page = measuring.between(PAGE.read_text("utf-8"), MARKS, tables(rows))
    write_bytes(NUMBERS, to_csv(rows).encode())
    write_bytes(PAGE, page.encode())


def merge(kept: Sequence[Numbers], found: Sequence[Numbers]) -> list[Numbers]:
    """Put rows that were found in the places of the kept ones of their combination, or at the end.

    A combination's kept conditions go when it was found, since they may be of another run.
    """
    combinations = {(row["threat"], row["defense"]) for row in found}
    places = dict.fromkeys((row["threat"], row["defense"]) for row in [*kept, *found])
    return [
        row
        for place in places
        for row in {
            row["condition"]: row
            for row in (found if place in combinations else kept)
            if (row["threat"], row["defense"]) == place
        }.values()
    ]


def read_sweep(folder: Path) -> Iterator[Numbers]:
    """Yield the accuracies per draw of every combination of a sweep, in percent.

    A combination is named by its values. The rows of the classifier without its defense come first.
    Exits if the folder holds no sweep, or if a combination is missing or unfinished.
    """
    try:
        sweep = json.loads((folder / "sweep.json").read_text("utf-8"))
        cells, requested = sweep["cells"], sweep["requested"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{folder} holds no sweep ({error}): run `unfool sweep` with --out {folder}")
    if len(cells) < requested:
        sys.exit(f"{folder} has only {len(cells)} of {requested} combinations: run the sweep again")
    for entry in cells:
        summary, values = entry["summary"], entry["values"]
        defense = ", ".join(values.values())
        if summary["n"] < summary["requested"]:
            sys.exit(
                f"{folder}: {defense} has only {summary['n']} of {summary['requested']} images: "
                "run the sweep again"
            )
        if "purifier" in values and "classifier" in values:
            name = f"no defense, {values['classifier']}"
            for condition, share in undefended(summary):
                yield numbers(summary, name, condition, share)
        for condition, share in defended(summary):
            yield numbers(summary, defense, condition, share)


def defended(summary: Summary) -> Iterator[tuple[str, ShareEntry]]:
    """Yield the conditions of a run, with the accuracies per draw of the defended model."""
    yield "clean", summary["clean"]
    for row in (*summary["attacks"], *summary["known_noise"]):
        yield row["name"], row["robust"]["per_draw"]


def undefended(summary: Summary) -> Iterator[tuple[str, ShareEntry]]:
    """Yield what the classifier keeps without its defense: of clean images, and under transfer."""
    entries = {attack["label"]: attack for attack in summary["spec"]["attacks"]}
    readings = {"clean": summary["clean"]} | {
        row["name"]: row["robust"]
        for row in summary["attacks"]
        if view_name(entries[row["name"]]) == "classifier-only"
    }
    for name, reading in readings.items():
        if share := reading.get("undefended"):
            yield name, share


def numbers(summary: Summary, defense: str, condition: str, share: ShareEntry) -> Numbers:
    """Return a row of the file of numbers."""
    percents = (f"{100 * share[key]:.1f}" for key in ("accuracy", "low", "high"))
    condition = condition.removesuffix(" + EOT")  # a classifier that averages draws needs no EOT
    values = (threat(summary), defense, str(summary["n"]), condition, *percents)
    return dict(zip(HEADS, values, strict=True))


def tables(rows: Sequence[Numbers]) -> list[str]:
    """Return the lines of a Markdown table for each threat: a row per defense, a column per condition."""
    lines: list[str] = []
    for name in dict.fromkeys(row["threat"] for row in rows):
        cells = {(row["defense"], row["condition"]): row for row in rows if row["threat"] == name}
        images = {defense: row["images"] for (defense, _), row in cells.items()}
        conditions = list(dict.fromkeys(condition for _, condition in cells))
        body = [
            [defense, images[defense], *(shown(cells.get((defense, c))) for c in conditions)]
            for defense in images
        ]
        lines += measuring.table([name, "images", *conditions], body)
    return lines


def shown(row: Numbers | None) -> str:
    """Format an accuracy with its interval; a dash if it was not measured."""
    if row is None:
        return "-"
    return percent_interval(*(float(row[key]) / 100 for key in ("accuracy", "low", "high")))


def to_csv(rows: Sequence[Numbers]) -> str:
    """Return the rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_numbers(path: Path = NUMBERS) -> list[Numbers]:
    """Read a file of numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
