"""The report of a certification: certified accuracy against the radius, and its basis."""

from collections.abc import Sequence

from unfool.certification import certificate
from unfool.report import sentences
from unfool.report.document import Document, Heading, Items, Paragraph, Table, Tile, Tiles
from unfool.report.evaluation import notices
from unfool.report.figures.certification import certified_accuracy
from unfool.report.formatting import cell, interval, memory
from unfool.report.image_table import certified_table
from unfool.report.provenance import how_to_reproduce, record
from unfool.report.write import write_document
from unfool.results.report_json import CertificationSummary as Summary
from unfool.results.run_folder import Run
from unfool.statistics import percent

NOT_TRIED = (
    "Any attack: a certificate needs none, and says nothing about changes beyond its radius.",
    "Changes measured in other norms than l2, and changes that no norm limits.",
    "A model that answers after a few draws, as a deployed model does.",
    "Images other than those that the run used; poisoned training data, and changed weights.",
)


def write_report(run: Run) -> Summary:
    """Write the report into a certification's folder: pages, the figure, and numbers.

    The files are `report.html`, `report.md`, `report.json`, `report.csv` (accuracy by radius), and
    `images.json` and `images.csv` (the certificate of each image). If the run is unfinished, the
    report says so.

    Returns:
        The contents of `report.json`.

    Raises:
        RuntimeError: The run is not a certification, has no images yet, or has a damaged file.
        OSError: The folder cannot be written.
    """
    summary = certificate.summary(run)
    document = full(summary, run.manifest["classes"])
    records = summary["certified"]
    write_document(run.folder, "report", document, summary, records, images=summary["images"])
    return summary


def brief(summary: Summary) -> Document:
    """Make the short report for a terminal or notebook: the result and tables."""
    return Document(headline(summary), [*notices(summary), _by_radius(summary), _readings(summary)])


def full(summary: Summary, classes: Sequence[str]) -> Document:
    """Make the full report.

    Args:
        summary: What `certificate.summary` returned.
        classes: The names of the data set's classes.
    """
    command = f"unfool certify spec.yaml --out runs/{summary['run']}-again"
    versions = summary["versions"] | {"images made by": "; ".join(summary["made_by"])}
    return Document(
        headline(summary),
        [
            *notices(summary),
            Paragraph(_basis(summary)),
            _tiles(summary),
            *map(Paragraph, _meaning(summary)),
            Heading("What was not tried"),
            Items(NOT_TRIED),
            *record(summary["provenance"], summary["cost"]["seconds"], summary["n"]),
            Heading("Certified accuracy"),
            _by_radius(summary),
            certified_accuracy(summary),
            _readings(summary),
            Heading("Image by image"),
            certified_table(summary["images"], classes),
            *how_to_reproduce(summary["spec"], command, versions),
        ],
        f"{sentences.overline(summary)}; run {summary['run']}",
    )


def _tiles(summary: Summary) -> Tiles:
    """Return the three numbers that a reader looks for first."""
    share = next(row for row in summary["certified"] if row["radius"] == _radius(summary))
    return Tiles(
        [
            Tile(
                percent(share["accuracy"]),
                f"certified and right at radius {share['radius']:g}",
                f"95 % interval {interval(share)}",
            ),
            Tile(
                percent(summary["clean"]["accuracy"]),
                "right class in front, certified or not",
                f"95 % interval {interval(summary['clean'])}",
            ),
            Tile(
                f"{summary['mean_radius']:.3f}",
                "mean certified radius",
                f"out of at most {summary['reach']:.3f} that this number of draws can prove",
            ),
        ]
    )


def _radius(summary: Summary) -> float:
    """Return the radius that the headline reports."""
    return 0.25 if summary["reach"] >= 0.25 else 0.0


def headline(summary: Summary) -> str:
    """State the result in one sentence."""
    radius = _radius(summary)
    share = next(row for row in summary["certified"] if row["radius"] == radius)
    change = f" under every change shorter than {radius:g} (l2, pixels in [0, 1])" if radius else ""
    right = percent(share["accuracy"])
    return f"The smoothed classifier is certified to be right{change} on {right} of images."


def _basis(summary: Summary) -> str:
    options, n = summary["spec"]["certification"], summary["n"]
    share = summary["certified"][1 if summary["reach"] >= 0.25 else 0]
    paths = summary["spec"].get("paths")
    votes = f", each answered by {paths['by']} of {paths['count']} purifications" if paths else ""
    return (
        f"95 % interval {interval(share)}; {n} "
        f"image{'' if n == 1 else 's'}; noise of standard deviation {options['sigma']:g}; "
        f"{options['n0']:,} draws to choose the answer and {options['n']:,} others to measure it"
        f"{votes}."
    )


def _meaning(summary: Summary) -> list[str]:
    alpha = summary["spec"]["certification"]["alpha"]
    return [
        "The certificate is about the smoothed classifier, whose answer is the most likely class "
        "over all noise, and about changes in Euclidean length. It says nothing about a single "
        "draw, about a model that answers after a few draws, or about changes in other norms.",
        f"Each image's certificate is wrong with a probability of at most {alpha:g}, because the "
        "draws are a sample; intervals are over images.",
    ]


def _by_radius(summary: Summary) -> Table:
    beyond = f"beyond what {summary['spec']['certification']['n']:,} draws can prove"
    lines = [
        [f"{row['radius']:.2f}", cell(row) if row["radius"] <= summary["reach"] else beyond]
        for row in summary["certified"]
    ]
    return Table(["radius (l2)", "certified and right"], lines)


def _readings(summary: Summary) -> Table:
    cost, n = summary["cost"], summary["n"]
    lines = [
        ["right class in front, certified or not (clean)", cell(summary["clean"])],
        ["one noisy draw right", cell(summary["one_draw"])],
        ["abstains", cell(summary["abstained"])],
        ["certified, but wrong", cell(summary["wrong"])],
        ["mean certified radius (0 if wrong or abstaining)", f"{summary['mean_radius']:.3f}"],
        ["largest radius the draws can prove", f"{summary['reach']:.3f}"],
        ["time per image", f"{cost['seconds_per_image']:.3g} s"],
        ["denoiser calls per image", f"{cost['nfe_forward'] / n:,.0f}"],
        ["classifier calls per image", f"{cost['classifier_forward'] / n:,.0f}"],
        ["peak memory", memory(cost["peak_bytes"])],
    ]
    return Table(["the smoothed classifier", "value"], lines)
