"""Properties of every purifier: its walk, its dependence on image and noise only, its gradient."""

from typing import Any

import pytest
import torch
from probe import assert_gradient, blobs, curved
from torch import nn

from unfool.defenses.coup import COUP
from unfool.defenses.denoised_smoothing import DensePure, OneStep
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.distribution_transfer import DistributionTransfer
from unfool.defenses.energy_denoiser import Energy
from unfool.defenses.flowpure import FlowPure
from unfool.defenses.freqpure import FreqPure
from unfool.defenses.gdmp import GDMP
from unfool.defenses.gradual import Gradual
from unfool.defenses.langevin import Langevin
from unfool.defenses.likelihood import LikelihoodMaximization
from unfool.defenses.mani import Spectrum
from unfool.defenses.mimic import Mimic
from unfool.defenses.resized import Resized
from unfool.defenses.ssni import ScoreNorm
from unfool.diffusion.denoiser import Mixture
from unfool.noise import Noise, seed_torch
from unfool.toy.blobs import mixture

NOISE, X, DENOISER = Noise.of(0, range(4)), blobs(), mixture()
SMOOTH = Mixture(0.3 * Noise.of(3, range(5)).normal(torch.empty(5, 1, 4, 4)).double(), 0.1)


class Hilly(nn.Module):
    """A smooth energy model of 4 x 4 images."""

    def __init__(self):
        super().__init__()
        seed_torch(0, "smooth")
        self.inner, self.outer = nn.Conv2d(1, 8, 3).double(), nn.Linear(8, 3).double()
        self.requires_grad_(False)

    def density(self, x):
        return 30 * self.outer(torch.tanh(4 * self.inner(x)).mean((2, 3))).logsumexp(1)


def diffpure(**options: Any) -> DiffPure:
    return DiffPure(DENOISER, **({"t": 0.2, "steps": 4, "sampler": "ddpm"} | options))


def transfer(**options: Any) -> DistributionTransfer:
    return DistributionTransfer(DENOISER, curved(), **({"t": 0.1, "steps": 3} | options))


def gdmp(**options: Any) -> GDMP:
    return GDMP(DENOISER, t=0.036, steps=3, passes=2, **options)


def likelihood(**options: Any) -> LikelihoodMaximization:
    return LikelihoodMaximization(DENOISER, steps=3, **options)


PURIFIERS = {
    "diffpure": diffpure(sampler="sde"),
    "diffpure, discrete": diffpure(sampler="sde", forward="discrete"),
    "diffpure, ddpm": diffpure(),
    "diffpure, large": diffpure(variance="large"),
    "diffpure, ddim": diffpure(sampler="ddim"),
    "diffpure, half": diffpure(sampler="ddim", eta=0.5),
    "diffpure, ode": diffpure(sampler="ode"),
    "diffpure, heun": diffpure(sampler="heun"),
    "diffpure, heun noised": diffpure(sampler="heun", eta=1.0),
    **{
        f"coup, {sampler}": COUP(DENOISER, curved(), steps=5, weight=4.0, sampler=sampler)
        for sampler in ("sde", "ddpm", "ddim", "ode", "heun")
    },
    "transfer": transfer(),
    "transfer, l2, l1": transfer(output="l2", input="l1"),
    "transfer, confidence": transfer(output="confidence", input="none"),
    "transfer, entropy, ssim": transfer(output="entropy", input="ssim"),
    "transfer, repel": transfer(output="repel", scale=0.2),
    "transfer, noised anchor": transfer(anchor="noised", output="none"),
    "transfer, x_hat": transfer(at="x_hat"),
    "transfer, x_hat, sde": transfer(at="x_hat", sampler="sde"),
    "transfer, ddim": transfer(sampler="ddim"),
    "transfer, large": transfer(variance="large", anchor="noised"),
    "gdmp": gdmp(scale=60),
    "gdmp, image": gdmp(anchor="image"),
    "gdmp, ssim": gdmp(distance="ssim", scale=7e4),
    "gdmp, ssim-padded, image": gdmp(distance="ssim-padded", anchor="image"),
    "gdmp, unguided": gdmp(distance="none"),
    "gradual": Gradual(DENOISER, passes=[(0.03, 3), (0.05, 2)]),
    **{
        f"likelihood, {optimizer}, {eta}": likelihood(optimizer=optimizer, eta=eta)
        for optimizer in ("adam", "gradient", "momentum")
        for eta in (None, 0.06)
    },
    "flowpure": FlowPure(DENOISER, t=0.1, steps=3),
    "langevin": Langevin(SMOOTH, steps=5),
    "energy": Langevin(Energy(Hilly()), t=0.01, steps=6, sigma2=None, weight=60.0, eta=0.1),
    "one-step": OneStep(DENOISER, sigma=0.2),
    "densepure": DensePure(DENOISER, t=0.1, steps=5),
    "freqpure": diffpure(correction=FreqPure(1, 1)),
    "mani": diffpure(sampler="sde", shaping=Spectrum()),
    "mimic": diffpure(guide=Mimic(scale=5)),
    "mimic, smooth": diffpure(guide=Mimic(scale=5, smoothing=0.1)),
    "mimic, x_hat": diffpure(guide=Mimic(scale=5, smoothing=0.1, through=False)),
    "ssni": diffpure(noise_level=ScoreNorm(DENOISER, center=4.0, width=8.0, levels=2)),
    "resized": Resized(Gradual(mixture(side=3), passes=[(0.03, 3)]), size=3),
}
LENGTHS = {
    "gdmp": 8,
    "gradual": 7,
    "flowpure": 4,
    "langevin": 6,
    "coup": 6,
}  # number of states of a walk


@pytest.mark.parametrize("name", [n for n in PURIFIERS if hasattr(PURIFIERS[n], "walk")])
def test_walk_ends_where_forward_ends_and_time_never_rises(name: str):
    purifier = PURIFIERS[name]
    with torch.no_grad():
        states = list(purifier.walk(X, NOISE))
        assert torch.equal(states[-1][1], purifier(X, NOISE))
    times = [t for t, _ in states]
    method = name.split(",")[0]
    assert len(states) == LENGTHS.get(method, len(states))
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(0, abs=1e-4)
    if method in ("diffpure", "coup", "transfer", "flowpure"):
        assert times == purifier.times.tolist()
    assert all(state.shape == X.shape for _, state in states)
    assert not torch.equal(states[-1][1], states[-2][1])
    if method in ("coup", "flowpure", "langevin", "likelihood"):  # these add no forward noise
        assert torch.allclose(states[0][1], X, atol=1e-6)


@pytest.mark.parametrize("name", PURIFIERS)
def test_output_depends_only_on_the_image_and_its_noise(name: str):
    purify, order = PURIFIERS[name], [3, 1, 0]
    with torch.no_grad():
        whole = purify(X, NOISE)
        alone = torch.cat([purify(X[i : i + 1], NOISE.take([i])) for i in range(4)])
        assert torch.allclose(alone, whole, atol=1e-10)
        part = purify(X[order], Noise.of(0, order))
        assert torch.allclose(part, whole[order], atol=1e-10)
    seen = purify(X.clone().requires_grad_(), NOISE)  # computing a gradient changes nothing
    assert torch.equal(seen.detach(), whole)
    if name not in ("flowpure", "coup, ddim", "coup, ode", "coup, heun"):  # these draw no noise
        other = purify(X, Noise.of(1, range(4)))
        assert ((other - whole).detach().flatten(1).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("name", PURIFIERS)
def test_gradient_matches_finite_differences(name: str):
    assert_gradient(lambda x: PURIFIERS[name](x, NOISE), X)


def test_walk_of_several_passes_counts_down_the_total_time():
    gradual = PURIFIERS["gradual"]
    with torch.no_grad():
        times = [t for t, _ in gradual.walk(X, NOISE)]
    assert times == pytest.approx([0.08, 0.07, 0.06, 0.05, 0.05, 0.025, 0.0])
