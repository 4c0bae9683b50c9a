"""The report as Markdown, for a code review, a wiki or a terminal."""

from collections.abc import Mapping
from typing import Any

import yaml

from unfool.report import sentences
from unfool.report.plates import ReportFigure
from unfool.report.rows import columns, doubts
from unfool.report.tables import (
    accuracy_table,
    class_table,
    cost_table,
    knowing_table,
    ladder_table,
    markdown,
    quality_table,
    quote,
    resubmission_table,
)


def to_markdown(summary: Mapping[str, Any], plates: Mapping[str, ReportFigure]) -> str:
    """The whole report in Markdown.

    Args:
        summary: What the verdict says.
        plates: The figures, which lie in `figures/` beside it.
    """
    tables = (quality_table, ladder_table, resubmission_table, knowing_table)
    table, rungs, again, known = (make(summary) for make in tables)
    notes = filter(None, (sentences.unfinished(summary), sentences.warning(summary)))
    parts = [
        f"# {quote(sentences.headline(summary))}",
        f"{quote(sentences.overline(summary))}; run {summary['run']}. {sentences.basis(summary)}",
        *(f"> **{quote(note)}**" for note in notes),
        quote(" ".join(sentences.lead(summary))),
        "## Doubts",
        _doubts(summary),
        "## Accuracy",
        accuracy_table(summary),
        _meanings(summary),
        _figure(plates, "accuracy"),
        *(["## Attack by attack", rungs, quote(sentences.about_ladder(summary))] if rungs else []),
        *(["## With the noise known", known, quote(sentences.KNOWING)] if known else []),
        _figure(plates, "loss_curves"),
        *(["## Submitted again", again, sentences.RESUBMISSION] if again else []),
        _figure(plates, "resubmission"),
        "## Threat model",
        "\n".join(f"- **{quote(k)}**: {quote(v)}" for k, v in summary["threat_model"].items()),
        _figure(plates, "pictures"),
        _figure(plates, "confidence"),
        *(["## Distance to the clean pictures", table, sentences.QUALITY] if table else []),
        "## By class",
        class_table(summary),
        _figure(plates, "classes"),
        "## Cost",
        cost_table(summary),
        "## How to reproduce it",
        reproduction(summary, reproduce(summary)),
        "This report anew, from the run's folder: `unfool report FOLDER`",
        f"```yaml\n{spec_yaml(summary)}```",
        "## Versions",
        markdown(["what", "version"], [list(pair) for pair in versions(summary).items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def spec_yaml(summary: Mapping[str, Any]) -> str:
    """The spec as it may be saved and run again."""
    return yaml.safe_dump(summary["spec"], sort_keys=False, allow_unicode=True, width=88)


def reproduce(summary: Mapping[str, Any]) -> str:
    """The command that makes the run anew."""
    return f"unfool evaluate spec.yaml --out runs/{summary['run']}-again"


def reproduction(summary: Mapping[str, Any], command: str) -> str:
    """How to make a run anew, in a sentence of Markdown before its spec."""
    if function := summary["spec"].get("python"):
        return f"It was asked from Python, by `{function}`, of objects that are described below."
    return f"Save the spec below as `spec.yaml`, then: `{command}`"


def versions(summary: Mapping[str, Any]) -> dict[str, str]:
    """What made the run, and this report of it."""
    return {**summary["versions"], "unfool (this report)": summary["unfool"]}


def _doubts(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{number}. **{doubt['severity']}: {quote(doubt['name'])}**: {quote(doubt['why'])}"
        for number, doubt in enumerate(doubts(summary), 1)
    ]
    checked, unchecked = sentences.checks(summary)
    if not lines:
        lines = ["No doubts were raised. Checked:", "", *(f"- {text}" for text in checked)]
    if unchecked:
        lines += [
            "",
            "Not checked, as no picture of those the model itself is examined on is done yet:",
            "",
        ]
        lines += [f"- {text}" for text in unchecked]
    return "\n".join(lines)


def _meanings(summary: Mapping[str, Any]) -> str:
    lines = [f"- **{column.title}**: {column.meaning}" for column in columns(summary)]
    if about := sentences.about_robust(summary):
        lines.append(f"- {about.replace('robust:', '**robust**:', 1)}")
    if about := sentences.about_beyond(summary):
        lines.append(f"- {quote(about)}")
    if summary.get("corruptions"):
        lines.append(f"- {quote(sentences.about_corrupted(summary))}")
    notes = [
        quote(note) for note in (sentences.broken(summary), sentences.scatter(summary)) if note
    ]
    brackets = "In brackets: 95 % intervals."
    return "\n".join([*lines, "", " ".join([brackets, *notes])])


def _figure(plates: Mapping[str, ReportFigure], name: str) -> str:
    if name not in plates:
        return ""
    plate = plates[name]
    return f"![{plate.title}](figures/{name}.png)\n\n*{plate.title}.* {quote(plate.caption)}"
