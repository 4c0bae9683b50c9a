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
    took = f"{duration(seconds)} of work on {images} image{'' if images == 1 else 's'}"
    hashes = [
        ("images, SHA-256", f"`{provenance['images']}`"),
        ("weights, SHA-256", f"`{provenance['weights']}`" if "weights" in provenance else UNKNOWN),
    ]
    told = started(provenance["starts"])
    told.insert(1, ("duration", took))
    return [Heading("Record"), Definitions(told + hashes), Paragraph(HASHES, "note")]


def started(starts: Sequence[Start]) -> list[tuple[str, str]]:
    """List dates, hardware, commands, and commits of the processes that worked on a result."""
    dates = list(dict.fromkeys(_words(start["date"]) for start in starts))
    if len(dates) > SHOWN:
        dates = [dates[0], f"{len(dates) - 2} more", dates[-1]]
    return [
        ("date", ", then ".join(dates) or UNKNOWN),
        ("hardware", _each([start["hardware"] for start in starts])),
        ("command", _each([_code(start.get("command", "")) for start in starts])),
        ("commit of unfool", _each([_code(start.get("commit", "")) for start in starts])),
    ]


def both_records(a: Provenance, b: Provenance) -> Table:
    """Tabulate the records of two runs, side by side."""
    told = [dict(started(side["starts"])) for side in (a, b)]
    for words, side in zip(told, (a, b), strict=True):
        words["images, SHA-256"] = f"{side['images'][:16]}…"
        words["weights, SHA-256"] = f"{side['weights'][:16]}…" if "weights" in side else UNKNOWN
    rows = [[name, *(words[name].replace("`", "") for words in told)] for name in told[0]]
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
    said: list[Block] = [
        Paragraph("Save the spec below as `spec.yaml`, then run this command:"),
        Code(command, "console"),
    ]
    if function := spec.get("python"):
        called = f"`{function}` was called from Python with objects that the spec below describes."
        said = [Paragraph(called)]
    text = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True, width=88)
    return [
        Heading("How to reproduce it"),
        *said,
        Code(text, "yaml"),
        Paragraph("To rebuild this report from the run's folder, run `unfool report FOLDER`."),
        Heading("Versions"),
        Code("\n".join(f"{name}: {version}" for name, version in versions.items()), "text"),
    ]


def _each(said: Sequence[str]) -> str:
    """Join the distinct recorded values."""
    found = list(dict.fromkeys(filter(None, said)))
    more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more if found else UNKNOWN


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`" if text else ""


def _words(date: str) -> str:
    return date.replace("T", " ").replace("Z", " UTC")
