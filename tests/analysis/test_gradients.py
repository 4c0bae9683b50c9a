"""The comparison of gradients: only exact gradients agree with finite differences."""

import json

import numpy as np
import pytest
import torch

from unfool import Noise, Purified
from unfool.analysis.gradients import compare_gradients
from unfool.analysis.inputs import load_inputs
from unfool.cli.main import run

SDE = ["purifier={name: diffpure, t: 0.3, steps: 8, sampler: sde}"]


def found(changes=(), **options):
    seen = load_inputs("blobs", list(changes), None, images=4, device="cpu")
    settings = {"draws": 2, "directions": 3, "repeats": 1, "quiet": True} | options
    return compare_gradients(seen.model, seen.x, seen.y, seen.noise, **settings)


def rows(gradients):
    return {row["variant"]: row for row in gradients.summary()["variants"]}


def test_only_the_exact_gradient_matches_finite_differences():
    chain = ["purifier={name: diffpure, t: 0.3, steps: 20, sampler: ddpm}"]
    gradients = found(chain, coarse=5)
    told = rows(gradients)
    assert gradients.in_float64
    assert told["exact"]["slope_error"]["mean"] < 1e-4
    assert told["exact, whole graph"]["error"]["mean"] < 1e-4
    assert told["exact"]["cosine"]["mean"] == pytest.approx(1)
    for way in ("surrogate-same-noise", "surrogate", "bpda", "classifier-only"):
        assert told[way]["slope_error"]["mean"] > 0.01, way
    assert told["surrogate-same-noise"]["error"]["mean"] < told["surrogate"]["error"]["mean"]
    assert told["exact"]["graph_bytes"] < told["exact, whole graph"]["graph_bytes"]


def test_adjoint_gradient_is_close_but_not_exact():
    pytest.importorskip("torchsde")
    coarse, fine = (
        rows(found([SDE[0].replace("8", steps)], directions=1))["adjoint"] for steps in ("8", "80")
    )
    assert fine["cosine"]["mean"] > 0.9
    assert 1e-3 < fine["error"]["mean"] < coarse["error"]["mean"]


def test_unavailable_gradients_are_reported_or_omitted():
    gradients = found(["purifier={name: diffpure, t: 0.3, steps: 8, sampler: ode}"])
    assert "adjoint" in gradients.missing
    assert "`sde`" in gradients.missing["adjoint"]
    bare = found(["purifier=null", "attacks=[]"])
    assert [way.name for way in bare.variants] == ["exact", "exact, whole graph"]


class Rounding(torch.nn.Module):
    def forward(self, x, noise):
        return x + (torch.round(4 * x) / 4 - x).detach()  # the gradient of the identity


def test_gradient_masked_by_rounding_is_detected():
    seen = load_inputs("blobs", [], None, images=4, device="cpu")
    model = Purified(seen.model.model.classifier, Rounding())  # pyright: ignore
    gradients = compare_gradients(
        model, seen.x, seen.y, seen.noise, draws=1, directions=4, repeats=1, quiet=True
    )
    errors = gradients.slope_errors()[0]
    assert errors.min() > 0.5


def test_float32_only_model_is_compared_in_float32():
    class Picky(torch.nn.Module):
        def forward(self, x, noise):
            if x.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return torch.stack([x.flatten(1).sin().sum(1), x.flatten(1).cos().sum(1)], 1)

    x, y = (
        0.5 + 0.1 * Noise.of(1, range(3)).normal(torch.zeros(3, 1, 4, 4)),
        torch.tensor([0, 1, 0]),
    )
    gradients = compare_gradients(
        Picky(), x, y, Noise.of(0, range(3)), directions=4, repeats=1, quiet=True
    )
    assert not gradients.in_float64
    assert gradients.slope_errors().max() < 0.05


def test_gradients_do_not_depend_on_the_batch():
    seen = load_inputs("blobs", SDE, None, images=3, device="cpu")
    options = {"draws": 2, "directions": 2, "repeats": 1, "quiet": True}
    both = compare_gradients(seen.model, seen.x, seen.y, seen.noise, **options)
    alone = compare_gradients(seen.model, seen.x[1:2], seen.y[1:2], seen.noise.take([1]), **options)
    assert np.allclose(both.gradients[:, 1:2], alone.gradients, rtol=1e-4, atol=1e-6)


def test_command_writes_a_page_and_refuses_invalid_options(elsewhere, mistake):
    words = ["analyze", "gradients", "blobs", "--images", "3", "--out", "g", "--device", "cpu"]
    assert run([*words, "--quiet", "--set", *SDE]) == 0
    told = json.loads((elsewhere / "g" / "gradients.json").read_text())
    assert told["images"] == 3
    assert (told["loss"], told["draws"]) == ("margin", 4)
    assert (elsewhere / "g" / "gradients.png").read_bytes()[1:4] == b"PNG"
    assert "finite differences" in (elsewhere / "g" / "gradients.html").read_text()
    arrays = np.load(elsewhere / "g" / "gradients.npz")
    assert arrays["gradients"].shape[:2] == (len(arrays["variants"]), 3)
    assert "must be 2 or more" in mistake("analyze", "gradients", "blobs", "--images", "1")
    assert "at most 64" in mistake("analyze", "gradients", "blobs", "--images", "65")
    assert "draws must be 1" in mistake("analyze", "gradients", "blobs", "--draws", "0")
    assert "loss" in mistake("analyze", "gradients", "blobs", "--loss", "mse")
