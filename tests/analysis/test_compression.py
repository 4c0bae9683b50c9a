"""Compression rates of purifiers with known singular values, and critical eps in closed form."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unfool.analysis.compression import ADVERSARIAL, RANDOM, compression
from unfool.analysis.critical_eps import critical_eps
from unfool.attacks.views import Batched
from unfool.cli.main import run
from unfool.defenses.purified_classifier import Purified
from unfool.noise import Noise
from unfool.threat import Norm, Threat
from unfool.toy.linear_models import (
    AddGaussianNoise,
    LinearClassifier,
    MultiPlaneClassifier,
    Quantize,
    RandomGuess,
)

LINF = Threat("linf", 8 / 255)
NOISE = Noise.of(0, range(3))
QUIET: Any = {"quiet": True}


class Linear(nn.Module):
    """A purifier x -> A x + b with chosen singular values, and noise that it adds on top."""

    def __init__(self, singular: torch.Tensor):
        super().__init__()
        like = torch.zeros(len(singular), len(singular))
        left, right = (
            torch.linalg.qr(Noise.of(seed, range(len(like))).normal(like))[0] for seed in (1, 2)
        )
        self.matrix = left @ torch.diag(singular) @ right

    def forward(self, x, noise):
        return (x.flatten(1) @ self.matrix.T).view_as(x) + 0.1 + 0.3 * noise.normal(x)


def x_of(size=(3, 1, 4, 4)):
    """Images so close to gray that no perturbation is clipped."""
    return 0.45 + 0.1 * NOISE.child("images").uniform(torch.zeros(size))


def rates(purifier, **options):
    model = Batched(Purified(RandomGuess(), purifier).eval(), 2)
    asked: Any = {"draws": 2, "steps": 5, "sizes": (0.5, 1.0, 3.0)} | options
    return compression(model, x_of(), LINF, NOISE, **asked, **QUIET)


def test_rate_of_a_linear_purifier_follows_its_singular_values():
    singular = torch.linspace(0.1, 0.7, 16)
    singular[3] = 1.8
    found = rates(Linear(singular), steps=40)
    assert np.allclose(found.rates[ADVERSARIAL], 1.8, atol=1e-3)
    random = found.rates[RANDOM]
    assert random.shape == (3, 2, 3)
    assert np.all((random > 0.1) & (random < 1.8))
    assert np.allclose(random, random[:, :, :1], atol=1e-4), "of a linear map, at every size alike"
    expected = float(singular.square().mean())  # E |A d|^2 = |A|_F^2 / n for |d| = 1
    many = rates(Linear(singular), draws=200, steps=1, sizes=(1.0,)).rates[RANDOM]
    assert (many**2).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_rate_of_a_scaled_identity_is_its_factor(scale: float):
    found = rates(lambda x, noise: scale * x)
    for kind in (RANDOM, ADVERSARIAL):
        assert np.allclose(found.rates[kind], scale, atol=1e-5), kind
    at = found.summary()["sizes"][found.budget_index]
    assert at["size"] == 1
    assert at[RANDOM]["rate"]["mean"] == pytest.approx(scale, abs=1e-5)
    assert at["length"] == pytest.approx(8 / 255 * 4)


def test_noise_shared_by_both_images_does_not_contract():
    assert np.allclose(rates(AddGaussianNoise(0.4)).rates[ADVERSARIAL], 1, atol=1e-4)


@pytest.mark.parametrize(
    "constant", [lambda x, noise: torch.full_like(x, 0.5), lambda x, noise: 0 * x + 0.5]
)
def test_constant_purifier_has_rate_zero_with_and_without_a_graph(constant):
    found = rates(constant)
    assert not any(values.any() for values in found.rates.values())
    assert found.summary()["sizes"][0][RANDOM]["contracts"]["accuracy"] == 1


def test_power_iteration_without_a_gradient_keeps_the_random_direction():
    found = rates(Quantize(4))
    assert np.array_equal(found.rates[RANDOM], found.rates[ADVERSARIAL])
    assert found.without_gradient
    assert not rates(Linear(torch.linspace(0.1, 2, 16))).without_gradient


def test_clipped_perturbation_is_measured_after_clipping():
    model = Batched(Purified(RandomGuess(), lambda x, noise: x / 2).eval(), 2)
    x, asked = torch.ones(3, 1, 4, 4), {"draws": 1, "sizes": (8.0,), "steps": 2}
    found = compression(model, x, LINF, NOISE, **asked, **QUIET)
    assert np.allclose(found.rates[RANDOM], 0.5)
    assert np.allclose(found.rates[ADVERSARIAL], 0.5)


def test_rates_do_not_depend_on_the_batch():
    purifier = Linear(torch.linspace(0.1, 2, 16))
    model = Batched(Purified(RandomGuess(), purifier).eval(), 8)
    options = {"draws": 2, "steps": 3, "sizes": (1.0,)}
    whole = compression(model, x_of(), LINF, NOISE, **options, **QUIET)
    for place in range(3):
        x, noise = x_of()[place : place + 1], NOISE.take([place])
        alone = compression(model, x, LINF, noise, **options, **QUIET)
        for kind in (RANDOM, ADVERSARIAL):
            assert np.allclose(alone.rates[kind][0], whole.rates[kind][place], atol=1e-5)


def test_compression_refuses_invalid_arguments():
    for options in ({"draws": 0}, {"steps": 0}, {"sizes": ()}, {"sizes": (0.0,)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            rates(lambda x, noise: x, **options)
    with pytest.raises(ValueError, match="no purifier"):
        compression(Batched(RandomGuess(), 2), x_of(), LINF, NOISE, **QUIET)
    for threat, named in ((Threat("l1", 1), "l1"), (Threat("l2", 0), "eps is 0")):
        model = Batched(Purified(RandomGuess(), lambda x, noise: x).eval(), 2)
        with pytest.raises(ValueError, match=named):
            compression(model, x_of(), threat, NOISE, **QUIET)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_critical_eps_of_a_linear_model_is_its_distance(norm: Norm):
    model, noise = MultiPlaneClassifier(2).eval(), Noise.of(0, range(6))
    x = 0.5 + 0.02 * noise.child("images").normal(torch.zeros(6, 3, 4, 4))
    y = model(x, noise).argmax(1)
    true = model.distances(x, norm).numpy()
    y[0] = 1 - y[0]  # wrong without an attack
    reach = float(np.sort(true[1:])[-2:].mean())  # below the distance of the farthest image
    found = critical_eps(
        Batched(model, 4), x, y, Threat(norm, 1e-3), noise, reach=reach / 1e-3, rounds=7, eot=1,
        draws=3, steps=30, **QUIET,
    )  # fmt: skip
    farthest = 1 + int(true[1:].argmax())
    assert found.high[0] == found.estimates[0] == 0
    assert np.isinf(found.high[farthest])
    assert found.low[farthest] == pytest.approx(reach)
    for place in set(range(1, 6)) - {farthest}:
        width = found.high[place] - found.low[place]
        assert width == pytest.approx(reach / 2**7)
        assert found.low[place] < true[place] * 1.05  # PGD gets this close
        assert true[place] <= found.high[place], "no attack breaks an image below its distance"
    told = found.summary()
    assert told["wrong"]["accuracy"] == told["unbroken"]["accuracy"] == pytest.approx(1 / 6)
    assert told["brackets"][farthest]["high"] is None


def test_critical_eps_refuses_invalid_arguments():
    at = (Batched(LinearClassifier(), 4), torch.full((2, 3, 4, 4), 0.5), torch.zeros(2).long())
    mistakes: list[dict[str, Any]] = [{"rounds": 0}, {"draws": 0}, {"reach": 0}]
    for options in mistakes:
        with pytest.raises(ValueError, match=next(iter(options))):
            critical_eps(*at, LINF, Noise.of(0, range(2)), **options, **QUIET)
    with pytest.raises(ValueError, match="eps is 0"):
        critical_eps(*at, Threat("linf", 0), Noise.of(0, range(2)), **QUIET)


@pytest.fixture
def runs(elsewhere):
    """Two runs on blobs with purifiers, and one without."""
    small = ["--set", "data.size=6", "--set", "evaluation.draws=2", "--quiet"]
    known = "attacks=[{name: pgd, steps: 2}, {name: pgd, label: DW-box, knows: both, steps: 2}]"
    for name, change in (
        ("short", "purifier.steps=2"),
        ("long", "purifier={name: diffpure, t: 0.3, steps: 2}"),
        ("none", "purifier=null"),
    ):
        given = ["--set", change, *(["--set", known] if name == "short" else [])]
        given += ["--set", "attacks=[{name: pgd, steps: 2}]"] if name == "none" else []
        assert run(["evaluate", "blobs", *small, *given, "--out", name]) == 0
    return elsewhere


def test_compression_command_reports_the_runs_and_resumes(runs, capsys, monkeypatch):
    asked = ["analyze", "compression", "short", "long", "none", "blobs", "--images", "4"]
    asked += ["--steps", "2", "--size", "1", "--size", "2", "--quiet", "--out", "seen"]
    assert run(asked) == 0
    assert "rate, adversarial" in capsys.readouterr().out
    told = json.loads((runs / "seen" / "compression.json").read_text())
    assert told["skipped"] == ["none"]
    assert list(told["defenses"]) == ["short", "long", "blobs"]
    for point in told["runs"]:
        summary = json.loads((runs / point["name"] / "report.json").read_text())
        assert point["robust"] == summary["robust"]["per_draw"]
        known = summary["known_noise"]
        assert point["known"] == (known[0]["robust"]["per_draw"] if known else None)
    assert [point["known"] is None for point in told["runs"]] == [False, True]
    for name in ("compression.png", "compression-robustness.png", "compression.html"):
        assert (runs / "seen" / name).stat().st_size
    files = sorted((runs / "seen" / "measured").iterdir())
    assert len(files) == 3
    files[0].write_bytes(b"damaged")
    before = [file.stat().st_mtime_ns for file in files]
    assert run(asked) == 0
    after = [file.stat().st_mtime_ns for file in files]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, False]
    again = json.loads((runs / "seen" / "compression.json").read_text())
    assert all(again[key] == told[key] for key in ("defenses", "runs", "skipped", "indices"))


def test_compression_command_refuses_invalid_arguments(elsewhere, mistake):
    bare = ["--set", "purifier=null", "--images", "4"]
    assert "no purifier in blobs" in mistake("analyze", "compression", "blobs", *bare)
    assert "--size" in mistake("analyze", "compression", "blobs", "--size", "0")
    assert "nowhere" in mistake("analyze", "compression", "nowhere.yaml")


def test_critical_eps_command_writes_its_results(elsewhere, capsys):
    asked = ["--images", "3", "--steps", "2", "--eot", "1", "--draws", "3", "--rounds", "2"]
    assert run(["analyze", "critical-eps", "blobs", *asked, "--quiet", "--out", "seen"]) == 0
    assert "robust at the largest" in capsys.readouterr().out
    told = json.loads((elsewhere / "seen" / "critical-eps.json").read_text())
    assert len(told["brackets"]) == 3
    assert (elsewhere / "seen" / "critical-eps.png").stat().st_size


def test_images_are_not_called_robust_at_a_budget_beyond_those_tried(elsewhere, capsys):
    asked = ["--images", "3", "--steps", "2", "--eot", "1", "--draws", "3", "--rounds", "1"]
    for reach, is_tried in (("1", True), ("0.5", False)):
        command = ["analyze", "critical-eps", "blobs", *asked, "--reach", reach, "--quiet"]
        assert run([*command, "--out", reach]) == 0
        assert ("robust at the spec's eps" in capsys.readouterr().out) == is_tried
        told = json.loads((elsewhere / reach / "critical-eps.json").read_text())
        assert (told["at_eps"] is not None) == is_tried
