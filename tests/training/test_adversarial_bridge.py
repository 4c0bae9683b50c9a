"""Adversarial bridges: formulas of the papers, known velocities, the search, and short training."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfool.attacks.pgd import PGD
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.flowpure import FlowPure
from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser
from unfool.diffusion.schedule import VP, Discrete, pixel_noise
from unfool.models.card import trained_classifier, trained_denoiser
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.threat import Threat
from unfool.toy.blobs import Blobs, bayes
from unfool.training.objectives.adversarial_bridge import AdversarialBridge
from unfool.training.objectives.denoising import Denoising, denoising_loss
from unfool.training.options import TrainingOptions
from unfool.training.train import train

X = 0.2 + 0.6 * Noise.of(0, range(3)).uniform(torch.empty(3, 1, 4, 4))
Y = torch.tensor([0, 1, 1])
NOISE = Noise.of(3, range(3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        seed_torch(0, "bridge")
        self.map, self.drop = nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x, time):
        self.seen.append(x.detach())
        self.modes.append(self.training)
        return self.drop(self.map(x))


def net(model: NetworkDenoiser) -> Net:
    assert isinstance(model.network, Net)
    return model.network


class Brightness(nn.Module):
    """A classifier of two classes: is the mean above 0.5?"""

    def forward(self, x, noise):
        score = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


@dataclass(frozen=True)
class Shift:
    """An attack that adds the same value to every pixel."""

    by: float = 0.02
    bounded: bool = True

    def __call__(self, model, x, y, threat, noise):
        return x + self.by


def made(attack: Any = Shift(), **options) -> AdversarialBridge:
    return AdversarialBridge(Brightness(), attack, **options)


@pytest.mark.parametrize("schedule", [VP(), Discrete(1000)])
def test_diffusion_bridge_matches_the_paper(schedule):
    """x_t = alpha z + sigma eps + k delta, and the target is eps + k / sigma delta."""
    model = NetworkDenoiser(Net(), schedule=schedule).eval()
    objective = made(t_from=0.15, t_max=0.15)
    loss = objective(model, X, Y, NOISE)
    share = NOISE.child("time").uniform(X[:, :1, :1, :1])
    _, alpha, sigma, _ = schedule(1e-3 + (0.15 - 1e-3) * share)
    _, last, most, _ = schedule(torch.tensor(0.15))
    k = last**2 / most**2 * sigma**2 / alpha
    eps, delta = NOISE.child("noise").normal(X), 2 * 0.02
    x_t = alpha * (2 * X - 1) + sigma * eps + k * delta
    assert torch.allclose(net(model).seen[-1], x_t, atol=1e-5)
    wanted = (model.network(x_t, None) - eps - k / sigma * delta).square().flatten(1).mean(1)
    assert torch.allclose(loss, wanted, rtol=1e-4)


def test_flow_path_is_a_straight_line_whose_velocity_is_the_target():
    model = NetworkDenoiser(Net()).eval()
    loss = made(path="flow", attacked="classifier")(model, X, Y, NOISE)
    _, alpha, sigma, _ = VP()(torch.tensor([1e-3, 0.2]))
    least, most = sigma / alpha
    s = least + (most - least) * NOISE.child("time").uniform(X[:, :1, :1, :1])
    state = 2 * X - 1 + s / most * 2 * 0.02
    _, alpha, _, _ = VP()(time_of(s))
    assert torch.allclose(net(model).seen[-1], alpha * state, atol=1e-4)
    velocity = model.network(alpha * state, None) * most  # d x / d (s / S)
    wanted = (velocity - 2 * 0.02).square().flatten(1).mean(1) / most**2
    assert torch.allclose(loss, wanted, rtol=1e-2)


def time_of(size):
    """Return the time at which sigma / alpha of the VP schedule equals `size`."""
    return (torch.sqrt(0.01 + 39.8 * torch.log1p(size**2)) - 0.1) / 19.9


def test_bridge_with_zero_budget_equals_plain_denoising():
    model = NetworkDenoiser(Net()).eval()
    t = 1e-3 + (0.1 - 1e-3) * NOISE.child("time").uniform(X[:, :1, :1, :1])
    wanted = denoising_loss(model, model.encode(X), t, Y, NOISE.child("noise").normal(X))
    found = made(PGD(steps=2), eps=0.0, t_max=0.1)(model, X, Y, NOISE)
    assert torch.allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("path", ["diffusion", "flow"])
def test_all_queries_of_the_attack_share_one_time_and_one_noise(path):
    asked = []

    def attack(model, x, y, threat, noise):
        whole = model(x, noise.for_query(0))
        asked.append(torch.equal(model(x, noise.for_query(7)), whole))
        few = model(x[1:], noise.take([1, 2]).for_query(3))
        asked.append(torch.allclose(few, whole[1:], atol=1e-6))
        many = model(x.repeat_interleave(2, 0), noise.for_query(1, 2))
        asked.append(torch.allclose(many, whole.repeat_interleave(2, 0), atol=1e-6))
        return x

    model = NetworkDenoiser(Net()).eval()
    AdversarialBridge(Brightness(), attack, path=path)(model, X, Y, NOISE)
    assert asked == [True] * 3


def test_attack_raises_the_loss_of_the_one_step_estimate():
    model, losses = NetworkDenoiser(nn.Conv2d(1, 1, 1), predicts="image").eval(), []
    model.network.forward = lambda x, time: 0.9 * x
    seen = []

    def attack(target, x, y, threat, noise):
        x_adv = PGD(steps=3)(target, x, y, threat, noise)
        seen.append(x_adv)
        losses.extend(
            nn.functional.cross_entropy(target(image, noise.for_query(0)), y)
            for image in (x, x_adv)
        )
        return x_adv

    AdversarialBridge(Brightness(), attack, eps=0.1)(model, X, Y, NOISE)
    assert losses[1] > losses[0]
    assert bool(Threat("linf", 0.1).allows(X, seen[0]).all())


def test_budgets_are_drawn_uniformly_for_each_image():
    """The classifier is linear, so PGD uses the whole budget in each pixel."""
    net, attack = Net(), PGD(steps=4, step_size=1)
    objective = AdversarialBridge(
        Brightness(), attack, path="flow", attacked="classifier", eps=0.1, budget="uniform"
    )
    model = NetworkDenoiser(net, predicts="ve").eval()  # its network sees x_t / alpha
    objective(model, X, Y, NOISE)
    _, alpha, sigma, _ = VP()(torch.tensor([1e-3, 0.2]))
    least, most = sigma / alpha
    share = NOISE.child("time").uniform(X[:, :1, :1, :1])
    passed = (least + (most - least) * share) / most
    moved = ((net.seen[-1] - (2 * X - 1)) / passed / 2).abs()
    budget = 0.1 * NOISE.child("budget").uniform(X[:, :1, :1, :1])
    assert torch.allclose(moved, budget.expand_as(moved), atol=1e-4)


def test_attack_that_exceeds_the_threat_is_refused():
    model = NetworkDenoiser(Net()).eval()
    with pytest.raises(RuntimeError, match="exceeded the threat"):
        made(Shift(0.1))(model, X, Y, NOISE)
    assert made(Shift(0.1, bounded=False))(model, X, Y, NOISE).isfinite().all()


@pytest.mark.parametrize("path", ["diffusion", "flow"])
def test_loss_is_independent_of_the_batch_and_leaves_no_gradients(path):
    model = NetworkDenoiser(Net()).eval()
    objective = made(PGD(steps=2), path=path, budget="uniform")
    whole = objective(model, X, Y, NOISE)
    parts = [objective(model, X[i : i + 1], Y[i : i + 1], NOISE.take([i])) for i in range(3)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4)
    model.train()
    net(model).modes.clear()
    objective(model, X, Y, NOISE)
    assert net(model).modes.pop() is True, "the loss is in training mode"
    assert set(net(model).modes) == {False}, "the search is in evaluation mode"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"t_from": 0.3}, "t_min < t_from <= t_max"),
        ({"t_min": 0.2, "path": "flow"}, "t_min < t_from <= t_max"),
    ],
)
def test_bad_options_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        made(**bad)


class Pixelwise(nn.Module):
    """A small network that is applied to each pixel, together with the time."""

    def __init__(self):
        super().__init__()
        seed_torch(1, "pixelwise")
        self.net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x, time):
        clock = (time / 100).view(-1, 1, 1, 1).expand_as(x)
        return self.net(torch.stack([4 * x, clock], -1)).squeeze(-1)


SOURCE, GOAL = (0.6, 0.06), (0.4, 0.03)  # mean and standard deviation of pixels in [0, 1]


class Gaussians:
    """A data set of clean images whose pixels are Gaussian."""

    classes = ("one", "two")

    def __len__(self):
        return 512

    def __getitem__(self, index):
        drawn = Noise.of(5, [index]).normal(torch.empty(1, 1, 4, 4))[0]
        return (GOAL[0] + GOAL[1] * drawn).clamp(0, 1), 0


class Elsewhere:
    """An "attack" that ignores the image and draws pixels from another Gaussian."""

    bounded = False

    def __call__(self, model, x, y, threat, noise):
        return (SOURCE[0] + SOURCE[1] * noise.child("other").normal(x)).clamp(0, 1)


def test_learned_flow_between_gaussians_matches_the_closed_form(tmp_path):
    """E[x_1 - x_0 | x_s] of independent Gaussians is linear, and its flow maps one to the other."""
    model = NetworkDenoiser(Pixelwise(), predicts="ve")
    objective = AdversarialBridge(Brightness(), Elsewhere(), path="flow", t_max=0.1)
    options = TrainingOptions(
        steps=500, batch_size=64, learning_rate=1e-2, warmup=10, ema_decay=0.95
    )
    trained = train(model, objective, Gaussians(), tmp_path, options, quiet=True)
    most = float(VP()(torch.tensor(0.1)).sigma / VP()(torch.tensor(0.1)).alpha)
    for passed in (0.25, 0.5, 0.9):  # s / S, which is 1 at the input image
        center = (1 - passed) * GOAL[0] + passed * SOURCE[0]
        spread = math.hypot((1 - passed) * GOAL[1], passed * SOURCE[1])
        pixels = center + spread * torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
        covariance = (1 - passed) * GOAL[1] ** 2 - passed * SOURCE[1] ** 2
        wanted = GOAL[0] - SOURCE[0] + covariance / spread**2 * (pixels - center)
        t = time_of(torch.tensor(passed * most))
        with torch.no_grad():
            x_hat = trained(VP()(t).alpha * (2 * pixels - 1), t)
        velocity = ((x_hat + 1) / 2 - pixels) / passed
        assert torch.allclose(velocity, wanted, atol=0.02), f"at {passed}"
    assert isinstance(trained, NetworkDenoiser)
    noise = Noise.of(7, range(200))
    x = SOURCE[0] + SOURCE[1] * noise.normal(torch.empty(200, 1, 4, 4))
    with torch.no_grad():
        pure = FlowPure(trained, t=0.1, steps=20)(x, noise)
    assert float(pure.mean()) == pytest.approx(GOAL[0], abs=0.01)
    assert float(pure.std()) == pytest.approx(GOAL[1], abs=0.01)


def test_ddpm_steps_stay_on_the_bridge():
    """With a perfectly trained network, the state has the share (s / S)^2 of delta at every time."""
    x, delta = torch.full((1, 1, 2, 2), 0.4), 0.05

    class Learned(Denoiser):
        schedule = VP()

        def forward(self, x_t, t, label=None):
            return torch.full_like(x_t, 2 * 0.4 - 1)

    class Still(Noise):
        def child(self, *path):
            return self

        def normal(self, like):
            return torch.zeros_like(like)

    purify = DiffPure(Learned(), t=0.2, steps=5, sampler="ddpm")
    path = list(purify.walk(x + delta, Still(())))
    assert len(path) == 6
    for t, state in path[:-1]:
        share = (pixel_noise(VP(), t) / pixel_noise(VP(), 0.2)) ** 2
        alpha = VP()(torch.tensor(t)).alpha
        left = (2 * state - 1) / alpha - (2 * x - 1)
        assert torch.allclose(left, torch.tensor(2 * delta * share), atol=1e-5)


class Checkers:
    """An "attack" that adds the same checkerboard to every image."""

    def __call__(self, model, x, y, threat, noise):
        return (x + threat.eps * PATTERN).clamp(0, 1)


PATTERN = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)


def test_short_bridge_training_removes_a_pattern_that_a_denoiser_keeps(tmp_path):
    """A denoiser takes the pattern for part of the image, and so keeps a share of it."""
    noise, eps = Noise.of(9, range(200)), 0.15
    x, _ = fetch(Blobs(712), range(512, 712))
    x_adv = (x + eps * PATTERN).clamp(0, 1)
    options = TrainingOptions(150, batch_size=64, learning_rate=5e-3, warmup=10, ema_decay=0.9)

    def left(objective, folder):
        seed_torch(0, "bridge")
        model = unet(channels=1, size=4, widths=(16,), groups=8, predicts="edm")
        trained = train(model, objective, Blobs(512), tmp_path / folder, options, quiet=True)
        assert isinstance(trained, NetworkDenoiser)
        purify = DiffPure(trained, t=0.1, steps=2, sampler="ddpm")
        with torch.no_grad():
            return float(((purify(x_adv, noise) - x) * PATTERN).mean() / eps)

    bridge = AdversarialBridge(bayes(), Checkers(), eps=eps, t_from=0.1, t_max=0.1)
    plain = left(Denoising(t_max=0.1), "plain")
    assert plain > 0.15
    assert abs(left(bridge, "bridge")) < plain / 3


def test_short_flow_training_undoes_an_attack_on_digits(tmp_path):
    classifier, noise = trained_classifier("digits-classifier"), Noise.of(9, range(100))
    x, y = fetch(digits("test"), range(100))
    x_adv = PGD(steps=5)(classifier, x, y, Threat("linf", 0.2), noise)
    attack = PGD(steps=1, step_size=1)
    objective = AdversarialBridge(
        classifier, attack, path="flow", attacked="classifier", eps=0.2, t_max=0.1
    )
    model = trained_denoiser("digits-denoiser").requires_grad_(True)
    options = TrainingOptions(40, batch_size=48, learning_rate=1e-3, warmup=5, ema_decay=0.9)
    after = train(model, objective, digits("train"), tmp_path, options, quiet=True)

    def right(images, denoiser=None):
        with torch.no_grad():
            pure = FlowPure(denoiser, t=0.1, steps=2)(images, noise) if denoiser else images
            return float((classifier(pure, noise).argmax(1) == y).float().mean())

    assert right(x_adv) < 0.2
    assert right(x_adv, after) > max(0.85, right(x_adv, trained_denoiser("digits-denoiser")))
    assert right(x, after) > 0.9
