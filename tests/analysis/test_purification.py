"""Effects of purifiers with known outputs on images, and statistics of generated images."""

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unfool import distances
from unfool.analysis.inputs import load_generative_denoiser, load_inputs
from unfool.analysis.purification import Purification, purification
from unfool.analysis.samples import REAL, Samples, features, frechet, samples
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.cli.main import run
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import VP
from unfool.errors import SpecError
from unfool.noise import Noise

SPEC = ["purifier={name: diffpure, t: 0.3, steps: 2, sampler: ddpm}", "threat.eps=0.2"]
SMALL = {"steps": 2, "eot": 1, "draws": 2, "quiet": True}


def seen(*changes):
    return load_inputs("blobs", [*SPEC, *changes], None, images=6, device="cpu")


def look(at, purifier=None, **options):
    whole = at.model.model
    model = Batched(Purified(whole.classifier, purifier), None) if purifier else at.model
    return purification(model, at.x, at.y, at.threat, at.noise, **SMALL | options)


def test_identity_purifier_leaves_the_whole_perturbation():
    found = look(seen(), lambda x, noise: x)
    assert np.allclose(found.remaining, 1, atol=1e-5)
    for metric in ("l2", "linf", "ssim"):
        before, after = (found.distances[row][metric] for row in ("attacked", "attacked, purified"))
        assert np.allclose(before, after), metric
    assert not found.distances["clean, purified"]["l2"].any()
    assert list(found.distances) == ["attacked", "clean, purified", "attacked, purified"]
    assert found.summary()["closer"]["l2"]["accuracy"] == 0, "as near is not nearer"
    assert found.noise_std is None


def test_perfect_purifier_removes_the_perturbation():
    at = seen()
    perfect = at.x.clone()
    found = look(at, lambda x, noise: perfect + 0 * x)
    assert not found.remaining.any()
    assert not found.distances["attacked, purified"]["l2"].any()
    assert found.summary()["closer"]["l2"]["accuracy"] == 1
    assert np.abs(found.distances["attacked"]["linf"] - 0.2).max() < 0.2


def test_images_that_the_attack_leaves_unchanged_do_not_count_as_purified(monkeypatch):
    at = seen()
    changed = torch.where(torch.arange(6).view(-1, 1, 1, 1) < 4, 0.1, 0.0)
    for share in (changed, changed[:1] * 0):
        monkeypatch.setattr(PGD, "__call__", lambda self, model, x, *_, s=share: x + s)
        told = look(at, lambda x, noise: x).summary()
        assert told["changed"] == int((share.expand(6, 1, 1, 1) > 0).sum())
        if told["changed"]:
            assert told["remaining"]["mean"] == pytest.approx(1, abs=1e-5)
        else:
            assert told["remaining"] is None


def test_noise_only_images_have_the_forward_noise_of_the_defense():
    at = seen()
    found = look(at)
    assert isinstance(at.model.model, Purified)
    purifier: Any = at.model.model.purifier
    assert found.noise_std == pytest.approx(purifier.pixel_noise)
    stream = at.noise.child("held", 0).child("purify")
    wanted = purifier.pixel_noise * stream.child("forward").normal(at.x)
    noised = torch.from_numpy(found.images["clean, noise only"])
    assert torch.allclose(noised, at.x + wanted, atol=1e-6)
    assert np.allclose(
        found.distances["clean, noise only"]["l2"][:, 0], wanted.flatten(1).norm(dim=1), atol=1e-4
    )
    assert np.array_equal(
        found.distances["clean, noise only"]["l2"].shape, found.correct["clean, purified"].shape
    )


@pytest.mark.parametrize("part", ["noise_level: {name: score-norm, center: 4, width: 4, levels: 2}",
                                  "shaping: spectrum"])  # fmt: skip
def test_noise_only_images_have_the_noise_of_each_image(part: str):
    """Without the reverse process, the images are x_t / alpha of the defense's own draw."""
    at = seen(f"purifier={{name: diffpure, t: 0.3, steps: 2, sampler: ddpm, {part}}}")
    found = look(at)
    assert isinstance(at.model.model, Purified)
    purifier: Any = at.model.model.purifier
    stream = at.noise.child("held", 0).child("purify")
    _, x_t, times, _ = purifier._noised(at.x, stream)
    times = torch.full((6,), 0.3) if times is None else times
    alpha = VP()(times.double()).alpha.view(-1, 1, 1, 1)
    wanted = (x_t / alpha + 1) / 2
    assert np.allclose(found.images["clean, noise only"], wanted, atol=1e-6)
    gaps = found.distances["clean, noise only"]["l2"] / at.x[0].numel() ** 0.5
    std = float(np.sqrt((gaps**2).mean()))
    assert found.noise_std == pytest.approx(std, abs=2e-4 if "level" in part else 0.05)


@pytest.mark.parametrize("sampler", ["ode", "ddim", "heun"])
def test_draws_of_a_deterministic_purifier_are_equal(sampler: str):
    found = look(seen(f"purifier={{name: coup, t: 0.3, steps: 3, sampler: {sampler}}}"))
    assert found.noise_std is None
    assert list(found.distances) == ["attacked", "clean, purified", "attacked, purified"]
    for told in (
        found.remaining,
        found.correct["attacked, purified"],
        found.distances["attacked, purified"]["l2"],
    ):
        assert told.shape == (6, 2)
        assert np.array_equal(told[:, 0], told[:, 1])


def test_invalid_arguments_are_refused():
    at = seen()
    with pytest.raises(ValueError, match="draws must be 1"):
        look(at, draws=0)
    assert isinstance(at.model.model, Purified)
    bare = Batched(at.model.model.classifier, None)
    with pytest.raises(ValueError, match="no purifier"):
        purification(bare, at.x, at.y, at.threat, at.noise, quiet=True)
    with pytest.raises(SpecError, match="no denoiser"):
        load_generative_denoiser({"classifier": {"name": "bayes"}}, torch.device("cpu"))
    with pytest.raises(SpecError, match=r"trained up to t = 0\.3"):
        load_generative_denoiser(
            {
                "classifier": {"name": "bayes"},
                "denoiser": {"name": "trained", "weights": "cifar10-denoiser-small"},
            },
            at.x.device,
        )


def test_missing_lpips_is_reported_before_the_attack(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    distances.lpips_network.cache_clear()
    monkeypatch.setattr(PGD, "__call__", lambda *args: pytest.fail("attacked"))
    with pytest.raises(ValueError, match=r"unfool\[lpips\]"):
        look(seen(), lpips=True)


def test_intervals_stay_within_the_range_of_a_distance():
    far = {REAL: [0.0, 10.0]}
    told = Samples(far, {}, 2).summary()["frechet"][REAL]
    assert (told["mean"], told["low"]) == (5, 0)
    assert told["high"] > 10
    two = np.array([[0.0], [1.0]])
    rows = {name: {"l2": two, "ssim": two} for name in ("attacked", "attacked, purified")}
    right = {name: two for name in rows}
    summary = Purification(rows, right, two, None, {}).summary()
    row = summary["rows"][0]
    assert row["l2"]["low"] == summary["remaining"]["low"] == 0
    assert row["ssim"] == {"mean": 0.5, "low": -1, "high": 1}


def test_purification_command_writes_its_page(elsewhere, capsys):
    changes = [word for change in SPEC for word in ("--set", change)]
    asked = ["--images", "4", "--steps", "2", "--eot", "1", "--draws", "2", "--quiet"]
    assert run(["analyze", "purification", "blobs", *changes, *asked, "--out", "seen"]) == 0
    assert "attacked, purified" in capsys.readouterr().out
    told = json.loads((elsewhere / "seen" / "purification.json").read_text())
    assert {row["row"] for row in told["rows"]} >= {"clean", "attacked", "attacked, noise only"}
    arrays = np.load(elsewhere / "seen" / "purification.npz")
    assert arrays["attacked, purified/l2"].shape == (4, 2)
    for name in ("purification.html", "purification.png", "purification-images.png"):
        assert (elsewhere / "seen" / name).stat().st_size


def test_frechet_distance_matches_the_closed_form():
    one = Noise.of(0, range(200)).normal(torch.empty(200, 3)).double()
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, one + torch.tensor([3.0, 0, 4])) == pytest.approx(25)
    spread = float(one.T.cov().trace())
    away = float((one.mean(0)).square().sum())
    assert frechet(one, 2 * one) == pytest.approx(spread + away), "C + 4 C - 2 (2 C)"


def test_missing_torchmetrics_is_reported_before_sampling(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    x, noise = torch.zeros(4, 1, 2, 2), Noise.of(0, range(4))
    with pytest.raises(ValueError, match=r"unfool\[metrics\]"):
        samples({}, lambda x, noise: pytest.fail("asked"), x, torch.zeros(4), noise)


def test_features_are_the_inputs_of_the_last_linear_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, noise):
            return self.network(x)

    noise = Noise.of(0, range(5))
    x = noise.normal(torch.empty(5, 1, 2, 2))
    torch.testing.assert_close(features(Two(), x, noise, batch_size=2), network[:3](x))
    assert torch.equal(features(lambda x, noise: x.flatten(1), x, noise), x.flatten(1))


def test_right_model_has_a_smaller_frechet_distance():
    means = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)])
    noise = Noise.of(0, range(64))
    y = torch.arange(64) % 2
    x = (means[y] + 0.2 * noise.normal(torch.empty(64, 1, 2, 2)) + 1) / 2
    denoisers = {"right": Mixture(means, 0.2), "wrong": Mixture(means + 0.4, 0.2)}
    found = samples(
        denoisers,
        lambda x, noise: x.flatten(1),
        x,
        y,
        noise,
        steps=20,
        sets=2,
        batch_size=16,
        quiet=True,
    )
    assert found.size == 32
    mean = {name: sum(values) / 2 for name, values in found.distances.items()}
    assert mean["wrong"] > 3 * mean["right"]
    assert mean[REAL] < mean["wrong"]
    assert set(found.summary()["frechet"]) == {REAL, "right", "wrong"}
    with pytest.raises(ValueError, match="sets must be 2"):
        samples(denoisers, lambda x, noise: x.flatten(1), x, y, noise, sets=1)


def test_samples_command_writes_its_results(elsewhere):
    asked = ["--images", "24", "--steps", "2", "--sets", "2", "--quiet", "--out", "seen"]
    beside = ["--compare-with", "denoiser.weights=digits-denoiser"]
    assert run(["analyze", "samples", "demo", *beside, *asked]) == 0
    told = json.loads((elsewhere / "seen" / "samples.json").read_text())
    assert set(told["frechet"]) == {REAL, "the model", "the changed model"}
    assert told["frechet"]["the changed model"] == told["frechet"]["the model"], (
        "the same model and noise"
    )
    assert np.load(elsewhere / "seen" / "samples.npz")["the changed model/images"].shape == (
        12,
        1,
        8,
        8,
    )
    assert (elsewhere / "seen" / "samples.png").stat().st_size
