"""What each attack of a run is taken for, and the words for it."""

import json

import pytest

from defuse import spec as specs
from defuse.cli import run
from defuse.evaluation import model_doubts
from defuse.evaluation import run as evaluation
from defuse.evaluation.record import Run
from defuse.evaluation.roles import roles
from defuse.report.gallery import Gallery

TOY = {
    "data": {"name": "blobs", "size": 4},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": {"name": "diffpure", "steps": 2},
    "threat": {"norm": "linf", "eps": 0.1},
    "evaluation": {"draws": 2, "pictures": 2},
}
PGD = {"name": "pgd", "steps": 1, "label": "pgd"}
STADV = {"name": "stadv", "steps": 2, "label": "moved"}
FOG = {"name": "corruption", "kind": "fog", "label": "fog"}


@pytest.fixture
def report(elsewhere):
    def made(*attacks, **changes):
        (elsewhere / "spec.yaml").write_text(json.dumps(TOY | {"attacks": attacks} | changes))
        assert run(["evaluate", "spec.yaml", "--quiet", "--out", "made"]) == 0
        text = (elsewhere / "made" / "report.md").read_text().replace("\\", "")
        return json.loads((elsewhere / "made" / "report.json").read_text()), text

    return made


def rows(*attacks):
    return evaluation.check(specs.load(TOY | {"attacks": list(attacks)}))["attacks"]


def names(found):
    return [[row["label"] for row in part] for part in found]


def test_what_counts():
    assert names(roles(rows(PGD, STADV, FOG))) == [["pgd"], ["moved"], ["fog"], []]
    assert names(roles(rows(STADV, FOG))) == [["moved"], [], ["fog"], []]
    assert names(roles(rows(FOG))) == [[], [], ["fog"], []]
    assert names(roles([])) == [[], [], [], []]


def test_an_attack_beyond_the_threat_stands_beside_those_within(report, elsewhere):
    told, text = report(PGD, STADV, FOG)
    assert [row["name"] for row in told["attacks"]] == ["pgd"]
    assert [row["name"] for row in told["beyond"]] == ["moved"]
    assert [row["name"] for row in told["corruptions"]] == ["fog"]
    assert told["corrupted"]["mean"] == pytest.approx(told["corruptions"][0]["robust"]["mean"])
    assert told["card"]["beyond the threat"].startswith("moved: stadv (steps 2, eot 1, bound 0.05")
    assert "exact gradient" in told["card"]["beyond the threat"]
    assert told["card"]["not by an attacker"].startswith("corruption (kind fog")
    assert "An attacker's, but not within the threat: moved." in text
    assert "moved" in (elsewhere / "made" / "report.html").read_text()
    chosen = {outcome.chosen for outcome in Run.open(elsewhere / "made").outcomes()}
    assert chosen <= {"clean", "random", "pgd"}


def test_alone_it_is_the_attack_that_counts(report, elsewhere):
    told, text = report(STADV, FOG)
    assert [row["name"] for row in told["attacks"]] == ["moved"]
    assert told["beyond"] == []
    assert "and may change the picture as stadv does gets through on" in text
    assert "no threat bounds this" in told["card"]["the attacker may change"]
    assert "weaker than random noise" not in text
    chosen = {outcome.chosen for outcome in Run.open(elsewhere / "made").outcomes()}
    assert chosen <= {"clean", "moved"}


def test_an_attack_without_a_gradient_is_not_said_to_use_one(report):
    salt = {"name": "salt-and-pepper", "tries": 1, "shares": 1, "label": "salt"}
    told, text = report(salt, threat={"norm": "l0", "eps": 0.2})
    view = told["card"]["the attacker's view"]
    assert view == "salt: the answers of the whole model; it asks for no gradient"
    assert text.startswith("# An attacker who sees the answers of the whole model and may change")
    assert "exact gradient" not in text.split("## How to reproduce")[0]
    assert "no-adaptive-attack" in {doubt["name"] for doubt in told["doubts"]}


def test_a_corruption_does_not_make_an_attacker_know_more(report):
    _, text = report(PGD | {"view": "bpda"}, FOG)
    assert text.startswith("# An attacker who knows the defence but not its gradient")


def test_pictures_of_corruptions_are_not_called_attacked(report, elsewhere):
    for attacks, word in (((FOG,), "corrupted"), ((PGD, FOG), "attacked")):
        _, text = report(*attacks)
        gallery = Gallery.of(Run.open(elsewhere / "made"))
        assert gallery is not None
        assert gallery.changed == word
        assert ("brings the corrupted pictures" in text) == (word == "corrupted")
        assert ("the corruption that hurts it most" in text) == (word == "corrupted")
        (elsewhere / "made").rename(elsewhere / word)


@pytest.mark.parametrize(
    ("attack", "lazy"),
    [
        ({"name": "autoattack", "version": "standard"}, True),
        ({"name": "autoattack", "version": "plus"}, True),
        ({"name": "autoattack", "version": "standard", "eot": 4}, False),
        ({"name": "autoattack", "version": "rand"}, False),
        ({"name": "autoattack"}, False),
        ({"name": "pgd"}, True),
        ({"name": "pgd", "eot": 2}, False),
        ({"name": "pgd", "view": "undefended"}, False),
    ],
)
def test_one_draw_per_step_is_seen_whatever_it_is_called(attack, lazy):
    (row,) = rows(attack)
    raised = list(model_doubts._one_draw([{"random": True}], {row["label"]: row}))
    assert bool(raised) == lazy
    assert not list(model_doubts._one_draw([{"random": False}], {row["label"]: row}))


def test_an_attack_on_another_classifier_is_no_adaptive_one(report):
    source = {"name": "bayes"}
    other = {
        "name": "transfer",
        "label": "other",
        "source": source,
        "attack": {"name": "pgd", "steps": 2},
    }
    told, text = report(other)
    assert "no-adaptive-attack" in {doubt["name"] for doubt in told["doubts"]}
    assert (
        told["card"]["the attacker's view"]
        == "other: another classifier, bayes (side 4), never the model (transfer)"
    )
    assert "knows another classifier, but not the model," in text
