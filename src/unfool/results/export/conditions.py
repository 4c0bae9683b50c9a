"""The content that all exports share: a run's conditions with their accuracies, data, and model."""

from collections.abc import Iterator
from typing import NamedTuple

from unfool.results.report_json import Readings, Summary
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run
from unfool.results.threat_model import eps_words, known_words, sees


class ConditionResult(NamedTuple):
    """A condition of a run.

    Attributes:
        name: The condition; `robust` is the attack that counts, chosen for each image.
        readings: How often the model is right.
        description: What was done to the images, in words.
    """

    name: str
    readings: Readings
    description: str


def summary_of_finished(run: Run) -> Summary:
    """Return the summary of a finished run.

    Raises:
        RuntimeError: It is not an evaluation, or images are missing: an easy first half would pass
            for the whole run.
    """
    summary = summarize_run(run)
    if summary["n"] < summary["requested"]:
        raise RuntimeError(
            f"{run.folder} has {summary['n']} of {summary['requested']} images: run the same command "
            "again to finish it, or export its answers so far with --to csv"
        )
    return summary


def conditions(summary: Summary) -> Iterator[ConditionResult]:
    """Yield the conditions of a run, `robust` last if anything was attacked."""
    rows = {row["label"]: row for row in summary["spec"]["attacks"]}
    yield ConditionResult("clean", summary["clean"], "the images as they are")
    if "random" in summary:
        yield ConditionResult(
            "random", summary["random"], f"random noise of the threat's size ({threat(summary)})"
        )
    for key in ("attacks", "known_noise", "unbounded", "corruptions"):
        for row in summary[key]:
            entry = rows[row["name"]]
            if key == "corruptions":
                about = f"the corruption {entry['name']}"
            else:
                about = f"the attack {entry['name']}, which sees {sees(entry)}"
                known = entry.get("knows")
                about += f"; {known_words(known)}" if known else ""
                about += "" if key == "unbounded" else f"; {threat(summary)}"
            yield ConditionResult(row["name"], row["robust"], about)
    if summary["attacks"]:
        about = f"the attack that counts, chosen for each image on other draws; {threat(summary)}"
        yield ConditionResult("robust", summary["robust"], about)


def threat(summary: Summary) -> str:
    """The threat in short form: `linf 8/255`."""
    return f"{summary['threat']['norm']} {eps_words(summary['threat']['eps'])}"


def data_name(summary: Summary) -> str:
    """The data set with its split: `cifar10`, `cifar10-train`."""
    data = summary["spec"]["data"]
    split = data.get("split")
    name = str(data["name"]).replace(":", ".")
    return name if split in (None, "test") else f"{name}-{split}"


def model_words(summary: Summary) -> str:
    """The model in words: the classifier, and the defense before it."""
    part = summary["spec"]["classifier"]
    weights = part.get("weights")
    name = f"{part['name']} ({weights})" if isinstance(weights, str) else str(part["name"])
    return f"{name}; defense: {summary['threat_model']['the defense']}"


def red_doubts(summary: Summary) -> list[str]:
    """The names of the doubts that are red: reasons not to believe the numbers."""
    return [doubt["name"] for doubt in summary["doubts"] if doubt["severity"] == "red"]
