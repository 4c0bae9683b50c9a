"""The result of each image of a run, as a record for tables, CSV files, and JSON files."""

from collections.abc import Sequence

from typing_extensions import TypedDict

from unfool.results.outcome import Condition, Outcome


class ConditionRecord(TypedDict):
    """The model's answers to one version of an image.

    Attributes:
        correct: How many of the draws are right.
        draws: How many draws there are; of a curtailed verdict, those that every image has.
        majority: Whether the true class has more draws than any other, of the full verdict.
        size: The norm of the change, in the threat's norm.
    """

    correct: int
    draws: int
    majority: bool
    size: float


class ImageRecord(TypedDict):
    """The result of one image.

    Attributes:
        index: Its place in the data set.
        label: Its class, as a number.
        class_name: Its class.
        chosen: The condition that the attacker would submit.
        conditions: The model's answers under each condition, by name.
    """

    index: int
    label: int
    class_name: str
    chosen: str
    conditions: dict[str, ConditionRecord]


class BothRecords(TypedDict):
    """The answers of two models to the same version of an image, or to that of the same attack."""

    a: ConditionRecord
    b: ConditionRecord


class PairedImage(TypedDict):
    """The result of one image in two runs.

    Attributes:
        index: Its place in the data set.
        label: Its class, as a number.
        class_name: Its class.
        conditions: The answers of both models under each condition, by name.
    """

    index: int
    label: int
    class_name: str
    conditions: dict[str, BothRecords]


def image_records(outcomes: Sequence[Outcome], classes: Sequence[str]) -> list[ImageRecord]:
    """Return a record for each outcome, in the same order."""
    return [
        {
            "index": outcome.index,
            "label": outcome.label,
            "class_name": classes[outcome.label],
            "chosen": outcome.chosen,
            "conditions": {
                name: condition_record(condition, outcome.label)
                for name, condition in outcome.conditions.items()
            },
        }
        for outcome in outcomes
    ]


def condition_record(condition: Condition, label: int) -> ConditionRecord:
    """Summarize the model's answers to one version of an image of class `label`."""
    draws = condition.draws
    return {
        "correct": draws.count(label),
        "draws": len(draws),
        "majority": condition.won(label),
        "size": condition.size,
    }
