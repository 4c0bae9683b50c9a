"""The role of each attack of a run: it counts, is listed next to those that count, or is none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unfool.attacks.autoattack import EOT
from unfool.results.spec import AttackEntry
from unfool.spec import part

GRADIENT_FREE = ("random-search", "salt-and-pepper", "square")  # attacks without gradients
TRANSFER = ("transfer",)  # attacks on another classifier, without querying the model
PRECOMPUTED = ("images",)  # attacks made before the run, by an unknown gradient
EXACT_VIEWS = ("exact", "no-elimination", "per-step")  # views with the whole model's exact gradient


class Roles(NamedTuple):
    """The attack entries of a checked spec, sorted by role.

    Attributes:
        attacks: The attacks from which the attacker chooses: those within the threat; if there are
            none, those that the threat does not limit.
        unbounded: Attacks that the threat does not limit, if others are within it.
        corruptions: Changes that nobody chose to fool the model.
        known_noise: Attacks that know some of the defense's noise.
    """

    attacks: list[AttackEntry]
    unbounded: list[AttackEntry]
    corruptions: list[AttackEntry]
    known_noise: list[AttackEntry]


def roles(rows: Sequence[AttackEntry]) -> Roles:
    """Sort attack entries by role."""
    corruptions = [row for row in rows if not row.get("adversarial", True)]
    known_noise = [row for row in rows if "knows" in row]
    attackers = [row for row in rows if row.get("adversarial", True) and "knows" not in row]
    within_threat = [row for row in attackers if row.get("bounded", True)]
    unbounded = [row for row in attackers if not row.get("bounded", True)]
    if not within_threat:
        within_threat, unbounded = unbounded, []
    return Roles(within_threat, unbounded, corruptions, known_noise)


def initial_conditions(by_role: Roles) -> list[str]:
    """Return what attackers can submit without an attack: `clean`, and usually `random`.

    There is no `random` if the threat limits no attack. It agrees with `evaluate.Judge.candidates`.
    """
    has_bounded = any(row.get("bounded", True) for row in by_role.attacks)
    only_known_noise = by_role.known_noise and not (by_role.attacks or by_role.corruptions)
    return ["clean", *(["random"] if has_bounded or only_known_noise else [])]


def exact_attacks(attacks: Mapping[str, AttackEntry]) -> dict[str, AttackEntry]:
    """Return the attacks that follow the exact gradient of the whole model, by label.

    Attacks from outside the menu are not among them, because it is unknown what gradient they use.
    """
    return {
        name: row
        for name, row in attacks.items()
        if view_name(row) in EXACT_VIEWS
        and row.get("name") not in (*GRADIENT_FREE, *TRANSFER, *PRECOMPUTED)
        if not is_custom(row)
    }


def special_climb(row: AttackEntry) -> str | None:
    """Describe what an attack does beyond a plain ascent of the mean loss; None if nothing."""
    if row.get("weights") == "em":
        return "which weighs the random draws"
    if view_name(row) == "per-step":
        return "which maximizes a loss at every step of the purifier"
    if row.get("name") in ("carlini-wagner", "deepfool", "fab"):
        return "which searches for the nearest decision boundary"
    return None


def is_custom(row: AttackEntry) -> bool:
    """Whether an attack is from a module that the spec names, not from the menu."""
    return ":" in row.get("name", "")


def view_name(row: AttackEntry) -> str:
    """The name of an attack's view, without its options."""
    return part("view", row["view"])["name"]


def draws_per_step(row: AttackEntry) -> int | None:
    """The draws that an attack takes per step, if any; AutoAttack's depend on its version."""
    return row.get("eot") or EOT.get(row.get("version", ""))
