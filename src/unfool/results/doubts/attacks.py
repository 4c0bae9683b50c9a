"""Doubts about attacks that other attacks of the same run beat, on the same images and draws."""

from collections.abc import Iterator, Mapping, Sequence

from unfool.results.attack_roles import (
    EXACT_VIEWS,
    GRADIENT_FREE,
    PRECOMPUTED,
    TRANSFER,
    exact_attacks,
    roles,
    special_climb,
    view_name,
)
from unfool.results.doubts.doubt import Doubt
from unfool.results.outcome import Outcome
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.statistics import paired_difference_interval, percent

# views without the exact gradient of the whole model
WEAKER_VIEWS = (
    "adjoint",
    "bfloat16",
    "bpda",
    "surrogate-same-noise",
    "surrogate",
    "classifier-only",
)


def cheap_beats_exact(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """Yield a doubt for each attack without the exact gradient that beats those with it."""
    precomputed = [name for name, row in attacks.items() if row.get("name") in PRECOMPUTED]
    cheap = [
        name
        for name, row in attacks.items()
        if view_name(row) in WEAKER_VIEWS or row.get("name") in TRANSFER
    ]
    strong = list(exact_attacks(attacks))
    for name, by in beaten(outcomes, [*cheap, *precomputed], strong):
        how = "was made elsewhere" if name in precomputed else "does not use the exact gradient"
        yield Doubt(
            "cheap-beats-exact",
            "red",
            f"{name}, which {how}, leaves fewer images right than {', '.join(strong)}, by at least "
            f"{percent(by)} on the same images and draws, although the exact gradient should win, so a "
            "stronger attack would lower the robust accuracy further: give the exact attack more "
            "steps, draws (eot), or restarts, or the loss `margin`",
        )


def blind_beats_gradient(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """Yield a doubt for each attack without gradients that beats those with the exact gradient."""
    within_threat = {name: row for name, row in attacks.items() if row.get("bounded", True)}
    blind = [
        n
        for n, row in within_threat.items()
        if view_name(row) in EXACT_VIEWS and row.get("name") in GRADIENT_FREE
    ]
    strong = list(exact_attacks(within_threat))
    for name, by in beaten(outcomes, blind, strong):
        yield Doubt(
            "blind-beats-gradient",
            "red",
            f"{name}, which uses no gradient, leaves fewer images right than {', '.join(strong)}, "
            f"by at least {percent(by)} on the same images and draws, so the gradients mislead the "
            "attacks (they are masked), and the defense is weaker than their numbers say: try the "
            "loss `margin`, the view `bpda`, or more queries without gradients",
        )


def special_beats_plain(
    outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """Yield a doubt for each attack with a `special_climb` that beats those without one."""
    climbing = exact_attacks(attacks)
    special = {name: how for name, row in climbing.items() if (how := special_climb(row))}
    plain = [name for name in climbing if name not in special]
    for name, by in beaten(outcomes, list(special), plain):
        yield Doubt(
            "plain-attack-stops-short",
            "yellow",
            f"{name} ({special[name]}) leaves fewer images right than {', '.join(plain)}, by at least "
            f"{percent(by)} on the same images and draws, so images that the plain attack could not "
            "break are not robust, and this attack may have missed some, too: give it more steps, "
            "draws (eot), and restarts",
        )


def unbounded_beats_bounded(
    spec: EvaluationSpec, outcomes: Sequence[Outcome], attacks: Mapping[str, AttackEntry]
) -> Iterator[Doubt]:
    """Yield a doubt for each attack outside the threat that beats the attacks within it."""
    bounded = list(
        exact_attacks({n: row for n, row in attacks.items() if row.get("bounded", True)})
    )
    beyond = [row["label"] for row in roles(spec["attacks"]).unbounded]
    for name, by in beaten(outcomes, beyond, bounded):
        yield Doubt(
            "robust-to-this-threat-alone",
            "yellow",
            f"{name}, whose changes the threat does not limit, leaves fewer images right than "
            f"{', '.join(bounded)}, by at least {percent(by)} on the same images and draws, so the "
            "model is robust to the changes of the threat only, and other changes that people "
            "hardly notice still fool it: quote both numbers",
        )


def beaten(
    outcomes: Sequence[Outcome], weak: Sequence[str], strong: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield the attacks of `weak` that beat every attack of `strong`, and by how much."""
    for name in weak if strong else ():
        by = min(paired_gap(outcomes, other, name) for other in strong)
        if by > 0:
            yield name, by


def paired_gap(outcomes: Sequence[Outcome], one: str, other: str) -> float:
    """How much higher the accuracy under `one` is than under `other`: low end of a 95 % interval.

    The interval is paired. It has a width even if all images differ equally, so a few images raise
    no doubt.
    """
    gaps = [outcome.rate(one) - outcome.rate(other) for outcome in outcomes]
    draws = min(len(outcomes[0].conditions[name].draws) for name in (one, other))
    return paired_difference_interval(gaps, draws).low
