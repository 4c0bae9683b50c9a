"""Doubts: reasons not to believe a result, each a function of what the run recorded.

docs/doubts.md has a paragraph on each: when it is raised, what it means, what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from defuse.attacks.autoattack import EOT
from defuse.evaluation.record import Outcome
from defuse.evaluation.roles import BLIND, roles
from defuse.spec import part

# views without the exact gradient of the whole model
CHEAP = ("adjoint", "bpda", "matched", "surrogate", "undefended")
FAINT = 1e-10  # a gradient of [0, 1] images that is no gradient


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


def all_doubts(
    spec: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    judged: Mapping[str, Any],
    robust: Any,
    classes: int,
) -> list[Doubt]:
    """Every doubt about a run.

    Args:
        spec: What was asked.
        outcomes: What came of each image.
        judged: `verdict.Judged` of each condition, by name.
        robust: `verdict.Judged` of the attack that counts.
        classes: How many classes the data set has.
    """
    probes = [outcome.probe for outcome in outcomes if outcome.probe]
    attacks = {row["label"]: row for row in roles(spec["attacks"]).attacks}
    return [
        *_probabilities(probes),
        *_no_gradient(probes, attacks),
        *_wrong_gradient(probes, attacks),
        *_batch_matters(probes),
        *_versions(outcomes),
        *_one_draw(probes, attacks),
        *_unchanged(outcomes, attacks),
        *_weaker_than_random(outcomes, attacks),
        *_cheap_beats_exact(outcomes, attacks),
        *(_no_exact_view(spec, attacks) if attacks or not spec["attacks"] else ()),
        *_guessing(judged, classes),
        *_few_images(robust),
    ]


def _probabilities(probes: Sequence[Mapping[str, Any]]) -> Iterator[Doubt]:
    if probes and all(probe["probabilities"] for probe in probes):
        yield Doubt(
            "probabilities-for-logits",
            "red",
            "the classifier returns probabilities, not logits: the attacks' losses saturate and their "
            "gradients vanish; remove its softmax",
        )


def _no_gradient(
    probes: Sequence[Mapping[str, Any]], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    for loss in sorted({row.get("loss", "margin") for row in _exact(attacks)}):
        dead = sum(not probe["gradients"].get(loss, 1) > FAINT for probe in probes)
        if dead:
            yield Doubt(
                "zero-gradient",
                "red" if dead > len(probes) / 2 else "yellow",
                f"the gradient of the loss `{loss}` is below {FAINT:g} or not finite on {dead} of "
                f"{len(probes)} images: an attack that climbs it gets nowhere; look for rounding or "
                "clipping in the model, and try the loss `margin` and the view `bpda`",
            )


def _wrong_gradient(
    probes: Sequence[Mapping[str, Any]], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    slopes = [probe["slope"] for probe in probes]
    off = sum(not 0.5 * promised <= found <= 2 * promised for promised, found in slopes)
    if _exact(attacks) and off > len(slopes) / 2:
        yield Doubt(
            "gradient-disagrees",
            "red",
            f"over a small step the loss does not rise as the gradient says on {off} of "
            f"{len(slopes)} images (less than half of it, or more than twice): the gradient is wrong, "
            "or masked by rounding or clipping; add an attack with the view `bpda`",
        )


def _batch_matters(probes: Sequence[Mapping[str, Any]]) -> Iterator[Doubt]:
    if not all(probe["alike"] for probe in probes):
        yield Doubt(
            "batch-matters",
            "red",
            "the model answers otherwise for an image alone than in a batch: is it in eval mode, and "
            "does it draw only from its `noise`?",
        )


def _versions(outcomes: Sequence[Outcome]) -> Iterator[Doubt]:
    made_by = sorted({outcome.made_by for outcome in outcomes})
    if len(made_by) > 1:
        yield Doubt(
            "mixed-versions",
            "yellow",
            f"parts of the run were made by different versions ({'; '.join(made_by)}): numbers drawn "
            "and computed may differ between them",
        )


def _exact(attacks: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rows = attacks.values()
    return [row for row in rows if row["view"] == "exact" and row.get("name") not in BLIND]


def _unchanged(
    outcomes: Sequence[Outcome], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    for name, row in attacks.items():
        right = [o for o in outcomes if o.conditions[name].wrong < 0.5]
        same = sum(o.conditions[name].size == 0 for o in right)
        if row["view"] == "exact" and right and same > len(right) / 10:
            yield Doubt(
                "images-unchanged",
                "red",
                f"{name} gave back {same} of the {len(right)} images that it did not break as they "
                "were: it found no way uphill; try the loss `margin`, more restarts, or more draws",
            )


def _one_draw(
    probes: Sequence[Mapping[str, Any]], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    random = any(probe["random"] for probe in probes)
    lazy = [n for n, row in attacks.items() if _eot(row) == 1 and row["view"] != "undefended"]
    if random and lazy:
        yield Doubt(
            "random-model-eot-1",
            "yellow",
            f"the model is random, and {', '.join(lazy)} averages over one draw per step: raise `eot`",
        )


def _eot(row: Mapping[str, Any]) -> int | None:
    """The draws that an attack takes per step, if it takes any; AutoAttack's follow its version."""
    return row.get("eot") or EOT.get(row.get("version", ""))


def _weaker_than_random(
    outcomes: Sequence[Outcome], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    for name, row in attacks.items():
        lead = _lead(outcomes, name, "random") if row.get("bounded", True) else 0.0
        if lead > 0:
            yield Doubt(
                "weaker-than-random",
                "red",
                f"{name} leaves more images right than random noise of the same size, by at least "
                f"{lead:.1%} on the same images and draws: the attack does not work",
            )


def _cheap_beats_exact(
    outcomes: Sequence[Outcome], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    exact = [name for name, row in attacks.items() if row["view"] == "exact"]
    cheap = [name for name, row in attacks.items() if part("view", row["view"])["name"] in CHEAP]
    for name in cheap if exact else ():
        lead = min(_lead(outcomes, other, name) for other in exact)
        if lead > 0:
            yield Doubt(
                "cheap-beats-exact",
                "red",
                f"{name}, which does not use the exact gradient, leaves fewer images right than "
                f"{', '.join(exact)}, by at least {lead:.1%} on the same images and draws: give the "
                "exact attack more steps, draws (eot) or restarts, or the loss `margin`",
            )


def _lead(outcomes: Sequence[Outcome], one: str, other: str) -> float:
    """By how much `one` leaves more right than `other`: the low end of a paired 95 % interval."""
    gaps = [
        mean(d == o.label for d in o.conditions[one].draws)
        - mean(d == o.label for d in o.conditions[other].draws)
        for o in outcomes
    ]
    if len(gaps) < 2:
        return 0.0
    return mean(gaps) - 1.96 * stdev(gaps) / len(gaps) ** 0.5


def _no_exact_view(
    spec: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    if spec.get("purifier") and not _exact(attacks):
        yield Doubt(
            "no-adaptive-attack",
            "red",
            "no attack differentiates through the defence: nothing here says how robust it is; add an "
            "attack with the view `exact`",
        )


def _guessing(judged: Mapping[str, Any], classes: int) -> Iterator[Doubt]:
    clean = judged["clean"].bare or judged["clean"].mean
    if clean.low <= 1 / classes:
        yield Doubt(
            "no-better-than-guessing",
            "red",
            f"on clean images the classifier is right {clean.accuracy:.1%} of the time, and guessing "
            f"would be {1 / classes:.1%}: are its weights loaded, its classes in the order of the data "
            "set's, and its `mean` and `std` those of its training?",
        )


def _few_images(robust: Any) -> Iterator[Doubt]:
    if robust.mean.high - robust.mean.low > 0.2:
        yield Doubt(
            "few-images",
            "yellow",
            f"the interval of the {robust.name} accuracy is "
            f"{100 * (robust.mean.high - robust.mean.low):.0f} points wide: "
            "evaluate more images",
        )
