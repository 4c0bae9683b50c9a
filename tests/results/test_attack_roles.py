"""The role of each attack of a run, and the words for it in the report."""

import json
from dataclasses import replace

import pytest
import torch
from raised import SOUND, doubts_about, outcomes_of

from unfool import spec as specs
from unfool.attacks.losses import query_model
from unfool.attacks.views import Batched
from unfool.cli.main import run
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.diffusion.denoiser import Mixture
from unfool.evaluation import run as evaluation
from unfool.evaluation.sanity_checks import sanity_check
from unfool.noise import Noise
from unfool.report.figures.examples import Gallery
from unfool.results.attack_roles import initial_conditions, roles
from unfool.results.doubts.model import model_doubts
from unfool.results.outcome import Condition, SanityCheck
from unfool.results.run_folder import Run

TOY = {
    "data": {"name": "blobs", "size": 4},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": {"name": "diffpure", "steps": 2},
    "threat": {"norm": "linf", "eps": 0.1},
    "evaluation": {"draws": 2, "examples": 2},
}
PGD = {"name": "pgd", "steps": 1, "label": "pgd"}
STADV = {"name": "stadv", "steps": 2, "label": "moved"}
BOX = {"name": "pgd", "steps": 1, "label": "box", "knows": "both"}
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


def test_roles_of_bounded_unbounded_and_corruption_attacks():
    assert names(roles(rows(PGD, STADV, FOG))) == [["pgd"], ["moved"], ["fog"], []]
    assert names(roles(rows(STADV, FOG))) == [["moved"], [], ["fog"], []]
    assert names(roles(rows(FOG))) == [[], [], ["fog"], []]
    assert names(roles([])) == [[], [], [], []]


def test_unbounded_attack_is_reported_apart_from_bounded_attacks(report, elsewhere):
    told, text = report(PGD, STADV, FOG)
    assert [row["name"] for row in told["attacks"]] == ["pgd"]
    assert [row["name"] for row in told["unbounded"]] == ["moved"]
    assert [row["name"] for row in told["corruptions"]] == ["fog"]
    assert told["corrupted"]["per_draw"] == pytest.approx(
        told["corruptions"][0]["robust"]["per_draw"]
    )
    assert told["threat_model"]["beyond the threat"].startswith(
        "moved: stadv (steps 2, eot 1, bound 0.05"
    )
    assert "exact gradient" in told["threat_model"]["beyond the threat"]
    assert told["threat_model"]["not by an attacker"].startswith("corruption (kind fog")
    assert "exceed the threat: moved." in text
    assert "moved" in (elsewhere / "made" / "report.html").read_text()
    chosen = {outcome.chosen for outcome in Run.open(elsewhere / "made").outcomes()}
    assert chosen <= {"clean", "random", "pgd"}


def test_unbounded_attack_counts_without_a_bounded_attack(report, elsewhere):
    told, text = report(STADV, FOG)
    assert [row["name"] for row in told["attacks"]] == ["moved"]
    assert told["unbounded"] == []
    assert "and may change the image as stadv does gets through on" in text
    assert "no threat bounds this" in told["threat_model"]["the attacker may change"]
    assert "weaker than random noise" not in text
    chosen = {outcome.chosen for outcome in Run.open(elsewhere / "made").outcomes()}
    assert chosen <= {"clean", "moved"}


def test_gradient_free_attack_is_not_reported_as_using_a_gradient(report):
    salt = {"name": "salt-and-pepper", "tries": 1, "shares": 1, "label": "salt"}
    told, text = report(salt, threat={"norm": "l0", "eps": 0.2})
    view = told["threat_model"]["the attacker's view"]
    assert view == "salt: the answers of the whole model; no gradient"
    assert text.startswith("# An attacker who sees the answers of the whole model and may change")
    head, _, rest = text.partition("## What was not tried")
    assert "with the exact gradient" in rest.partition("\n\n## ")[0]
    assert "exact gradient" not in head
    assert "no-adaptive-attack" in {doubt["name"] for doubt in told["doubts"]}


DIFFUSION = {
    "name": "diffusion",
    "denoiser": {"name": "mixture", "side": 4},
    "elimination": "staged",
    "samples": [2, 4],
    "classes_per_stage": [2, 1],
}


def test_elimination_raises_doubt_unless_attacked_without_elimination():
    same = Condition([0, 0], None, 0.1, 0.0)

    def found(classifier, *attacks):
        asked = rows(*attacks)
        raised = doubts_about(outcomes_of(asked, same), asked, classifier=classifier)
        return [doubt.name for doubt in raised if doubt.name == "no-whole-view"]

    early = PGD | {"view": "first-stage", "label": "early"}
    square = {"name": "square", "view": "no-elimination"}
    assert found(DIFFUSION, PGD, early, square) == ["no-whole-view"]
    assert found(DIFFUSION, PGD | {"view": "no-elimination"}, early) == []
    few = PGD | {"view": {"name": "no-elimination", "draws": 5}}
    assert found(DIFFUSION, few, early) == []
    assert found(DIFFUSION | {"elimination": None}, PGD) == []
    assert found({"name": "bayes"}, PGD) == []
    assert found(DIFFUSION) == []


@pytest.mark.parametrize("view", ["no-elimination", "first-stage", "classifier-only"])
def test_only_views_through_the_defense_count_as_adaptive(report, view):
    row = PGD | {"view": view, "loss": "margin", "eot": 2}
    told, text = report(row, classifier=DIFFUSION)
    found = {doubt["name"] for doubt in told["doubts"]}
    seen = told["threat_model"]["the attacker's view"]
    if view == "classifier-only":
        assert "no-adaptive-attack" in found
        return
    assert "no-adaptive-attack" not in found
    assert text.startswith("# An attacker who knows the whole model, its defense included,")
    assert {"no-elimination": "whole model without", "first-stage": "its first stage"}[view] in seen
    assert "elimination" in seen
    assert "exact gradient" in seen


def test_no_elimination_view_raises_the_doubts_of_the_exact_view():
    (row,) = rows(PGD | {"view": "no-elimination"})
    wrong: SanityCheck = {**SOUND, "slope": [1.0, 9.0]}
    assert [d.name for d in model_doubts([wrong], {"pgd": row})] == ["gradient-disagrees"]
    outcomes = outcomes_of([row], Condition([0, 0], None, 0.0, 0.0))
    rising = [replace(o, loss_curves={"pgd": [0.0, 1.0, 2.0, 4.0]}) for o in outcomes]
    asked = {"images-unchanged", "still-rising"}  # "still-rising" needs the loss of the whole model
    for view, raised in (("no-elimination", asked), ("first-stage", set())):
        attacks = [{**row, "view": view}]
        assert {d.name for d in doubts_about(rising, attacks)} & asked == raised


def test_gradient_sanity_check_disables_elimination():
    means = Noise.of(5, range(6)).normal(torch.empty(6, 1, 2, 2)) / 5
    options = {"elimination": "staged", "samples": (2, 16), "classes_per_stage": (2, 1)}
    model, at = DiffusionClassifier(Mixture(means, 0.3), **options), (means + 1) / 2
    y, noise = torch.arange(6), Noise.of(1, range(6))

    def slopes(of):
        found = sanity_check(Batched(of, 6), at, y, noise, range(6))
        return [found[i]["slope"] for i in range(6)]

    assert slopes(model) == slopes(model.without_elimination())
    seen, deployed = (
        query_model(of, at, y, "margin", noise, 0, 1) for of in (model.without_elimination(), model)
    )
    assert not torch.equal(seen.gradient, deployed.gradient)


def test_corruption_does_not_change_reported_attacker_knowledge(report):
    _, text = report(PGD | {"view": "bpda"}, FOG)
    assert text.startswith("# An attacker who knows the defense but not its gradient")


def test_corrupted_images_are_not_called_attacked(report, elsewhere):
    for attacks, word in (((FOG,), "corrupted"), ((PGD, FOG), "attacked")):
        _, text = report(*attacks)
        gallery = Gallery.of(Run.open(elsewhere / "made"))
        assert gallery is not None
        assert gallery.changed == word
        assert ("brings the corrupted images" in text) == (word == "corrupted")
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
        ({"name": "pgd", "view": "classifier-only"}, False),
    ],
)
def test_single_draw_per_step_raises_doubt_on_random_models_only(attack, lazy):
    (row,) = rows(attack)
    for random in (True, False):
        probe: SanityCheck = {**SOUND, "random": random}
        raised = [doubt.name for doubt in model_doubts([probe], {row["label"]: row})]
        assert raised == ["random-model-eot-1"] * (lazy and random)


def test_transfer_attack_is_not_adaptive(report):
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
        told["threat_model"]["the attacker's view"]
        == "other: another classifier, bayes (side 4), never the model (transfer)"
    )
    assert "knows another classifier, but not the model," in text


@pytest.mark.parametrize("attacks", [(STADV,), (STADV, BOX), (PGD, STADV), (PGD, BOX)])
def test_last_row_of_by_attack_has_the_robust_accuracy(report, attacks):
    told, _ = report(*attacks, threat={"norm": "linf", "eps": 0.4})
    assert told["by_attack"][-1]["robust"]["per_draw"] == told["robust"]["per_draw"]


def test_random_noise_is_a_candidate_only_with_a_bounded_attack():
    for attacks, noise in (
        ([STADV], False),
        ([STADV, BOX], False),
        ([PGD, STADV], True),
        ([BOX], True),
        ([FOG], False),
        ([], False),
    ):
        given = initial_conditions(roles(rows(*attacks) if attacks else []))
        assert given == ["clean", *(["random"] if noise else [])], attacks
