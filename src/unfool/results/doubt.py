"""What a doubt is, and what several of them ask of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from unfool.attacks.autoattack import EOT
from unfool.results.attack_roles import BLIND, ELSEWHERE, TRANSFER
from unfool.results.run_folder import Outcome
from unfool.spec import part
from unfool.statistics import change_of

AttackRow = Mapping[str, Any]
EXACT_VIEWS = ("exact", "no-elimination", "per-step")  # with the exact gradient of the whole model


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


def exact(attacks: Mapping[str, AttackRow]) -> dict[str, AttackRow]:
    """Those of `attacks` that climb the exact gradient of the whole model, by label.

    Not one of somebody's own, of which nobody here knows what it asks for.
    """
    return {
        name: row
        for name, row in attacks.items()
        if seen(row) in EXACT_VIEWS and row.get("name") not in (*BLIND, *TRANSFER, *ELSEWHERE)
        if not own(row)
    }


def own(row: AttackRow) -> bool:
    """Whether an attack is not of the menu, but of a module that the spec names."""
    return ":" in row.get("name", "")


def special(row: AttackRow) -> str | None:
    """What an attack does that a plain climb of the mean loss does not, in words; None for nothing."""
    if row.get("weights") == "em":
        return "which weighs the random draws"
    if seen(row) == "per-step":
        return "which climbs a loss at every step of the chain"
    if row.get("name") in ("carlini-wagner", "deepfool", "fab"):
        return "which looks for the nearest boundary"
    return None


def seen(row: AttackRow) -> str:
    """The name of what the attacker takes the model for, whatever its options."""
    return part("view", row["view"])["name"]


def eot(row: AttackRow) -> int | None:
    """The draws that an attack takes per step, if it takes any; AutoAttack's follow its version."""
    return row.get("eot") or EOT.get(row.get("version", ""))


def lead(outcomes: Sequence[Outcome], one: str, other: str) -> float:
    """By how much `one` leaves more right than `other`: the low end of a paired 95 % interval.

    It has a width even if all images differ alike, so a few images raise no doubt.
    """
    gaps = [
        mean(d == o.label for d in o.conditions[one].draws)
        - mean(d == o.label for d in o.conditions[other].draws)
        for o in outcomes
    ]
    draws = min(len(outcomes[0].conditions[name].draws) for name in (one, other))
    return change_of(gaps, draws).low
