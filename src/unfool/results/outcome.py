"""The outcome of an image in an evaluation: a line of JSON in the run's folder."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

# Fields in which two records of the same image may differ.
MEASURED = ("seconds", "cost", "made_by", "sanity", "quality", "loss_curves")


class SanityCheck(TypedDict):
    """What the sanity checks of the model showed on one image (`evaluation.sanity_checks`).

    Attributes:
        probabilities: Whether the model returned probabilities, not logits.
        random: Whether two draws gave different logits.
        alike: Whether an image alone got the same logits as in a batch.
        gradients: By loss, the largest absolute gradient.
        slope: How much the margin rose over a small step, as the gradient predicted, and in fact.
        clamped: The share of values whose gradient was 0 at every draw.
        agreement: How much the gradients of several draws have in common; None without gradients.
    """

    probabilities: bool
    random: bool
    alike: bool
    gradients: dict[str, float]
    slope: list[float]
    clamped: NotRequired[float]
    agreement: NotRequired[float | None]


Nothing = Annotated[dict[str, Any], Field(max_length=0)]  # an empty table


class Curtailed(TypedDict):
    """The rest of a verdict that stopped once no draw could change it (`evaluation.curtail`).

    Attributes:
        of: Number of draws of the full verdict.
        further: The classes chosen after the first half of the draws, until the verdict stopped.
    """

    of: int
    further: list[int]


def first_half(k: int) -> int:
    """The number of draws that every curtailed verdict has. With fewer, no majority is settled."""
    return (k + 1) // 2


@dataclass(frozen=True)
class Condition:
    """The result of one image under one condition: clean, random noise, or an attack.

    Attributes:
        draws: The class that the model chose at each held-out draw of its noise. Of a curtailed
            verdict, only the first half of the draws: every image has them, so their mean does not
            depend on when verdicts stopped.
        undefended: The class that the classifier without its defense chose; None if there is no
            defense.
        size: The norm of the perturbation, in the threat's norm.
        attacker_error_rate: The share of wrong answers on the attacker's own draws, by which they
            choose.
        same_image_as: The earlier condition whose image this is, if the attack skipped the image
            (`evaluation.skip_broken`); empty if it is the attack's own.
        curtailed: The rest of a curtailed verdict; None if all draws are in `draws`.
    """

    draws: list[int]
    undefended: int | None
    size: float
    attacker_error_rate: float
    same_image_as: str = ""
    curtailed: Curtailed | None = None

    @property
    def k(self) -> int:
        """Number of draws of the full verdict, on which `won` and `always` are based."""
        return self.curtailed["of"] if self.curtailed else len(self.draws)

    @property
    def taken(self) -> list[int]:
        """The class at each draw that was taken; a curtailed verdict has only those it needed."""
        return [*self.draws, *(self.curtailed["further"] if self.curtailed else ())]

    def rate(self, label: int) -> float:
        """The share of `draws` that give the class `label`."""
        return self.draws.count(label) / len(self.draws)

    def won(self, label: int) -> bool:
        """Whether the class `label` has more of the k draws than any other; on a tie, none has."""
        return winner(self.taken) == label

    def always(self, label: int) -> bool:
        """Whether all k draws give the class `label`."""
        return self.taken.count(label) == self.k

    def complete(self, label: int) -> bool:
        """Whether a curtailed verdict has its first half, and stopped just when it was settled."""
        taken, k = self.taken, self.k
        before = taken[:-1] if len(taken) > first_half(k) else []
        return (
            len(self.draws) == first_half(k)
            and len(taken) <= k
            and settled(taken, label, k)
            and not (before and settled(before, label, k))
        )


def winner(draws: Sequence[int]) -> int | None:
    """The class that was chosen most often; None on a tie."""
    first, *others = Counter(draws).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]


def settled(draws: Sequence[int], label: int, k: int) -> bool:
    """Whether no remaining draw can change whether the majority is right, or whether all draws are.

    Args:
        draws: The classes chosen so far, one at least.
        label: The class of the image.
        k: Number of draws in all.
    """
    right, remaining = draws.count(label), k - len(draws)
    if right == len(draws):  # all may still be right
        return not remaining
    most_wrong = max(n for answer, n in Counter(draws).items() if answer != label)
    return right > most_wrong + remaining or right + remaining <= most_wrong


@dataclass(frozen=True)
class Outcome:
    """The result of one image.

    Attributes:
        index: Its place in the data set.
        label: Its class.
        conditions: By name: `clean`, `random`, and each attack.
        chosen: The condition that the attacker would submit, chosen on their own draws.
        seconds: Time spent on it.
        cost: Network calls spent on it.
        made_by: The versions of the software.
        sanity: What the sanity checks showed; on the first images only.
        quality: By condition, how far the image is from the clean one, `before` and `after` it is
            purified (`image_quality.measure`); empty in runs made before it was measured.
        loss_curves: By attack, its mean loss over its steps (`loss_curves.curves`). Attacks that
            follow no gradient have none, and neither have runs made before it was recorded.
    """

    index: int
    label: int
    conditions: dict[str, Condition]
    chosen: str
    seconds: float
    cost: dict[str, float]
    sanity: SanityCheck | Nothing = field(default_factory=dict)
    made_by: str = ""
    quality: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    loss_curves: dict[str, list[float]] = field(default_factory=dict)

    def condition(self, name: str) -> Condition:
        """The condition of this name; `robust` is the one that the attacker would submit."""
        return self.conditions[self.chosen if name == "robust" else name]

    def rate(self, name: str) -> float:
        """The share of right draws under a condition (`condition`)."""
        return self.condition(name).rate(self.label)


class Indexed(TypedDict, extra_items=Any):
    """What every record of a run contains: the image's place in the data set."""

    index: int


@dataclass(frozen=True)
class Line:
    """The record of one image, as it was written.

    Attributes:
        index: The image's place in the data set.
        text: The record as JSON.
        location: The file and the line.
    """

    index: int
    text: bytes
    location: str

    def reproducible_part(self) -> dict[str, Any]:
        """Return the record without what differs between machines."""
        return {key: v for key, v in json.loads(self.text).items() if key not in MEASURED}
