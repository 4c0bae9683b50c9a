"""A reason not to believe a result."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Doubt:
    """A reason not to believe a result.

    Attributes:
        name: Its heading in docs/doubts.md.
        severity: `"red"`: the numbers are not what they seem; `"yellow"`: look again.
        why: What was seen, in one sentence.
    """

    name: str
    severity: Literal["red", "yellow"]
    why: str
