"""Each doubt is raised where it should be, and nowhere else."""

import json

import pytest
from raised import doubts_about, outcomes_of

from unfool.cli.main import run
from unfool.results.doubts.attacks import paired_gap
from unfool.results.outcome import Condition, Outcome
from unfool.results.run_folder import seal

SOFT = '''
import torch
from torch import nn
class Soft(nn.Module):
    """A classifier that returns probabilities."""
    def forward(self, x):
        m = (x.mean((1, 2, 3)) - 0.5) * 8
        return torch.stack([-m, m], 1).softmax(1)
class Stair(nn.Module):
    """A classifier without a gradient."""
    def forward(self, x):
        m = ((x * 255).round() / 255 - 0.5).mean((1, 2, 3))
        return torch.stack([-m, m], 1)
class Broken(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 2), torch.nan)
class Wrong(nn.Module):
    """A classifier with its classes in another order."""
    def forward(self, x):
        m = (x.mean((1, 2, 3)) - 0.5) * 40
        return torch.stack([m, -m], 1)
def masked(x, noise):
    """A purifier whose gradient is zero, although it does let attacks through."""
    return (x * 16).round() / 16 + 0 * x
def steps(x, noise):
    """A purifier whose gradient is not that of what it does."""
    return x + ((x * 4).round() / 4 - x) * 0.98
def lot(x, noise):
    """A purifier that looks at the whole batch."""
    return x - x.mean(0) + 0.5
class Rough:
    """A purifier that does nothing but compute in the precision it is given."""
    def __init__(self, precision: str = "float32"):
        self.precision = getattr(torch, precision)
    def __call__(self, x, noise):
        return x.to(self.precision).to(x)
def still(model, x, y, threat, noise):
    """An attack that does nothing."""
    return x
'''


@pytest.fixture
def doubts(elsewhere, monkeypatch):
    (elsewhere / "soft.py").write_text(SOFT)
    monkeypatch.syspath_prepend(elsewhere)

    def names(*changes):
        words = [word for change in changes for word in ("--set", change)]
        out = elsewhere / f"run{len(list(elsewhere.iterdir()))}"
        common = [
            "--set",
            "data.size=32",
            "--set",
            "purifier.steps=3",
            "--set",
            "evaluation.draws=2",
        ]
        assert run(["evaluate", "blobs", "--out", str(out), "--quiet", *common, *words]) == 0
        return {doubt["name"] for doubt in json.loads((out / "report.json").read_text())["doubts"]}

    return names


def test_probabilities_in_place_of_logits_raise_doubt(doubts):
    assert "probabilities-for-logits" in doubts(
        "classifier={name: network, network: {name: 'soft:Soft'}}"
    )
    assert "probabilities-for-logits" not in doubts()


def test_classifier_without_gradient_raises_doubt(doubts):
    assert "zero-gradient" in doubts(
        "classifier={name: network, network: {name: 'soft:Stair'}}", "attacks=[pgd]"
    )


def test_masked_gradient_raises_doubt_with_margin_loss_and_restarts(doubts):
    attack = "attacks=[{name: pgd, loss: margin, steps: 10, restarts: 5}]"
    assert "zero-gradient" in doubts("purifier={name: 'soft:masked'}", attack)
    assert "gradient-disagrees" in doubts("purifier={name: 'soft:steps'}", attack)
    sound = doubts("attacks=[{name: pgd, loss: margin, eot: 2}]")
    assert not {"zero-gradient", "gradient-disagrees", "batch-matters"} & sound


def test_accuracy_below_the_stated_one_raises_doubt(doubts, elsewhere):
    made = elsewhere / "made"
    changes = ["evaluation.images=40", "evaluation.draws=2", "attacks=[{name: fgsm}]"]
    words = [word for change in changes for word in ("--set", change)]
    assert run(["evaluate", "demo", *words, "--quiet", "--out", str(made)]) == 0

    def names():
        told = json.loads((made / "report.json").read_text())
        return [doubt["name"] for doubt in told["doubts"]]

    manifest = json.loads((made / "run.json").read_text())
    assert manifest["stated"]["data"] == "digits"
    assert "less-than-stated" not in names()
    for change, raised in (({"accuracy": 2.0}, True), ({"accuracy": 2.0, "data": "mnist"}, False)):
        stated = manifest["stated"] | change
        told = manifest | {"stated": stated}
        (made / "run.json").write_text(json.dumps(told | {"sha256": seal(told)}))
        assert run(["report", str(made)]) == 0
        assert ("less-than-stated" in names()) is raised


def test_accuracy_no_better_than_guessing_raises_doubt(doubts):
    wrong = "classifier={name: network, network: {name: 'soft:Wrong'}}"
    assert "no-better-than-guessing" in doubts(wrong)
    assert "no-better-than-guessing" not in doubts()


@pytest.mark.parametrize(
    ("right", "count", "raised"),
    [(2, 2, False), (3, 3, False), (1, 2, False), (0, 12, True), (6, 12, True), (12, 12, False)],
)
def test_guessing_doubt_needs_more_than_a_few_images(right, count, raised):
    """With two classes, the interval of 2 right answers of 2 reaches from guessing to 100 %."""
    outcomes = [
        outcome
        for size, chosen in ((right, 0), (count - right, 1))
        if size
        for outcome in outcomes_of([], Condition([chosen] * 2, None, 0.0, 0.0), size)
    ]
    names = {doubt.name for doubt in doubts_about(outcomes, [])}
    assert ("no-better-than-guessing" in names) is raised
    assert "few-images" in names


def test_batch_dependent_model_raises_doubt(doubts):
    assert "batch-matters" in doubts("purifier={name: 'soft:lot'}")


def test_missing_adaptive_attack_and_single_draw_raise_doubts(doubts):
    assert "no-adaptive-attack" in doubts("attacks=[{name: pgd, view: classifier-only}]")
    found = doubts("attacks=[{name: pgd, steps: 2}]")
    assert "no-adaptive-attack" not in found
    assert "random-model-eot-1" in found


def test_custom_attack_alone_raises_unknown_attack(doubts):
    """A custom attack may use no gradient, or only one draw per step."""
    for changes in ((), ("purifier=null",)):
        found = doubts("attacks=[{name: 'soft:still'}]", *changes)
        assert "unknown-attack" in found
        assert "no-adaptive-attack" not in found
    beside = "attacks=[{name: 'soft:still'}, {name: pgd, steps: 2}]"
    assert "unknown-attack" not in doubts(beside)


def test_advice_names_only_options_of_the_attack():
    row = {"label": "a", "view": "exact", "name": "stadv", "steps": 3, "eot": 1}
    alike = Condition(draws=[0, 0], undefended=None, size=0.0, attacker_error_rate=0.0)
    found = doubts_about(outcomes_of([row], alike), [row])
    (doubt,) = (doubt for doubt in found if doubt.name == "images-unchanged")
    assert "`steps`" in doubt.why
    assert "`eot`" in doubt.why
    assert "`restarts`" not in doubt.why


def test_unchanged_images_are_a_red_doubt_only_about_attacks_with_gradients():
    alike = Condition(draws=[0, 0], undefended=None, size=0.0, attacker_error_rate=0.0)
    for name, severity in (("stadv", "red"), ("square", "yellow")):
        row = {"label": "a", "view": "exact", "name": name, "eot": 1}
        found = doubts_about(outcomes_of([row], alike), [row])
        (doubt,) = (doubt for doubt in found if doubt.name == "images-unchanged")
        assert doubt.severity == severity
        assert ("gradient" in doubt.why) == (severity == "red")


def test_low_precision_gradient_raises_doubt(doubts, monkeypatch):
    monkeypatch.setattr("unfool.attacks.views.bfloat16_costs", lambda device: 0.5)
    found = doubts("attacks=[{name: pgd, steps: 2, view: bfloat16}, {name: pgd, steps: 2}]")
    assert "low-precision" in found
    assert "no-adaptive-attack" not in found
    assert "low-precision" not in doubts("attacks=[{name: pgd, steps: 2}]")


def test_half_precision_part_raises_doubt(doubts):
    rough = "purifier={name: 'soft:Rough', precision: float16}"
    assert "low-precision" in doubts(rough, "attacks=[]", "evaluation.examples=0")
    for precision in ("bfloat16", "float32"):
        inside = {"name": "diffusion", "denoiser": {"name": "dit", "precision": precision}}
        found = doubts_about(
            outcomes_of([], Condition([0, 0], None, 0.0, 0.0)), [], classifier=inside
        )
        said = [doubt.why for doubt in found if doubt.name == "low-precision"]
        assert len(said) == (precision != "float32")
        assert all(precision in why for why in said)


def test_attack_weaker_than_random_noise_raises_doubt(doubts):
    # In a small budget, random noise averages out; at l2 3 it does more than no attack.
    changes = ("attacks=[{name: 'soft:still'}]", "threat={norm: l2, eps: 3}", "data.size=200")
    assert "weaker-than-random" in doubts(*changes)


@pytest.mark.parametrize(("images", "raised"), [(2, False), (8, True)])
def test_paired_gap_needs_more_than_two_images(images, raised):
    made = {"undefended": None, "size": 0.1, "attacker_error_rate": 0.5}
    versions = {"a": Condition(draws=[0, 0], **made), "b": Condition(draws=[1, 1], **made)}
    outcomes = [Outcome(i, 0, versions, "a", 0.0, {}) for i in range(images)]
    assert (paired_gap(outcomes, "a", "b") > 0) == raised
    assert paired_gap(outcomes, "b", "a") < 0


def test_nan_logits_are_refused(doubts, mistake):
    said = mistake(
        "evaluate",
        "blobs",
        "--set",
        "classifier={name: network, network: {name: 'soft:Broken'}}",
        "--out",
        "x",
    )
    assert "not finite" in said


def test_known_noise_attack_weaker_than_white_box_raises_doubt(doubts):
    rows = "{{name: pgd, label: white box, loss: margin, steps: 5, eot: 2}}, {}"
    told = "{name: pgd, label: DW-box, knows: both, loss: margin, steps: 5}"
    idle = "{name: 'soft:still', label: DW-box, knows: both}"
    strong = "threat.eps=0.3"
    assert "known-noise-is-harder" in doubts(f"attacks=[{rows.format(idle)}]", strong)
    assert "known-noise-is-harder" not in doubts(f"attacks=[{rows.format(told)}]", strong)


SHORT = "{name: pgd, label: short, step_size: 0.001, steps: 1, start: zero}"


@pytest.mark.parametrize(
    "other",
    [
        "{name: deepfool, eot: 8, targets: 1}",
        "{name: pgd, loss: margin, weights: em, eot: 8, steps: 10}",
        "{name: pgd, loss: margin, view: per-step, eot: 4, steps: 10}",
    ],
)
def test_stronger_attack_of_another_kind_shows_that_the_plain_one_stops_short(doubts, other):
    name = "plain-attack-stops-short"
    assert name in doubts(f"attacks=[{SHORT}, {other}]")
    if "deepfool" in other:  # no doubt if the plain attack is strong
        strong = "{name: apgd, label: strong, loss: margin, eot: 8, steps: 20}"
        assert name not in doubts(f"attacks=[{strong}, {other}]")


def test_strong_unbounded_attack_raises_robust_to_this_threat_alone(doubts):
    name, far = "robust-to-this-threat-alone", "{name: ppgd, distance: mse, bound: 0.1, eot: 4}"
    small = ("threat={norm: linf, eps: 0.001}",)
    assert name in doubts(*small, f"attacks=[{{name: pgd, eot: 4}}, {far}]")
    assert name not in doubts(*small, f"attacks=[{far}]")
    near = far.replace("0.1", "1e-7")
    assert name not in doubts(*small, f"attacks=[{{name: pgd, eot: 4}}, {near}]")
