"""Doubts about attacks that others of the same run beat, on the same images and draws."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from unfool.results.attack_roles import exact_attacks, roles, special_climb
from unfool.results.doubts.doubt import Doubt
from unfool.results.outcome import Outcome
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.statistics import change_of


def special_beats_plain(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """A way of climbing that another model's attacks may need, too, which the plain one did not see."""
    climbing = exact_attacks(attacks)
    told = {name: how for name, row in climbing.items() if (how := special_climb(row))}
    plain = [name for name in climbing if name not in told]
    for name, by in beaten(outcomes, list(told), plain):
        yield Doubt(
            "plain-attack-stops-short",
            "yellow",
            f"{name} ({told[name]}) leaves fewer images right than {', '.join(plain)}, by at least "
            f"{by:.1%} on the same images and draws: what the plain attack leaves is not robust, and "
            "neither may be what this one leaves; give it more steps, draws (eot) and restarts",
        )


def unbounded_beats_bounded(
    spec: EvaluationSpec, outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """A way beyond the threat that breaks what stands within it."""
    bounded = list(
        exact_attacks({n: row for n, row in attacks.items() if row.get("bounded", True)})
    )
    beyond = [row["label"] for row in roles(spec["attacks"]).unbounded]
    for name, by in beaten(outcomes, beyond, bounded):
        yield Doubt(
            "robust-to-this-threat-alone",
            "yellow",
            f"{name}, which the threat does not bound, leaves fewer images right than "
            f"{', '.join(bounded)}, by at least {by:.1%} on the same images and draws: the robust "
            "accuracy is that of the threat, not of all images that look alike; quote both",
        )


def beaten(
    outcomes: Sequence[Outcome], weak: Sequence[str], strong: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Which of the attacks `weak` leave fewer images right than each of `strong`; by how much."""
    for name in weak if strong else ():
        by = min(paired_gap(outcomes, other, name) for other in strong)
        if by > 0:
            yield name, by


def paired_gap(outcomes: Sequence[Outcome], one: str, other: str) -> float:
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
