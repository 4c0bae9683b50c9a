"""Which figures a report has, and the captions that say how to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfool.report import figures
from unfool.report.examples import Gallery
from unfool.report.rows import columns, resubmission, weakest


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its caption.

    Attributes:
        name: Of its file, without the ending.
        title: What it shows.
        caption: How to read it.
        png: The bytes of its file.
    """

    name: str
    title: str
    caption: str
    png: bytes


def report_figures(summary: Mapping[str, Any], gallery: Gallery | None) -> dict[str, ReportFigure]:
    """The figures that a run has the facts for, by name."""
    found = [
        ReportFigure(
            "accuracy", "Accuracy by condition", _accuracy(summary), figures.accuracy(summary)
        ),
        ReportFigure("classes", "Accuracy by class", _classes(summary), figures.classes(summary)),
    ]
    if resubmission(summary)[1]:
        drawn = figures.resubmission(summary)
        found.insert(1, ReportFigure("resubmission", "Submitted again", RESUBMITTED, drawn))
    if summary.get("loss_curves"):
        drawn = figures.climb(summary)
        found.append(
            ReportFigure("loss_curves", "Loss over the steps of each attack", CLIMB, drawn)
        )
    if gallery is not None:
        drawn = figures.pictures(gallery)
        found.append(ReportFigure("pictures", "What the model saw", _pictures(gallery), drawn))
    if gallery is not None and "times" in gallery.arrays:
        drawn = figures.confidence(gallery)
        found.append(
            ReportFigure("confidence", "Along the purification", _confidence(gallery), drawn)
        )
    return {plate.name: plate for plate in found}


RESUBMITTED = (
    "How often the model is right every time, if the same picture is submitted once, twice, and so on. "
    "Bands are 95 % intervals. Where the lines of clean and attacked pictures fall alike, it is the "
    "model's own randomness that errs, and no attack is needed."
)


CLIMB = (
    "The mean of the loss that each attack climbs, from its first steps at the left to its last, over "
    "its draws, restarts and targets. A picture is left right if more than half of its answers are. "
    "Bands are 95 % intervals over pictures. Where the line of pictures left right still rises at its "
    "end, the attack was not done."
)


def _accuracy(summary: Mapping[str, Any]) -> str:
    said = "The further to the right, the more often the model is right. Bars are 95 % intervals."
    if summary["attacks"]:
        said += " The distance between the clean row and the robust row is what the attack costs."
    if len(columns(summary)) > 2:
        said += " Where the readings of one row lie apart, the model's own randomness decides the answer."
    return said


def _classes(summary: Mapping[str, Any]) -> str:
    shown, many = len(weakest(summary)), len(summary["classes"])
    said = "Each class, clean" + (" and under the attack that counts" if summary["attacks"] else "")
    said += (
        ". Bars are 95 % intervals: with few pictures of a class they are wide, and classes whose "
    )
    said += "bars overlap cannot be ranked. A class of which the run has no picture is left out."
    return said if shown == many else f"{said} Shown are the {shown} least robust of {many}."


def _pictures(gallery: Gallery) -> str:
    shown = min(len(gallery), 8)
    factor = figures.magnification(gallery)
    said = (
        f"The first {shown} pictures of the run, not a selection. At the left the true class, the "
        f"picture's number and {_whose(gallery)}. "
    )
    if "clean_purified" in gallery.arrays:
        said += (
            "Under the first two columns stands the answer of the classifier without its defense, "
            "under the purified pictures that of the defended model, at one draw of its noise. "
        )
    else:
        said += "Under each picture stands the model's answer. "
    said += "\u2713 is right, \u2717 wrong. "
    return said + (
        f"The difference is magnified {factor:g} times, gray is no change; below it stands its size "
        "in the threat's norm."
    )


def _whose(gallery: Gallery) -> str:
    if gallery.changed == "attacked":
        return "the attack that counts"
    return "the corruption that hurts it most"


def _confidence(gallery: Gallery) -> str:
    said = (
        "The softmax confidence of the classifier as the picture is purified, from time t* at the left "
        "to the purified picture at the right. Thin lines are pictures, thick lines their mean; above "
        f"each panel stands of how many. A defense that works brings the {gallery.changed} pictures "
        "(dashed) up to the clean ones (solid) in the true class."
    )
    if "clean_fooled" in gallery.arrays:
        said += (
            f" The {'adversarial' if gallery.changed == 'attacked' else 'mistaken'} class is what the "
            f"classifier without its defense answers to the {gallery.changed} picture, where that is "
            "wrong."
        )
    return said
