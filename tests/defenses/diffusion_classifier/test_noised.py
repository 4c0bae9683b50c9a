"""Tests of the noised diffusion classifier: likelihood ratios of noisy Gaussians, and certification."""

import json
from typing import Any

import pytest
import torch

from unfool.certification import certify
from unfool.cli.main import run
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.defenses.diffusion_classifier.noised import NoisedDiffusionClassifier
from unfool.diffusion.denoiser import Denoiser, Mixture
from unfool.diffusion.schedule import Discrete
from unfool.errors import SpecError
from unfool.noise import Noise
from unfool.toy.blobs import SPREAD, mixture

TOY = {
    "data": {"name": "blobs", "size": 4},
    "classifier": {"name": "noised-diffusion", "denoiser": "mixture", "draws": 6},
    "certification": {"sigma": 0.25, "n0": 4, "n": 20},
}


def keys(size, seed=1):
    return Noise.of(seed, range(size))


def test_exact_posterior_gives_log_likelihood_ratios_of_noisy_images():
    """The closed form for Gaussian classes, between the first and last noise level of the draws."""
    world, sigma = mixture(), 0.1
    model = NoisedDiffusionClassifier(
        world, sigma=sigma, posterior="exact", weight="elbo", draws=200, batch_size=10**5
    )
    x = torch.full((1, 1, 4, 4), 0.56)
    x[..., 0] = 0.48
    logits = model(x.expand(60, -1, -1, -1), keys(60)).double()
    ratio = logits[:, 1] - logits[:, 0]
    first, last = 2 * sigma + 0.04 * (3 - 2 * sigma), 3.0
    far = (2 * x - 1 - world.means).square().flatten(1).sum(1)
    truth = float(far[0] - far[1]) / 2 * (1 / (SPREAD**2 + first**2) - 1 / (SPREAD**2 + last**2))
    error = float(ratio.std()) / len(ratio) ** 0.5
    assert error < abs(truth) / 5
    assert abs(float(ratio.mean()) - truth) < 4 * error


def test_small_noise_gives_the_plain_diffusion_classifier():
    world = Mixture(0.5 * keys(3, 5).normal(torch.empty(3, 1, 2, 2)), 0.3)
    x = keys(4, 6).uniform(torch.empty(4, 1, 2, 2)).double()
    noised = NoisedDiffusionClassifier(world, sigma=1e-4, posterior="exact", draws=9)
    ratio = noised.scales.sigma / noised.scales.alpha
    plain = DiffusionClassifier(
        world, times="sigma", span=(float(ratio[0]), 3.0), weight="edm", draws=9
    )
    torch.testing.assert_close(noised(x, keys(4)), plain(x, keys(4)), rtol=1e-4, atol=1e-3)


def test_approximate_posterior_matches_explicit_computation():
    world, x = mixture(), keys(2, 6).uniform(torch.empty(2, 1, 4, 4)).double()
    model = NoisedDiffusionClassifier(world, sigma=0.2, draws=3, scale=1.0)
    z, noise = 2 * x - 1, keys(2)
    aim = world(model.start.alpha * z, model.start.t)
    total = torch.zeros(2, 2, dtype=torch.float64)
    for k in range(3):
        t, alpha, sigma, _ = (s[k] for s in model.scales)
        s = sigma / alpha
        x_s = z + (s**2 - 0.4**2).clamp(min=0).sqrt() * noise.child("eps", k).normal(z)
        for c in range(2):
            miss = (world(alpha * x_s, t, torch.full((2,), c)) - aim) / s
            total[:, c] += model.weight[k] * miss.square().flatten(1).mean(1)
    torch.testing.assert_close(model(x, noise), -total / model.weight.sum())
    assert model.scales.sigma[0] / model.scales.alpha[0] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("posterior", ["approximate", "exact"])
@pytest.mark.parametrize("steps", [1000, 100, 20])
def test_noise_on_a_chain_is_raised_from_that_of_the_image(posterior, steps):
    """No step of a chain has just the noise of the image, and x_s must have the noise of a step."""
    asked = []

    class Recording(Mixture):
        def forward(self, x_t, t, label=None):
            if label is not None:
                asked.append((x_t, self.schedule(t.double())))
            return super().forward(x_t, t, label)

    world = Recording(torch.zeros(2, 1, 64, 64), 0.3, Discrete(steps))
    x, sigma = torch.full((1, 1, 64, 64), 0.5), 0.25
    model = NoisedDiffusionClassifier(world, sigma=sigma, posterior=posterior, draws=3)
    logits = model(x + sigma * keys(1, 7).normal(x), keys(1))
    assert float(logits.abs().max()) < 1e5
    assert asked
    for x_t, now in asked:
        assert torch.allclose(x_t.std((1, 2, 3)), now.sigma.flatten().float(), rtol=0.03)


@pytest.mark.parametrize("posterior", ["approximate", "exact"])
def test_logits_do_not_depend_on_batch_size_and_gradient_is_exact(posterior):
    world = mixture(side=3).double()
    x = keys(3, 6).uniform(torch.empty(3, 1, 3, 3)).double()
    options = {"sigma": 0.2, "posterior": posterior, "draws": 5}
    model = NoisedDiffusionClassifier(world, batch_size=4, **options)
    wanted = NoisedDiffusionClassifier(world, batch_size=10**4, **options)(x, keys(3))
    torch.testing.assert_close(model(x, keys(3)), wanted)
    x_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x_, keys(3)).tanh().sum(), x_)
    way = keys(3, 8).normal(x)
    up, down = (model(x + h * way, keys(3)).tanh().sum() for h in (1e-6, -1e-6))
    assert float((gradient * way).sum()) == pytest.approx(float((up - down) / 2e-6), rel=1e-4)


def test_noised_classifier_and_ensemble_can_be_certified(tmp_path):
    """Also certify the ensemble: a diffusion classifier behind one-step denoising."""
    asked = certify.check(TOY)
    assert asked["classifier"]["sigma"] == 0.25
    spec = tmp_path / "spec.yaml"
    for name, parts in (
        ("ndc", {}),
        (
            "ensemble",
            {
                "classifier": {"name": "diffusion", "denoiser": "mixture", "draws": 6},
                "denoiser": "mixture",
                "purifier": "one-step",
            },
        ),
    ):
        spec.write_text(json.dumps(TOY | parts))
        assert run(["certify", str(spec), "--out", str(tmp_path / name), "--quiet"]) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["n"] == 4
        assert report["cost"]["nfe_forward"] >= 4 * 24 * 6 * 2


def test_invalid_options_and_specs_are_refused():
    cases: list[tuple[float, Any, str]] = [
        (1.5, "exact", "sigma must be above 0 and below 1.5"),
        (0.2, "exakt", "posterior must be one of approximate, exact"),
    ]
    for sigma, posterior, said in cases:
        with pytest.raises(ValueError, match=said):
            NoisedDiffusionClassifier(mixture(), sigma=sigma, posterior=posterior)

    class Latent(Mixture):
        def encode(self, x):
            return Denoiser.encode(self, x) / 2

    with pytest.raises(ValueError, match="works on latents"):
        NoisedDiffusionClassifier(Latent(mixture().means, 0.2), sigma=0.2)
    with pytest.raises(SpecError, match="leave out the purifier"):
        certify.check(TOY | {"denoiser": "mixture", "purifier": "one-step"})
    with pytest.raises(SpecError, match=r"the noise is certification\.sigma"):
        certify.check(TOY | {"classifier": TOY["classifier"] | {"sigma": 0.5}})
