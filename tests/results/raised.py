"""Helpers that build outcomes and compute the doubts that a run with them raises."""

from collections.abc import Sequence
from typing import Any

from unfool.results.doubts.doubt import Doubt
from unfool.results.doubts.run import all_doubts
from unfool.results.outcome import Condition, Outcome, SanityCheck
from unfool.results.summary import judge
from whole_run import manifest

SOUND: SanityCheck = {
    "probabilities": False,
    "random": False,
    "alike": True,
    "gradients": {"ce": 1.0, "margin": 1.0},
    "slope": [1.0, 1.0],
}


def outcomes_of(attacks: Sequence[Any], condition: Condition, count: int = 8) -> list[Outcome]:
    """Return outcomes of images of class 0, with the same condition for every attack and none."""
    names = ["clean", "random", *(row["label"] for row in attacks)]
    conditions = dict.fromkeys(names, condition)
    return [Outcome(i, 0, conditions, names[-1], 0.0, {}) for i in range(count)]


def doubts_about(outcomes: Sequence[Outcome], attacks: Sequence[Any], **parts: Any) -> list[Doubt]:
    """Return every doubt about these outcomes of `attacks`, in a run whose spec has these parts."""
    asked = manifest(range(len(outcomes)), {"attacks": list(attacks), **parts})["spec"]
    judged = {
        name: judge(name, outcomes, lambda outcome, name=name: outcome.conditions[name])
        for name in outcomes[0].conditions
    }
    robust = judge("robust", outcomes, lambda outcome: outcome.conditions[outcome.chosen])
    return all_doubts(asked, outcomes, judged, robust, ["a", "b"])
