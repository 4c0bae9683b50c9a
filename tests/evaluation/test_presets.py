"""Tests of shipped specs and experiments: all are valid, and presets have the published settings."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from unfool import spec as specs
from unfool.certification import certify
from unfool.evaluation import run as evaluation
from unfool.evaluation import sweep
from unfool.evaluation.prepare import build_purifier
from unfool.report.figures.sweep import number
from unfool.results.summary import summarize_run
from unfool.spec.menu import shipped
from unfool.training.spec import check

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMED = ["classifier=bayes", "denoiser=mixture"]


@pytest.mark.parametrize(
    ("name", "t", "steps", "norm", "eps"),
    [
        ("diffpure-cifar10-linf", 0.1, 100, "linf", 8 / 255),
        ("diffpure-cifar10-bpda", 0.1, 100, "linf", 8 / 255),
        ("diffpure-cifar10-l2", 0.075, 75, "l2", 0.5),
        ("diffpure-imagenet", 0.15, 150, "linf", 4 / 255),
        ("diffpure-celebahq", 0.5, 500, "linf", 16 / 255),
    ],
)
def test_presets_have_the_settings_of_the_paper(name, t, steps, norm, eps):
    changes = [*NAMED, "purifier.size=4"] if name == "diffpure-imagenet" else NAMED
    load = specs.load if name in shipped() else experiment
    checked = evaluation.check(load(name, changes), "anywhere")
    assert checked["threat"] == {"norm": norm, "eps": pytest.approx(eps)}
    purifier = build_purifier(checked, "cpu")
    inside: Any = getattr(purifier, "purifier", purifier)
    assert (inside.t, inside.steps) == (t, steps)
    assert inside.pixel_noise < 2
    assert len(inside.times) == steps + 1


def experiment(name, changes=()):
    return specs.load(EXPERIMENTS / f"{name}.yaml", changes)


@pytest.mark.parametrize(
    "name",
    [
        *shipped(),
        *sorted(
            str(path.relative_to(EXPERIMENTS).with_suffix(""))
            for path in EXPERIMENTS.rglob("*.yaml")
        ),
    ],
)
def test_every_spec_is_valid(name):
    spec = specs.load(name) if name in shipped() else experiment(name)
    if "sweep" in spec:
        cells = sweep.check(spec, "anywhere")
        assert len(cells) > 1
    elif "training" in spec:
        assert check(spec, "anywhere")["training"]["steps"] > 0
    elif "certification" in spec:
        assert certify.check(spec, "anywhere")["certification"]["sigma"] > 0
    else:
        assert evaluation.check(spec, "anywhere")["attacks"]


@pytest.mark.parametrize("name", ["digits-tmdc", "cifar10-tmdc", "cifar10-sd2"])
def test_checkpoint_sweeps_are_ordered_by_training_steps(name):
    """Values are numbers, from 0 (before training) to the last checkpoint, so the figure is a line."""
    cells = sweep.check(experiment(f"{name}-checkpoints"), "anywhere")
    weights: dict[Any, str] = {
        number(next(iter(cell.values.values()))): cell.spec["classifier"]["denoiser"]["weights"]
        for cell in cells
    }
    assert list(weights) == sorted(weights)
    assert [step for step, folder in weights.items() if "/steps/" not in folder] == [0]
    assert all(f.endswith(f"/steps/{step:.0f}") for step, f in weights.items() if step)
    assert len({cell.values["evaluation.subset_seed"] for cell in cells}) >= 3


def test_published_sweeps_have_the_stated_budgets_and_weights():
    for data, most in (("digits", 6), ("cifar10", 11)):
        cells = sweep.check(experiment(f"{data}-distribution-transfer-budgets"), "anywhere")
        budgets = sorted({cell.spec["threat"]["eps"] for cell in cells})
        assert budgets == pytest.approx([80 / 255 * i / (most - 1) for i in range(most)])
        assert {"purifier" in cell.spec for cell in cells} == {True, False}
        weights = [
            cell.spec.get("purifier", {}).get("weight", -1)
            for cell in sweep.check(experiment(f"{data}-coup-sweep"), "anywhere")
        ]
        assert min(weights) == 0  # without guidance
        assert 1 in weights


@pytest.mark.parametrize("name", ["addt-cifar10-steps", "addt-cifar10-models"])
def test_addt_is_trained_and_attacked_as_published(name):
    trained = check(specs.load("addt-cifar10"), "anywhere")["training"]
    assert (trained["betas"], trained["learning_rate"], trained["batch_size"]) == (
        [0.95, 0.999],
        2e-4,
        256,
    )
    assert (trained["steps"], trained["lr_schedule"], trained["warmup"]) == (
        50 * 196,
        "none",
        0,
    )
    assert (trained["weight_decay"], trained["dropout"], trained["grad_clip"]) == (1e-6, 0.1, 1)
    assert (trained["ema_decay"], trained["ema_power"]) == (0.9999, 0.75)
    for cell in sweep.check(experiment(name), "anywhere"):
        assert cell.spec["threat"] == {"norm": "linf", "eps": pytest.approx(8 / 255)}
        for row in cell.spec["attacks"]:
            assert row["step_size"] * cell.spec["threat"]["eps"] == pytest.approx(2 / 255)
            assert (row["steps"], row["start"], row["restarts"]) == (20, "zero", 1)
            assert row["eot"] == (1 if "knows" in row else 10)


@pytest.mark.parametrize(
    "name", ["tmdc-tables", "tmdc-checkpoints", "sd2-tables", "sd2-checkpoints"]
)
def test_transfer_attack_on_tmdc_has_the_published_steps(name):
    for cell in sweep.check(experiment(f"cifar10-{name}"), "anywhere"):
        (row,) = (row for row in cell.spec["attacks"] if row["label"] == "PGD by transfer")
        assert row["attack"]["steps"] == 40
        assert row["attack"]["step_size"] * 0.05 == pytest.approx(2 / 255, rel=2e-3)


def test_missing_denoiser_inside_a_resized_purifier_is_refused():
    spec = specs.load("diffpure-imagenet", ["classifier=bayes", "denoiser=null"])
    with pytest.raises(specs.SpecError, match="needs a denoiser"):
        evaluation.check(spec, "anywhere")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["purifier.sampler=ddpm", "attacks=[{name: pgd, view: adjoint}]"], "sampler `sde`"),
        (
            ["attacks=[{name: pgd, view: {name: surrogate-same-noise, steps: 11}}]"],
            "from 1 to 10, the defense's own, not 11",
        ),
    ],
)
def test_unsuitable_view_is_refused_before_the_run(changes, said, elsewhere, mistake):
    words = [word for change in changes for word in ("--set", change)]
    assert said in mistake("evaluate", "blobs", "--quiet", "--out", elsewhere / "run", *words)
    assert not (elsewhere / "run").exists()


def test_published_bpda_has_15_and_150_draws_and_no_random_start():
    checked = evaluation.check(experiment("diffpure-cifar10-bpda", NAMED), "anywhere")
    (row,) = checked["attacks"]
    assert (row["view"], row["start"], row["steps"]) == ("bpda", "zero", 50)
    assert (row["eot"], row["selection_draws"], checked["evaluation"]["draws"]) == (15, 150, 150)
    assert row["step_size"] * checked["threat"]["eps"] == pytest.approx(2 / 255)


def test_ladder_goes_from_cheap_to_exact_and_reports_each_rung(elsewhere):
    """Run the shipped spec on the toy data."""
    changes = [*NAMED, "data={name: blobs, size: 12}", "purifier={name: diffpure, steps: 6}"]
    changes += [f"attacks.{i}.steps=2" for i in range(5)]
    changes += ["evaluation.images=null", "attacks.3.view.steps=null"]
    checked = evaluation.check(experiment("digits-ladder", changes))
    assert [row["view"] for row in checked["attacks"]] == [
        "classifier-only",
        "bpda",
        {"name": "surrogate", "steps": 4},
        {"name": "surrogate-same-noise", "steps": None},
        "exact",
    ]
    told = summarize_run(evaluation.run(checked, elsewhere / "run", quiet=True))
    rungs = told["by_attack"]
    assert [rung["name"] for rung in rungs] == [row["label"] for row in checked["attacks"]]
    attacked = [rung["attacked"] for rung in rungs]
    assert attacked == sorted(attacked, reverse=True)
    assert attacked[-1] < 12
    for reading in ("per_draw", "majority", "all_draws"):
        assert rungs[-1]["robust"][reading] == told["robust"][reading]
    assert (
        "fewer purifier steps, on independent noise, its steps 4 (2 steps, 4 draws per step)"
        in (told["threat_model"]["the attacker's view"])
    )


def test_bare_view_equals_the_table_with_its_defaults():
    def view(said):
        spec = specs.load("blobs", [f"attacks=[{{name: pgd, view: {said}}}]"])
        return evaluation.check(spec)["attacks"][0]["view"]

    assert view("surrogate-same-noise") == view("{name: surrogate-same-noise, steps: null}")
    assert view("exact") == view("{name: exact}") == "exact"
    assert view("no-elimination") == view("{name: no-elimination, draws: null}") == "no-elimination"
    assert view("{name: no-elimination, draws: 5}") == {
        "name": "no-elimination",
        "draws": 5,
    }
    again = specs.load(
        "blobs", ["attacks=[{name: pgd, view: {name: surrogate-same-noise, steps: 3}}]"]
    )
    checked = evaluation.check(again)
    assert evaluation.check(checked) == checked
    set_alone = specs.load(
        "blobs", ["attacks=[{name: pgd, view: surrogate-same-noise}]", "attacks.0.view.steps=3"]
    )
    assert evaluation.check(set_alone) == checked


def test_attack_rows_in_the_docs_are_valid():
    """Each published setting in docs/attacks.md is a valid row of a spec."""
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    table = page.partition("## Published settings")[2]
    rows = [yaml.safe_load(row) for row in re.findall(r"\| `(\{name: .*?\})`", table)]
    assert len(rows) == 5
    for row in rows:
        evaluation.check(specs.load("blobs", []) | {"attacks": [row]})
    ladder = yaml.safe_load(re.findall(r"## A ladder.*?```yaml\n(.*?)```", page, re.S)[0])
    shipped_one = experiment("digits-ladder")
    assert {key: shipped_one[key] for key in ladder} == ladder
