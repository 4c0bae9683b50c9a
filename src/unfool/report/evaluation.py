"""The full and the short report of an evaluation."""

from collections.abc import Sequence

from unfool.report import evaluation_tables as tables
from unfool.report import sentences
from unfool.report.document import (
    Block,
    Definitions,
    Document,
    Doubts,
    Heading,
    Items,
    Paragraph,
    Table,
    Tile,
    Tiles,
)
from unfool.report.evaluation_tables import worst_undefended
from unfool.report.figures import evaluation as figures
from unfool.report.figures import examples
from unfool.report.figures.examples import Gallery, small_images
from unfool.report.formatting import Share, interval
from unfool.report.image_table import image_table
from unfool.report.provenance import how_to_reproduce, record
from unfool.report.write import write_document
from unfool.results.image_records import ImageRecord, image_records
from unfool.results.report_json import CertificationSummary, Summary
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run
from unfool.statistics import percent


def write_report(run: Run) -> Summary:
    """Write the report into the run's folder: pages, figures, and numbers as JSON and CSV.

    The files are `report.html`, `report.md`, `report.json`, `report.csv` (the table of accuracies),
    `images.json` and `images.csv` (the result of each image), and `figures/*.png`. If the run is
    unfinished, the report says so.

    Returns:
        The contents of `report.json`.

    Raises:
        RuntimeError: The run has no outcomes yet, or a file of it is damaged.
        OSError: The folder cannot be written.
    """
    summary = summarize_run(run)
    images = image_records(run.outcomes(), run.manifest["classes"])
    document = full(summary, Gallery.of(run), images)
    write_document(run.folder, "report", document, summary, tables.records(summary), images=images)
    return summary


def brief(summary: Summary) -> Document:
    """Make the short report for a terminal or notebook: result, accuracies, and doubts."""
    return Document(
        sentences.headline(summary),
        [
            *notices(summary),
            Paragraph(sentences.basis(summary)),
            tables.accuracy(summary),
            Definitions(_meanings(summary)),
            *_section("With the noise known", tables.known_noise(summary)),
            Doubts(tables.doubts(summary)),
        ],
    )


def full(summary: Summary, gallery: Gallery | None, images: Sequence[ImageRecord]) -> Document:
    """Make the full report.

    Args:
        summary: What `summarize_run` returned.
        gallery: The images that the run kept, or None.
        images: The result of each image.
    """
    quality, ladder = tables.quality(summary), tables.ladder(summary)
    again, known = tables.resubmission(summary), tables.known_noise(summary)
    command = f"unfool evaluate spec.yaml --out runs/{summary['run']}-again"
    versions = summary["versions"] | {"unfool (this report)": summary["unfool"]}
    return Document(
        sentences.headline(summary),
        [
            *notices(summary),
            Paragraph(sentences.basis(summary)),
            tiles(summary),
            Paragraph(" ".join(sentences.lead(summary))),
            Heading("Threat model"),
            Definitions(list(summary["threat_model"].items())),
            Heading("What was not tried"),
            Items(summary["not_tried"]),
            Doubts(tables.doubts(summary), *sentences.checks(summary)),
            *record(summary["provenance"], summary["cost"]["seconds"], summary["n"]),
            *_section("Accuracy", tables.accuracy(summary)),
            Definitions(_meanings(summary)),
            Paragraph(" ".join(sentences.about_accuracy(summary)), "note"),
            figures.accuracy(summary),
            *_section("Attack by attack", ladder, sentences.about_ladder(summary)),
            *_section("With the noise known", known, sentences.KNOWN_NOISE),
            *([figures.loss_curves(summary)] if summary.get("loss_curves") else []),
            *_section("Submitted again", again, sentences.RESUBMISSION),
            *([figures.resubmission(summary)] if again.rows else []),
            *(_images(gallery) if gallery is not None else []),
            Heading("Image by image"),
            Paragraph(sentences.IMAGE_BY_IMAGE, "note"),
            image_table(images, small_images(gallery) if gallery is not None else {}),
            *_section("Distance to the clean images", quality, sentences.QUALITY),
            *_section("By class", tables.classes(summary), sentences.about_classes(summary)),
            figures.classes(summary),
            *_section("Cost", tables.costs(summary), sentences.COST),
            *how_to_reproduce(summary["spec"], command, versions),
        ],
        f"{sentences.overline(summary)}; run {summary['run']}",
    )


def tiles(summary: Summary) -> Tiles:
    """Return the three numbers that a reader looks for first."""
    clean, robust = summary["clean"]["per_draw"], summary["robust"]
    shown = [_tile(clean, "accuracy on clean images")]
    if summary["attacks"]:
        shown.append(_tile(robust["per_draw"], "accuracy under the attack that counts"))
        if len(tables.columns(summary)) > 2:
            shown.append(
                _tile(
                    robust["all_draws"],
                    f"accuracy under attack, if all {robust['k']} answers must be right",
                )
            )
    elif "corrupted" in summary:
        shown.append(_tile(summary["corrupted"]["per_draw"], "accuracy on corrupted images"))
    if len(shown) < 3 and "undefended" in robust:
        undefended = worst_undefended(summary)[1] if summary["attacks"] else robust["undefended"]
        shown.append(_tile(undefended, "accuracy without the defense, in the worst case"))
    images = f"of the {summary['requested']} images of the spec"
    shown = shown if len(shown) > 2 else [*shown, Tile(str(summary["n"]), "images", images)]
    return Tiles(shown[:3])


def _tile(share: Share, title: str) -> Tile:
    return Tile(percent(share["accuracy"]), title, f"95 % interval {interval(share)}")


def notices(summary: Summary | CertificationSummary) -> list[Paragraph]:
    """Return the notices at the top: that a run is unfinished, or that it has red doubts."""
    unfinished, warning = sentences.unfinished(summary), sentences.warning(summary)
    paragraphs = [Paragraph(unfinished, "notice")] if unfinished else []
    return paragraphs + ([Paragraph(warning, "warning")] if warning else [])


def _section(title: str, table: Table, about: str = "") -> list[Block]:
    """Return a heading, a table, and a note about it; nothing if the table has no rows."""
    note = [Paragraph(about, "note")] if about else []
    return [Heading(title), table, *note] if table.rows else []


def _images(gallery: Gallery) -> list[Block]:
    grids = [examples.image_grid(gallery)]
    grids += [examples.confidence(gallery)] if "times" in gallery.arrays else []
    return [Heading("Images"), *grids]


def _meanings(summary: Summary) -> list[tuple[str, str]]:
    """Return the meaning of each column, and of the row `robust`."""
    pairs = [(column.title, column.meaning) for column in tables.columns(summary)]
    return pairs + ([("robust", sentences.ROBUST)] if summary["attacks"] else [])
