"""The report of a certification: certified accuracy over the radius, and what it rests on."""

from unfool.certification import certificate
from unfool.report import sentences
from unfool.report.document import Document, Paragraph, Table
from unfool.report.evaluation import how_to_reproduce, notices
from unfool.report.figures.certification import certified_accuracy
from unfool.report.formatting import cell, memory, percent
from unfool.report.write import write_document
from unfool.results.report_json import CertificationSummary as Summary
from unfool.results.run_folder import Run


def write_report(run: Run) -> Summary:
    """Write `report.json`, `report.md`, `report.html` and the figure into a certification's folder.

    It may be unfinished; the report then says so.

    Returns:
        What `report.json` holds.

    Raises:
        RuntimeError: The run is no certification, has nothing yet, or a file of it is damaged.
        OSError: The folder cannot be written.
    """
    summary = certificate.summary(run)
    write_document(run.folder, "report", whole(summary), summary)
    return summary


def brief(summary: Summary) -> Document:
    """What a terminal and a notebook show: the result and the tables."""
    return Document(headline(summary), [*notices(summary), _by_radius(summary), _readings(summary)])


def whole(summary: Summary) -> Document:
    """The whole report of what `certificate.summary` returned."""
    command = f"unfool certify spec.yaml --out runs/{summary['run']}-again"
    versions = summary["versions"] | {"images made by": "; ".join(summary["made_by"])}
    return Document(
        headline(summary),
        [
            *notices(summary),
            Paragraph(_basis(summary)),
            *map(Paragraph, _meaning(summary)),
            _by_radius(summary),
            certified_accuracy(summary),
            _readings(summary),
            *how_to_reproduce(summary, command, versions),
        ],
        f"{sentences.overline(summary)}; run {summary['run']}",
    )


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
        ["time per picture", f"{cost['seconds_per_image']:.3g} s"],
        ["denoiser calls per picture", f"{cost['nfe_forward'] / n:,.0f}"],
        ["classifier calls per picture", f"{cost['classifier_forward'] / n:,.0f}"],
        ["peak memory", memory(cost["peak_bytes"])],
    ]
    return Table(["the smoothed classifier", "value"], lines)
