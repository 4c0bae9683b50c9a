"""The role of each attack of a run: it counts, is listed next to those that count, or is no attack."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unfool.attacks.autoattack import EOT
from unfool.results.spec import AttackEntry
from unfool.spec import part

BLIND = ("random-search", "salt-and-pepper", "square")  # attacks that ask for no gradient
TRANSFER = ("transfer",)  # attacks on another classifier, which never ask the model
ELSEWHERE = ("images",)  # whose images were made before, nobody here knows by what gradient
EXACT_VIEWS = ("exact", "no-elimination", "per-step")  # with the whole model's exact gradient


class Roles(NamedTuple):
    """The rows of a checked spec's attacks, sorted.

    Attributes:
        attacks: Those of which the attacker has the choice: what the threat bounds; if it bounds
            none, those that are bounded by themselves alone.
        unbounded: An attacker's, but not within the threat that bounds the others.
        corruptions: What nobody chose to fool the model.
        known_noise: Those of an attacker who was told some of the defense's noise.
    """

    attacks: list[AttackEntry]
    unbounded: list[AttackEntry]
    corruptions: list[AttackEntry]
    known_noise: list[AttackEntry]


def roles(rows: Sequence[AttackEntry]) -> Roles:
    """What part each of `rows` plays."""
    corruptions = [row for row in rows if not row.get("adversarial", True)]
    knowing = [row for row in rows if "knows" in row]
    attackers = [row for row in rows if row.get("adversarial", True) and "knows" not in row]
    held = [row for row in attackers if row.get("bounded", True)]
    beyond = [row for row in attackers if not row.get("bounded", True)]
    if not held:
        held, beyond = beyond, []
    return Roles(held, beyond, corruptions, knowing)


def given_to(played: Roles) -> list[str]:
    """What attackers have before they attack: the image, and random noise unless all is unbounded.

    As `evaluate.Judge.candidates`, of the rows of a spec.
    """
    held = any(row.get("bounded", True) for row in played.attacks)
    alone = played.known_noise and not (played.attacks or played.corruptions)
    return ["clean", *(["random"] if held or alone else [])]


def exact_attacks(attacks: Mapping[str, AttackEntry]) -> dict[str, AttackEntry]:
    """Those of `attacks` that climb the exact gradient of the whole model, by label.

    Not one of somebody's own, of which nobody here knows what it asks for.
    """
    return {
        name: row
        for name, row in attacks.items()
        if view_name(row) in EXACT_VIEWS and row.get("name") not in (*BLIND, *TRANSFER, *ELSEWHERE)
        if not is_custom(row)
    }


def special_climb(row: AttackEntry) -> str | None:
    """What an attack does that a plain climb of the mean loss does not, in words; None for nothing."""
    if row.get("weights") == "em":
        return "which weighs the random draws"
    if view_name(row) == "per-step":
        return "which maximizes a loss at every step of the purifier"
    if row.get("name") in ("carlini-wagner", "deepfool", "fab"):
        return "which searches for the nearest decision boundary"
    return None


def is_custom(row: AttackEntry) -> bool:
    """Whether an attack is not of the menu, but of a module that the spec names."""
    return ":" in row.get("name", "")


def view_name(row: AttackEntry) -> str:
    """The name of what the attacker takes the model for, whatever its options."""
    return part("view", row["view"])["name"]


def draws_per_step(row: AttackEntry) -> int | None:
    """The draws that an attack takes per step, if it takes any; AutoAttack's follow its version."""
    return row.get("eot") or EOT.get(row.get("version", ""))
