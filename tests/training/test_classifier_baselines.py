"""ALP, AWP, and MACER against plain adversarial training, handwritten loops, and closed forms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfool.data import fetch
from unfool.data.digits import digits
from unfool.models.build import small_cnn
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch
from unfool.training.objectives.adversarial import PGDAT, TRADES
from unfool.training.objectives.cross_entropy import CrossEntropy
from unfool.training.objectives.logit_pairing import ALP
from unfool.training.objectives.macer import MACER
from unfool.training.objectives.weight_perturbation import AWP
from unfool.training.options import TrainingOptions
from unfool.training.train import train

X = Noise.of(0, range(8)).uniform(torch.empty(8, 1, 4, 4))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
NOISE = Noise.of(3, range(8))


def model(*, normalized: bool = False) -> NormalizedClassifier:
    seed_torch(0, "baselines")
    middle = [nn.BatchNorm1d(6)] if normalized else []
    return NormalizedClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 6), *middle, nn.Tanh(), nn.Linear(6, 3)),
        (0.5,),
        (0.5,),
    )


def slopes(objective, net) -> list[torch.Tensor]:
    net.zero_grad()
    objective(net, X, Y, NOISE).mean().backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (ALP(weight=0, clean_share=0, steps=3), PGDAT(steps=3)),
        (ALP(weight=0, clean_share=1, steps=3), CrossEntropy()),
        (AWP(gamma=0, steps=3), PGDAT(steps=3)),
        (AWP(gamma=0, beta=6, steps=3), TRADES(steps=3)),
    ],
    ids=["ALP", "ALP of clean images", "AWP", "TRADES-AWP"],
)
def test_objective_without_its_extra_term_equals_plain_training(objective, plain):
    net = model()
    assert torch.equal(objective(net, X, Y, NOISE), plain(net, X, Y, NOISE))
    for ours, theirs in zip(slopes(objective, net), slopes(plain, net), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_logit_pairing_matches_its_formula():
    net, plain = model(), PGDAT(steps=3)
    x_adv = plain.adversarial(net, X, Y, NOISE)
    clean, moved = net(X, NOISE), net(x_adv, NOISE)
    gap = (clean - moved).square().mean(1)
    entropy = [F.cross_entropy(logits, Y, reduction="none") for logits in (clean, moved)]
    wanted = 0.25 * entropy[0] + 0.75 * entropy[1] + 2 * gap
    assert torch.allclose(ALP(weight=2, clean_share=0.25, steps=3)(net, X, Y, NOISE), wanted)
    assert bool((gap > 0).all())


@pytest.mark.parametrize("beta", [None, 6.0])
def test_weight_perturbation_is_relative_and_raises_the_loss(beta):
    net = model()
    objective = AWP(gamma=0.1, beta=beta, steps=3)
    plain = PGDAT(steps=3) if beta is None else TRADES(steps=3, beta=beta)
    x_adv = plain.adversarial(net, X, Y, NOISE)
    worst = objective.perturbed(net, X, x_adv, Y, NOISE)
    assert list(worst) == ["network.1.weight", "network.3.weight"], "of two dimensions or more"
    before = float(plain.loss(net, X, x_adv, Y, NOISE).detach().mean())
    for name, w in worst.items():
        own = net.get_parameter(name)
        assert float((w - own).norm() / own.norm()) == pytest.approx(0.1, rel=1e-4)
    assert float(objective(net, X, Y, NOISE).detach().mean()) > before + 1e-3


def test_awp_gradient_is_taken_at_the_perturbed_weights():
    net, objective, plain = model(), AWP(gamma=0.1, steps=3), PGDAT(steps=3)
    x_adv = plain.adversarial(net, X, Y, NOISE)
    worst = objective.perturbed(net, X, x_adv, Y, NOISE)
    ours = slopes(objective, net)
    other = model()
    with torch.no_grad():
        for name, w in worst.items():
            other.get_parameter(name).copy_(w)
    plain.loss(other, X, x_adv, Y, NOISE).mean().backward()
    for slope, parameter in zip(ours, other.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(slope, parameter.grad, atol=1e-6)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), model().parameters(), strict=True)
    )


def test_awp_search_leaves_batch_norm_statistics_unchanged():
    one, other = model(normalized=True).train(), model(normalized=True).train()
    PGDAT(steps=2)(one, X, Y, NOISE)
    AWP(gamma=1e-9, steps=2)(other, X, Y, NOISE)
    assert int(other.get_buffer("network.2.num_batches_tracked")) == 1
    for ours, theirs in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


class Half(nn.Module):
    """A linear classifier: class 1 where w x > b."""

    def __init__(self, scale: float = 1e3, border: float = 0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.border = border

    def forward(self, x, noise):
        score = self.scale * (x.flatten(1).mean(1) * x[0].numel() ** 0.5 - 2 * self.border)
        return torch.stack([-score, score], 1)


def test_macer_radius_of_a_half_space_is_the_distance_to_its_border():
    """The margin is 2 distance / sigma, so the hinge is (sigma / 2) gamma - distance."""
    distance, sigma, gamma = torch.tensor([0.1, 0.2, 0.3]), 0.25, 8.0
    x = (0.5 + distance / 2).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    y, noise, objective = (
        torch.ones(3).long(),
        Noise.of(1, range(3)),
        MACER(sigma, 20_000, gamma=gamma),
    )
    each, many = noise.repeat(20_000), x.repeat_interleave(20_000, 0)
    with torch.no_grad():
        logits = Half()(many + sigma * each.child("smooth").normal(many), each).view(3, 20_000, 2)
    wanted = sigma / 2 * gamma - distance
    assert torch.allclose(objective.hinge(logits, y), wanted, atol=0.01)
    assert objective.hinge(logits, 1 - y).tolist() == [0, 0, 0], "of wrong images there is none"
    assert MACER(sigma, gamma=1.2).hinge(logits, y)[1:].tolist() == [0, 0], "beyond gamma neither"


def test_macer_without_hinge_is_cross_entropy_of_the_mean_probability():
    net, sigma, copies = model(), 0.1, 5
    found = MACER(sigma, copies, weight=0)(net, X, Y, NOISE)
    each, many = NOISE.repeat(copies), X.repeat_interleave(copies, 0)
    noisy = many + sigma * each.child("smooth").normal(many)
    mean = net(noisy, each).softmax(1).view(8, copies, 3).mean(1)
    assert torch.allclose(found, -mean.gather(1, Y[:, None])[:, 0].log(), atol=1e-6)


def test_macer_gradient_is_finite_at_saturated_probabilities():
    net = Half(scale=1e6)
    x = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    MACER(0.25)(net, x, torch.tensor([0, 1, 1]), Noise.of(0, range(3))).mean().backward()
    assert net.scale.grad is not None
    assert bool(net.scale.grad.isfinite())


@pytest.mark.parametrize(
    "objective", [ALP(steps=2), MACER(copies=3)], ids=lambda part: type(part).__name__
)
def test_loss_of_an_image_does_not_depend_on_the_batch(objective):
    net = model().eval()
    whole = objective(net, X, Y, NOISE)
    parts = [objective(net, X[i : i + 1], Y[i : i + 1], NOISE.take([i])) for i in range(8)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (ALP, {"weight": -1}), (ALP, {"clean_share": 2}), (ALP, {"norm": "l7"}),
        (AWP, {"gamma": -0.1}), (AWP, {"beta": -1}), (AWP, {"steps": -1}),
        (MACER, {"sigma": 0}), (MACER, {"copies": 0}), (MACER, {"gamma": 0}), (MACER, {"beta": 0}),
    ],
)  # fmt: skip
def test_bad_options_are_refused(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


def trained(objective, folder, start=None) -> NormalizedClassifier:
    """Train a small digits network for 150 steps, from random weights or from those of `start`."""
    seed_torch(0, "digits")
    net = small_cnn(width=8)
    if start is not None:
        net.load_state_dict(start.state_dict())
    options = TrainingOptions(150, batch_size=64, learning_rate=4e-3, warmup=10, ema_decay=0.9)
    return train(net, objective, digits("train"), folder, options, quiet=True)  # pyright: ignore


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(CrossEntropy(), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "objective",
    [ALP(eps=0.1, steps=2, step_size=0.7), AWP(eps=0.1, steps=2, step_size=0.7)],
    ids=["ALP", "AWP"],
)
def test_short_training_raises_robust_accuracy_on_digits(plain, tmp_path, objective):
    net = trained(objective, tmp_path, plain)
    x, y = fetch(digits("test"), range(200))
    noise = Noise.of(9, range(200))

    def robust(classifier):
        x_adv = PGDAT(eps=0.1, steps=10).adversarial(classifier, x, y, noise)
        with torch.no_grad():
            return float((classifier(x_adv, noise).argmax(1) == y).float().mean())

    assert robust(net) > robust(plain) + 0.1


def test_short_macer_training_enlarges_certified_radii(plain, tmp_path):
    objective = MACER(sigma=0.25, copies=4, weight=2)
    net = trained(objective, tmp_path, plain)
    x, y = fetch(digits("test"), range(200))
    each = Noise.of(9, range(200)).repeat(50)
    many = x.repeat_interleave(50, 0)
    noisy = many + 0.25 * each.child("certify").normal(many)

    def radius(classifier):
        with torch.no_grad():
            votes = F.one_hot(classifier(noisy, each).argmax(1).view(200, 50), 10).float().mean(1)
        own = votes.gather(1, y[:, None])[:, 0].clamp(0.5, 0.99)
        return float(0.25 * torch.special.ndtri(own).mean())

    assert radius(net) > radius(plain) + 0.02
