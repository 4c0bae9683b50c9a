"""The report of an evaluation, whole and in short."""

from collections.abc import Mapping
from typing import Any

import yaml

from unfool.report import evaluation_tables as tables
from unfool.report import sentences
from unfool.report.document import (
    Block,
    Code,
    Definitions,
    Document,
    Doubts,
    Heading,
    Paragraph,
    Table,
)
from unfool.report.figures import evaluation as figures
from unfool.report.figures import examples
from unfool.report.figures.examples import Gallery
from unfool.report.write import write_document
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run


def write_report(run: Run) -> Summary:
    """Write `report.json`, `report.md`, `report.html` and `figures/*.png` into the run's folder.

    The run may be unfinished; the report then says so.

    Returns:
        What `report.json` holds.

    Raises:
        RuntimeError: The run has no outcomes yet, or a file of it is damaged.
        OSError: The folder cannot be written.
    """
    summary = summarize_run(run)
    write_document(run.folder, "report", whole(summary, Gallery.of(run)), summary)
    return summary


def brief(summary: Mapping[str, Any]) -> Document:
    """What a terminal and a notebook show: the result, the accuracies and the doubts."""
    return Document(
        sentences.headline(summary),
        [
            *notices(summary),
            Paragraph(sentences.basis(summary)),
            tables.accuracy(summary),
            Definitions(_meanings(summary)),
            *_section("With the noise known", tables.knowing(summary)),
            Doubts(tables.doubts(summary)),
        ],
    )


def whole(summary: Mapping[str, Any], gallery: Gallery | None) -> Document:
    """The whole report.

    Args:
        summary: What `summarize_run` returned.
        gallery: The pictures that the run kept.
    """
    quality, ladder = tables.quality(summary), tables.ladder(summary)
    again, known = tables.resubmission(summary), tables.knowing(summary)
    command = f"unfool evaluate spec.yaml --out runs/{summary['run']}-again"
    versions = summary["versions"] | {"unfool (this report)": summary["unfool"]}
    return Document(
        sentences.headline(summary),
        [
            *notices(summary),
            Paragraph(sentences.basis(summary)),
            Paragraph(" ".join(sentences.lead(summary))),
            Doubts(tables.doubts(summary), *sentences.checks(summary)),
            *_section("Accuracy", tables.accuracy(summary)),
            Definitions(_meanings(summary)),
            Paragraph(" ".join(sentences.about_accuracy(summary)), "note"),
            figures.accuracy(summary),
            *_section("Attack by attack", ladder, sentences.about_ladder(summary)),
            *_section("With the noise known", known, sentences.KNOWING),
            *([figures.loss_curves(summary)] if summary.get("loss_curves") else []),
            *_section("Submitted again", again, sentences.RESUBMISSION),
            *([figures.resubmission(summary)] if again.rows else []),
            Heading("Threat model"),
            Definitions(list(summary["threat_model"].items())),
            *(_pictures(gallery) if gallery is not None else []),
            *_section("Distance to the clean pictures", quality, sentences.QUALITY),
            *_section("By class", tables.classes(summary), sentences.about_classes(summary)),
            figures.classes(summary),
            *_section("Cost", tables.costs(summary), sentences.COST),
            *how_to_reproduce(summary, command, versions),
        ],
        f"{sentences.overline(summary)}; run {summary['run']}",
    )


def notices(summary: Mapping[str, Any]) -> list[Paragraph]:
    """What stands before all else: that a run is not finished, or not to be believed."""
    unfinished, warning = sentences.unfinished(summary), sentences.warning(summary)
    found = [Paragraph(unfinished, "notice")] if unfinished else []
    return found + ([Paragraph(warning, "warning")] if warning else [])


def how_to_reproduce(
    summary: Mapping[str, Any], command: str, versions: Mapping[str, str]
) -> list[Block]:
    """How to run it again, the spec as it may be saved, and the versions that made the report.

    Args:
        summary: Of a run.
        command: What to type, with the spec saved as `spec.yaml`.
        versions: What made the run, by name.
    """
    said = f"Save the spec below as `spec.yaml`, then run `{command}`."
    if function := summary["spec"].get("python"):
        said = f"`{function}` was called from Python, with objects that the spec below describes."
    spec = yaml.safe_dump(summary["spec"], sort_keys=False, allow_unicode=True, width=88)
    return [
        Heading("How to reproduce it"),
        Paragraph(said),
        Code(spec, "yaml"),
        Paragraph("To rebuild this report from the run's folder, run `unfool report FOLDER`."),
        Heading("Versions"),
        Definitions(list(versions.items())),
    ]


def _section(title: str, table: Table, about: str = "") -> list[Block]:
    """A table below a heading, and a note about it; nothing if the table has no rows."""
    note = [Paragraph(about, "note")] if about else []
    return [Heading(title), table, *note] if table.rows else []


def _pictures(gallery: Gallery) -> list[Block]:
    drawn = [examples.pictures(gallery)]
    drawn += [examples.confidence(gallery)] if "times" in gallery.arrays else []
    return [Heading("Pictures"), *drawn]


def _meanings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each column is, and the row that counts."""
    found = [(column.title, column.meaning) for column in tables.columns(summary)]
    return found + ([("robust", sentences.ROBUST)] if summary["attacks"] else [])
