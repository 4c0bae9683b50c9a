"""The result of each image of a run, as a record for tables, CSV files, and JSON files."""

from collections.abc import Sequence

from typing_extensions import TypedDict

from unfool.results.outcome import Condition, Outcome
from unfool.results.summary import winner


class ConditionRecord(TypedDict):
    """What the model answered to one version of an image.

    Attributes:
        right: How many of the draws are right.
        draws: How many draws there are.
        majority: Whether the true class leads.
        size: The norm of the change, in the threat's norm.
    """

    right: int
    draws: int
    majority: bool
    size: float


class ImageRecord(TypedDict):
    """What became of one image.

    Attributes:
        index: Its place in the data set.
        label: Its class, as a number.
        class_name: Its class.
        chosen: The condition that the attacker would submit.
        conditions: What the model answered under each condition, by name.
    """

    index: int
    label: int
    class_name: str
    chosen: str
    conditions: dict[str, ConditionRecord]


class BothRecords(TypedDict):
    """What two models answered to the same version of an image, or to that of the same attack."""

    a: ConditionRecord
    b: ConditionRecord


class PairedImage(TypedDict):
    """What became of one image in two runs.

    Attributes:
        index: Its place in the data set.
        label: Its class, as a number.
        class_name: Its class.
        conditions: What both models answered under each condition, by name.
    """

    index: int
    label: int
    class_name: str
    conditions: dict[str, BothRecords]


def image_records(outcomes: Sequence[Outcome], classes: Sequence[str]) -> list[ImageRecord]:
    """A record for each outcome, in the same order."""
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
    """What the model answered to one version of an image of class `label`."""
    draws = condition.draws
    return {
        "right": draws.count(label),
        "draws": len(draws),
        "majority": winner(draws) == label,
        "size": condition.size,
    }
