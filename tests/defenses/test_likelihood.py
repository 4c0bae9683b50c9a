"""Tests of likelihood maximization, mostly with a linear denoiser, which gives closed forms."""

import pytest
import torch

from unfool.defenses.likelihood import LikelihoodMaximization
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.schedule import VP, time_of_noise
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.toy.blobs import Blobs, mixture

X = torch.stack([Blobs(3)[i][0] for i in range(3)]).double()
NOISE = Noise.of(0, range(3))
GAUSSIAN = Mixture(torch.full((1, 1, 4, 4), 0.2, dtype=torch.float64), 0.5)
DARK = Mixture(torch.full((1, 1, 4, 4), -1.2, dtype=torch.float64), 0.5)  # pulls images below 0
LIGHT = Mixture(-DARK.means, 0.5)


def loss_gradient(z: torch.Tensor) -> torch.Tensor:
    """Gradient of |x_hat(alpha z + sigma eps) - z|^2, pixel noise 0.25, x_hat = m + k (x_t - alpha m)."""
    t = torch.tensor(time_of_noise(VP(), 0.25), dtype=torch.float64)
    _, alpha, sigma, _ = VP()(t)
    k = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    eps = NOISE.child("forward", 0).normal(z)
    miss = 0.2 + k * (alpha * z + sigma * eps - alpha * 0.2) - z
    return 2 * (k * alpha - 1) * miss


@pytest.mark.parametrize("optimizer", ["adam", "gradient", "momentum"])
def test_one_step_matches_closed_form(optimizer):
    options = {"steps": 1, "low": 0.25, "high": 0.25, "step_size": 0.01, "optimizer": optimizer}
    out = LikelihoodMaximization(GAUSSIAN, **options)(X, NOISE)
    gradient = loss_gradient(2 * X - 1)
    move = gradient if optimizer == "gradient" else gradient.sign()
    assert torch.allclose(out, X - 0.01 * move, atol=1e-7)


def test_adam_matches_torch():
    """Compare three steps with `torch.optim.Adam` on the same noise."""
    times, states = [], []

    class Spy(Mixture):
        def forward(self, x_t, t, label=None):
            times.append(t)
            states.append(x_t)
            return super().forward(x_t, t, label)

    pure = LikelihoodMaximization(Spy(GAUSSIAN.means, 0.5), steps=3, step_size=0.02)
    with torch.no_grad():
        out = pure(X, NOISE)
    z = (2 * X - 1).clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.04)
    for i, t in enumerate(times):
        x_t = GAUSSIAN.perturb(z, t, NOISE.child("forward", i))
        assert torch.allclose(x_t.detach(), states[i].detach(), atol=1e-6)
        loss = (GAUSSIAN(x_t, t) - z).square().flatten(1).mean(1).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        adam.step()
    assert torch.allclose(2 * out - 1, z.detach(), atol=1e-6)
    low, high = (time_of_noise(VP(), sigma) for sigma in (0.2, 0.3))
    assert all(((t >= low) & (t <= high)).all() for t in times)
    assert len({float(t) for stack in times for t in stack}) == 9  # one for each image and step


def test_momentum_in_a_ball_matches_explicit_steps():
    """Four explicit steps, in which pixels reach the ball, the edge of [0, 1], or neither."""
    options = {"steps": 4, "low": 0.25, "high": 0.25, "step_size": 0.012, "optimizer": "momentum"}
    x = X.clone()
    x[:, :, 0], x[:, :, 1] = 0.0, 0.02
    out = LikelihoodMaximization(DARK, eta=0.03, **options)(x, NOISE)
    t, moment, at = torch.tensor(time_of_noise(VP(), 0.25)).double(), 0.0, x
    for i in range(4):
        z = (2 * at - 1).requires_grad_()
        x_t = DARK.perturb(z, t, NOISE.child("forward", i))
        (gradient,) = torch.autograd.grad((DARK(x_t, t) - z).square().sum(), z)
        moment = 0.9 * moment + gradient
        at = (at - 0.012 * moment.sign()).clamp(x - 0.03, x + 0.03).clamp(0, 1)
    assert torch.allclose(out, at, atol=1e-9)
    moved = (out - x).abs()
    assert bool((moved > 0.0299).any())
    assert bool((out == 0).any())
    assert bool(((moved < 0.0299) & (out > 0)).any())


@pytest.mark.parametrize("world", [DARK, LIGHT])
@pytest.mark.parametrize("optimizer", ["adam", "gradient", "momentum"])
def test_ball_constraint_keeps_output_near_the_image_and_in_range(optimizer, world):
    x = X.clone()
    for row, value in enumerate((0.0, 1.0, 0.01, 0.99)):
        x[:, :, row, :3] = value
    with torch.no_grad():
        near, far = (
            LikelihoodMaximization(world, optimizer=optimizer, step_size=0.1, eta=eta)(x, NOISE)
            for eta in (8 / 255, None)
        )
    assert float((near - x).abs().max()) == pytest.approx(8 / 255, abs=1e-6)
    assert float((far - x).abs().max()) > 0.05
    edge = float(world is LIGHT)
    assert bool((near == edge).any())
    assert bool(((near >= 0) & (near <= 1)).all())
    assert bool(((far < 0) | (far > 1)).any())


def test_published_settings_raise_the_likelihood():
    """For 16 blobs with pixels perturbed by 8/255, compare log p of the mixture in closed form."""
    data, model, noise = Blobs(16), mixture(), Noise.of(0, range(16))
    x = torch.stack([data[i][0] for i in range(16)])
    x = (x + 8 / 255 * noise.normal(x).sign()).clamp(0, 1)

    def likelihood(x):
        gap = (2 * x - 1)[:, None] - model.means
        return (-gap.square() / (2 * model.spread**2)).flatten(2).sum(2).logsumexp(1)

    paper = {"steps": 5, "step_size": 2 / 255, "optimizer": "momentum", "eta": 8 / 255}
    out = LikelihoodMaximization(model, **paper)(x, noise)
    gained = likelihood(out) - likelihood(x)
    assert float((gained > 0).double().mean()) > 0.9
    assert float(gained.mean()) > 1


def test_purification_moves_images_toward_the_data():
    far = torch.full((3, 1, 4, 4), 0.95, dtype=torch.float64)  # the data are 0.6 +- 0.25
    out = LikelihoodMaximization(GAUSSIAN, steps=10, step_size=0.02)(far, NOISE)
    assert (out.mean((1, 2, 3)) < 0.9).all()


def test_network_with_attention_has_a_gradient():
    seed_torch(0, "attention")
    model = unet(channels=1, size=8, widths=(8, 8), groups=4, attention=(1,))
    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    out = LikelihoodMaximization(model, steps=2, optimizer="gradient")(x, Noise.of(0, [0]))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 0.4}, "low must be at most high"),
        ({"high": 100.0}, "sigma must be above 0 and at most 76"),
    ],
)
def test_invalid_options_are_refused(options, words: str):
    with pytest.raises(ValueError, match=words):
        LikelihoodMaximization(mixture(), **options)


def test_ball_of_pixels_is_refused_for_latent_models():
    latent = mixture()
    latent.resizes = True
    with pytest.raises(ValueError, match="leave eta out"):
        LikelihoodMaximization(latent, eta=8 / 255)


def test_gradient_of_momentum_is_that_of_a_clamped_identity():
    """As documented, it is 1 for a pixel, and 0 for a pixel that is clamped to 0 or 1."""
    x = X.clone()
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    x.requires_grad_()
    pure = LikelihoodMaximization(DARK, optimizer="momentum", eta=8 / 255)
    out = pure(x, NOISE)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    held = (out == 0) | (out == 1)
    assert bool(held.any())
    assert torch.equal(gradient, (~held).double())
