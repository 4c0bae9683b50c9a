"""Doubts: reasons not to believe a result, each a function of what the run recorded.

docs/doubts.md has a paragraph on each: when it is raised, what it means, what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from defuse.evaluation.record import Outcome


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
    spec: Mapping[str, Any], outcomes: Sequence[Outcome], judged: Mapping[str, Any], robust: Any
) -> list[Doubt]:
    """Every doubt about a run.

    Args:
        spec: What was asked.
        outcomes: What came of each image.
        judged: `verdict.Judged` of each condition, by name.
        robust: `verdict.Judged` of the attack that counts.
    """
    probes = [outcome.probe for outcome in outcomes if outcome.probe]
    attacks = {row["label"]: row for row in spec["attacks"]}
    return [
        *_probabilities(probes),
        *_no_gradient(probes, attacks),
        *_one_draw(probes, attacks),
        *_weaker_than_random(judged, attacks),
        *_cheap_beats_exact(judged, attacks),
        *_no_exact_view(spec, attacks),
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
    dead = sum(not probe["gradient"] > 0 for probe in probes)
    if dead and any(row["view"] != "undefended" for row in attacks.values()):
        yield Doubt(
            "zero-gradient",
            "red" if dead > len(probes) / 2 else "yellow",
            f"the gradient of the cross-entropy is zero or not finite on {dead} of {len(probes)} clean "
            "images: a gradient attack cannot start there; try the loss `margin`, and look for "
            "rounding or clipping in the model",
        )


def _one_draw(
    probes: Sequence[Mapping[str, Any]], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    random = any(probe["random"] for probe in probes)
    lazy = [n for n, row in attacks.items() if row.get("eot") == 1 and row["view"] != "undefended"]
    if random and lazy:
        yield Doubt(
            "random-model-eot-1",
            "yellow",
            f"the model is random, and {', '.join(lazy)} averages over one draw per step: raise `eot`",
        )


def _weaker_than_random(
    judged: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    noise = judged["random"].mean
    for name in attacks:
        if judged[name].mean.low > noise.high:
            yield Doubt(
                "weaker-than-random",
                "red",
                f"{name} leaves {judged[name].mean.accuracy:.1%} right, random noise of the same size "
                f"{noise.accuracy:.1%}: the attack does not work",
            )


def _cheap_beats_exact(
    judged: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    exact = [name for name, row in attacks.items() if row["view"] == "exact"]
    cheap = [name for name, row in attacks.items() if row["view"] in ("bpda", "undefended")]
    if not exact:
        return
    best = min(exact, key=lambda name: judged[name].mean.accuracy)
    for name in cheap:
        if judged[name].mean.high < judged[best].mean.low:
            yield Doubt(
                "cheap-beats-exact",
                "red",
                f"{name}, which does not know the gradient, leaves {judged[name].mean.accuracy:.1%} "
                f"right, and {best} {judged[best].mean.accuracy:.1%}: give the exact attack more "
                "steps, draws (eot) or restarts, or the loss `margin`",
            )


def _no_exact_view(
    spec: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Doubt]:
    if spec.get("purifier") and all(row["view"] != "exact" for row in attacks.values()):
        yield Doubt(
            "no-adaptive-attack",
            "red",
            "no attack differentiates through the defence: nothing here says how robust it is; add an "
            "attack with the view `exact`",
        )


def _few_images(robust: Any) -> Iterator[Doubt]:
    if robust.mean.high - robust.mean.low > 0.2:
        yield Doubt(
            "few-images",
            "yellow",
            f"the interval of the robust accuracy is {robust.mean.high - robust.mean.low:.0%} wide: "
            "evaluate more images",
        )
