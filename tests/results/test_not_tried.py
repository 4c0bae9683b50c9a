"""The list of what a run did not try follows from its spec."""

import pytest

from unfool import spec as specs
from unfool.evaluation import run as running
from unfool.results.not_tried import not_tried

PGD = "{name: pgd, view: exact, eot: 3, steps: 7}"


def told(*attacks: str) -> str:
    changes = [f"attacks=[{', '.join(attacks)}]"]
    return "\n".join(not_tried(running.check(specs.load("blobs", changes))))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (PGD, "exact gradient"),
        ("{name: square, queries: 10}", "without gradients"),
        ("{name: autoattack}", "AutoAttack"),
        ("{name: corruption, kind: gaussian_noise}", "Corruptions"),
        ("{name: stadv}", "no norm"),
        ("{name: pgd, view: exact, knows: both}", "knows what noise"),
    ],
)
def test_tried_attacks_are_not_listed_as_untried(attack, said):
    blind = "{name: pgd, view: classifier-only}"
    assert said in told(blind)
    assert said not in told(blind, attack)


def test_limits_of_threat_and_effort_are_listed_as_untried():
    said = told(PGD)
    assert "larger than 0.1 in linf" in said
    assert "`steps` above 7" in said
    assert "`eot` above 3" in said
    assert "Any attack" in told()
