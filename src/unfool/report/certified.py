"""The report of a certification: certified accuracy over the radius, and what it rests on."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text

from unfool.certification import certificate
from unfool.report import figures, sentences
from unfool.report.document import Part, sheet
from unfool.report.rows import cell, memory, percent
from unfool.report.tables import grid, markdown, quote
from unfool.report.text import reproduction
from unfool.results.report_json import CertificationSummary as Summary
from unfool.results.run_folder import Run
from unfool.runtime.files import write_bytes

FIGURE = "certified"
CAPTION = (
    "How many pictures have the right answer, certified, at every point nearer than the radius. The "
    "band is the pointwise 95 % interval over pictures. Dashed: how many have the right class in "
    "front, certified or not. Dotted: the radius of a picture whose every draw agrees; only more "
    "draws can prove more."
)


def write_certificates(run: Run) -> Summary:
    """Write `report.json`, `report.md`, `report.html` and the figure into a certification's folder.

    It may be unfinished; the report then says so.

    Returns:
        What `report.json` holds.

    Raises:
        RuntimeError: The run is no certification, has nothing yet, or a file of it is damaged.
        OSError: The folder cannot be written.
    """
    summary = certificate.summary(run)
    png = figures.certified(summary)
    write_bytes(run.folder / "figures" / f"{FIGURE}.png", png)
    write_bytes(run.folder / "report.md", _markdown(summary).encode())
    write_bytes(run.folder / "report.html", _page(summary, png).encode())
    write_bytes(run.folder / "report.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def print_certificates(
    summary: Summary, folder: Path | None = None, console: Console | None = None
) -> None:
    """Print what a certification says, and where the report is.

    Args:
        summary: What `write_certificates` or `certificate.summary` returned.
        folder: The folder of the report; None if there is none.
        console: Where to; the standard output by default.
    """
    console = console or Console(highlight=False)
    if note := sentences.unfinished(summary):
        console.print(Text(note, style="bold"))
    console.print(Text(headline(summary), style="bold"))
    for heads, body in tables(summary):
        console.print(grid(heads, body))
    if folder is not None:
        console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)


def tables(summary: Summary) -> list[tuple[Sequence[str], list[list[str]]]]:
    """The tables, each as its headings and lines: certified accuracy by radius, and the rest."""
    return [(RADIUS_HEADS, _by_radius(summary)), (READING_HEADS, _readings(summary))]


RADIUS_HEADS = ("radius (l2)", "certified and right")
READING_HEADS = ("the smoothed classifier", "")


def headline(summary: Summary) -> str:
    """The result in one sentence."""
    radius = 0.25 if summary["reach"] >= 0.25 else 0.0
    share = next(row for row in summary["certified"] if row["radius"] == radius)
    change = f" under every change shorter than {radius:g} (l2, pixels in [0, 1])" if radius else ""
    right = percent(share["accuracy"])
    return f"The smoothed classifier is certified to be right{change} on {right} of pictures."


def _basis(summary: Summary) -> str:
    options, n = summary["spec"]["certification"], summary["n"]
    share = summary["certified"][1 if summary["reach"] >= 0.25 else 0]
    paths = summary["spec"].get("paths")
    votes = f", each answered by {paths['by']} of {paths['count']} purifications" if paths else ""
    return (
        f"95 % interval {100 * share['low']:.1f} to {100 * share['high']:.1f} %; {n} "
        f"picture{'' if n == 1 else 's'}; noise of standard deviation {options['sigma']:g}; "
        f"{options['n0']:,} draws to choose the answer and {options['n']:,} others to measure it"
        f"{votes}."
    )


def _meaning(summary: Summary) -> list[str]:
    alpha = summary["spec"]["certification"]["alpha"]
    return [
        "The certificate is of the smoothed classifier, whose answer is the class that leads over "
        "all of the noise, in Euclidean length. It says nothing of one draw, nor of a model that "
        "answers after a few, nor of changes measured otherwise.",
        f"Each picture's certificate may be wrong with a chance of at most {alpha:g}, for the draws "
        "are a sample; intervals are over pictures.",
    ]


def _by_radius(summary: Summary) -> list[list[str]]:
    beyond = f"beyond what {summary['spec']['certification']['n']:,} draws can prove"
    return [
        [f"{row['radius']:.2f}", cell(row) if row["radius"] <= summary["reach"] else beyond]
        for row in summary["certified"]
    ]


def _readings(summary: Summary) -> list[list[str]]:
    cost, n = summary["cost"], summary["n"]
    return [
        ["right class in front, certified or not (clean)", cell(summary["clean"])],
        ["one noisy draw right", cell(summary["one_draw"])],
        ["abstains", cell(summary["abstained"])],
        ["certified, but wrong", cell(summary["wrong"])],
        ["mean certified radius (0 if wrong or abstaining)", f"{summary['mean_radius']:.3f}"],
        ["largest radius the draws can prove", f"{summary['reach']:.3f}"],
        ["time per picture", f"{cost['seconds_per_image']:.3g} s"],
        ["denoiser calls per picture", f"{cost['nfe_forward'] / n:,.0f}"],
        ["classifier calls per picture", f"{cost['classifier_forward'] / n:,.0f}"],
        ["peak memory", memory(cost["peak_bytes"])],
    ]


def _spec(summary: Summary) -> str:
    return yaml.safe_dump(summary["spec"], sort_keys=False, allow_unicode=True, width=88)


def _command(summary: Summary) -> str:
    return f"unfool certify spec.yaml --out runs/{summary['run']}-again"


def _versions(summary: Summary) -> list[list[str]]:
    rows = {**summary["versions"], "images made by": "; ".join(summary["made_by"])}
    return [[name, version] for name, version in rows.items()]


def _markdown(summary: Summary) -> str:
    note = sentences.unfinished(summary)
    parts = [
        f"# {quote(headline(summary))}",
        f"{quote(sentences.overline(summary))}; run {summary['run']}. {quote(_basis(summary))}",
        f"> **{quote(note)}**" if note else "",
        *_meaning(summary),
        markdown(RADIUS_HEADS, _by_radius(summary)),
        f"![certified accuracy over the radius](figures/{FIGURE}.png)\n\n{CAPTION}",
        markdown(READING_HEADS, _readings(summary)),
        reproduction(summary, _command(summary)),
        f"```yaml\n{_spec(summary)}```",
        markdown(("what", "version"), _versions(summary)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _page(summary: Summary, png: bytes) -> str:
    note = sentences.unfinished(summary)
    return sheet(
        headline(summary),
        [
            Part(f"{sentences.overline(summary)}; run {summary['run']}. {_basis(summary)}"),
            *([Part(note)] if note else []),
            *map(Part, _meaning(summary)),
            Part(heads=RADIUS_HEADS, rows=_by_radius(summary)),
            Part(CAPTION, png),
            Part(heads=READING_HEADS, rows=_readings(summary)),
            Part(reproduction(summary, _command(summary)).replace("`", "")),
            Part(_spec(summary), code=True),
            Part(heads=("what", "version"), rows=_versions(summary)),
        ],
    )
