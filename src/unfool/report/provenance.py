"""Sections of a report for auditors: where its numbers come from, and how to reproduce them."""

from collections.abc import Mapping, Sequence

import yaml

from unfool.report.document import Block, Code, Definitions, Heading, Paragraph, Table
from unfool.report.formatting import duration
from unfool.results.report_json import Provenance
from unfool.results.spec import CertificationSpec, EvaluationSpec
from unfool.runtime.provenance import Start

UNKNOWN = "not recorded"
SHOWN = 3  # dates, machines, commands, or commits to list
HASHES = (
    "The hash of the images covers pixels and labels. The hash of the weights covers all tensors of the "
    "model and the attacks as built, with those that follow from options, such as the times of a "
    "purifier. So it is not the hash of a file, and other options can change it."
)


def record(provenance: Provenance, seconds: float, images: int) -> list[Block]:
    """Record date, duration, hardware, command, commit, and the hashes of weights and images.

    Args:
        provenance: The run's provenance.
        seconds: The time that its images took, summed over processes.
        images: The number of finished images.
    """
    work = f"{duration(seconds)} of work on {images} image{'' if images == 1 else 's'}"
    hashes = [
        ("images, SHA-256", f"`{provenance['images']}`"),
        ("weights, SHA-256", f"`{provenance['weights']}`" if "weights" in provenance else UNKNOWN),
    ]
    entries = start_entries(provenance["starts"])
    entries.insert(1, ("duration", work))
    return [Heading("Record"), Definitions(entries + hashes), Paragraph(HASHES, "note")]


def start_entries(starts: Sequence[Start]) -> list[tuple[str, str]]:
    """List dates, hardware, commands, and commits of the processes that worked on a result."""
    dates = list(dict.fromkeys(_date_text(start["date"]) for start in starts))
    if len(dates) > SHOWN:
        dates = [dates[0], f"{len(dates) - 2} more", dates[-1]]
    return [
        ("date", ", then ".join(dates) or UNKNOWN),
        ("hardware", _join_distinct([start["hardware"] for start in starts])),
        ("command", _join_distinct([_code(start.get("command", "")) for start in starts])),
        ("commit of unfool", _join_distinct([_code(start.get("commit", "")) for start in starts])),
    ]


def both_records(a: Provenance, b: Provenance) -> Table:
    """Tabulate the records of two runs, side by side."""
    records = [dict(start_entries(side["starts"])) for side in (a, b)]
    for entries, side in zip(records, (a, b), strict=True):
        entries["images, SHA-256"] = f"{side['images'][:16]}…"
        entries["weights, SHA-256"] = f"{side['weights'][:16]}…" if "weights" in side else UNKNOWN
    rows = [[name, *(entries[name].replace("`", "") for entries in records)] for name in records[0]]
    return Table(["of the run", "A", "B"], rows)


def how_to_reproduce(
    spec: EvaluationSpec | CertificationSpec, command: str, versions: Mapping[str, str]
) -> list[Block]:
    """Make sections with the command to reproduce a run, its spec, and the versions.

    Args:
        spec: The spec of the run.
        command: The command to run once the spec is saved as `spec.yaml`.
        versions: Name to version of what made the run.
    """
    steps: list[Block] = [
        Paragraph("Save the spec below as `spec.yaml`, then run this command:"),
        Code(command, "console"),
    ]
    if function := spec.get("python"):
        sentence = (
            f"`{function}` was called from Python with objects that the spec below describes."
        )
        steps = [Paragraph(sentence)]
    text = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True, width=88)
    return [
        Heading("How to reproduce it"),
        *steps,
        Code(text, "yaml"),
        Paragraph("To rebuild this report from the run's folder, run `unfool report FOLDER`."),
        Heading("Versions"),
        Code("\n".join(f"{name}: {version}" for name, version in versions.items()), "text"),
    ]


def _join_distinct(values: Sequence[str]) -> str:
    """Join the distinct recorded values."""
    distinct = list(dict.fromkeys(filter(None, values)))
    more = f" (and {len(distinct) - SHOWN} more)" if len(distinct) > SHOWN else ""
    return "; ".join(distinct[:SHOWN]) + more if distinct else UNKNOWN


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`" if text else ""


def _date_text(date: str) -> str:
    return date.replace("T", " ").replace("Z", " UTC")
