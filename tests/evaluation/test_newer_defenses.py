"""Tests of defenses newer than the five papers, from spec to outcomes, under each kind of attack."""

from pathlib import Path

import pytest

from unfool import spec as specs
from unfool.certification import certify
from unfool.certification.certificate import KIND
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.results.outcome import Outcome

BASE = "name: diffpure, sampler: ddpm, t: 0.2, steps: 3"
PURIFIERS = {
    "freqpure": f"{{{BASE}, correction: {{name: freqpure, amplitude_radius: 1}}}}",
    "freqpure released": f"{{{BASE}, correction: {{name: freqpure, released: true}}}}",
    "mani": f"{{{BASE}, shaping: spectrum, correction: freqpure}}",
    "ssni": f"{{{BASE}, noise_level: {{name: score-norm, center: 9.1, width: 4, levels: 2}}}}",
    "mimic": f"{{{BASE}, guide: {{name: mimic, scale: 60}}}}",
    "all": f"{{{BASE}, guide: {{name: mimic, scale: 60}}, correction: freqpure, shaping: spectrum, "
    "noise_level: {name: score-norm, center: 9.1, width: 4, levels: 2}}",
    "gradual freqpure": "{name: gradual, passes: [[0.1, 2], [0.2, 2]], correction: freqpure}",
    "long langevin": "{name: langevin, steps: 5, sigma2: null, weight: 1, eta: 1}",
}
ATTACKS = """attacks=[
    {name: pgd, view: bpda, steps: 2, eot: 2, label: BPDA},
    {name: pgd, view: exact, steps: 2, eot: 2, label: exact},
    {name: pgd, view: exact, knows: both, steps: 2, label: DW-box},
    {name: square, queries: 2, label: square}]"""
LABELS = ("BPDA", "exact", "DW-box", "square")
SMALL = ["evaluation={images: 2, draws: 2}"]


def conditions(changes: list[str], folder: Path) -> set[str]:
    """Return the conditions under which the two images of a run were evaluated."""
    spec = evaluation.check(specs.load("demo", [*changes, ATTACKS, *SMALL]))
    outcomes = evaluation.run(spec, folder, quiet=True).read(Outcome)
    assert len(outcomes) == 2
    return {name for outcome in outcomes for name in outcome.conditions}


@pytest.mark.parametrize("name", PURIFIERS)
def test_each_purifier_runs_under_every_kind_of_attack(name: str, tmp_path):
    assert {"clean", *LABELS} <= conditions([f"purifier={PURIFIERS[name]}"], tmp_path / "run")


def test_locally_smoothed_classifier_runs_under_every_kind_of_attack(tmp_path):
    inner = "{name: trained, weights: digits-classifier}"
    local = f"classifier={{name: locally-smoothed, classifier: {inner}, sigma: 0.05}}"
    assert {"clean", *LABELS} <= conditions([local], tmp_path / "run")


def test_diffsmooth_can_be_certified(tmp_path):
    spec = specs.load("digits-diffsmooth", ["certification={sigma: 0.25, n0: 5, n: 20, images: 2}"])
    done = certify.run(certify.check(spec), tmp_path / "run", quiet=True)
    assert done.manifest.get("kind") == KIND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (f"{{{BASE}, correction: {{name: freqpure, delta: -1}}}}", "delta must be 0 or more, not -1"),
        (f"{{{BASE}, correction: {{name: freqpur}}}}", "did you mean 'freqpure'"),
        (f"{{{BASE}, shaping: {{name: spectrum, bands: 0}}}}", "bands must be 1 or more, not 0"),
        (f"{{{BASE}, noise_level: score-norm}}", "the option 'center' is missing"),
        (f"{{{BASE}, noise_level: {{name: score-norm, center: 9, width: 0}}}}", "width must be above 0"),
        (f"{{{BASE}, guide: {{name: mimic, scale: -5}}}}", "scale must be 0 or more, not -5"),
        ("{name: diffpure, t: 1, sampler: heun, noise_level: {name: score-norm, center: 9, width: 1}}",
         "heun"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused_in_one_line(change: str, words: str, tmp_path):
    def attempt():
        spec = evaluation.check(specs.load("demo", [f"purifier={change}"]))
        evaluation.run(spec, tmp_path / "run", quiet=True)

    with pytest.raises(SpecError, match=words) as caught:
        attempt()
    assert "\n" not in str(caught.value)
