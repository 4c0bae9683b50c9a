"""DiffPure's published settings, as the specs that come with the package say them."""

import pytest

from defuse import spec as specs
from defuse.evaluation import run as evaluation
from defuse.evaluation.model import build_purifier

NAMED = [
    "classifier=bayes",
    "denoiser=mixture",
]


@pytest.mark.parametrize(
    ("name", "t", "steps", "norm", "eps"),
    [
        ("diffpure-cifar10-linf", 0.1, 100, "linf", 8 / 255),
        ("diffpure-cifar10-l2", 0.075, 75, "l2", 0.5),
        ("diffpure-imagenet", 0.15, 150, "linf", 4 / 255),
        ("diffpure-celebahq", 0.5, 500, "linf", 16 / 255),
    ],
)
def test_a_preset_is_the_paper_s_setting(name, t, steps, norm, eps):
    changes = [*NAMED, "purifier.size=4"] if name == "diffpure-imagenet" else NAMED
    checked = evaluation.check(specs.load(name, changes), "anywhere")
    assert checked["threat"] == {"norm": norm, "eps": pytest.approx(eps)}
    purifier = build_purifier(checked, "cpu")
    inside = getattr(purifier, "purifier", purifier)
    assert (inside.t, inside.steps) == (t, steps)
    assert inside.pixel_noise < 2
    assert len(inside.times) == steps + 1


def test_a_denoiser_inside_a_resized_purifier_is_missed_too():
    spec = specs.load("diffpure-imagenet", ["classifier=bayes", "denoiser=null"])
    with pytest.raises(specs.SpecError, match="needs a denoiser"):
        evaluation.check(spec, "anywhere")


def test_a_view_that_does_not_fit_is_told_before_the_work(elsewhere, mistake):
    said = mistake(
        *("evaluate", "blobs", "--quiet", "--out", elsewhere / "run"),
        *("--set", "purifier.sampler=ddpm", "--set", "attacks=[{name: pgd, view: adjoint}]"),
    )
    assert "sampler `sde`" in said
    assert not (elsewhere / "run").exists()
