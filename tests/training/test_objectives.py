"""Training objectives against their known properties."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn
from torch.nn import functional as F

from unfool.diffusion.denoiser import SIGMA_DATA, NetworkDenoiser, Prediction
from unfool.diffusion.schedule import VP, Discrete
from unfool.models.classifiers import NormalizedClassifier
from unfool.models.unet import unet
from unfool.noise import Noise, permutation
from unfool.threat import Threat
from unfool.training.objectives.adversarial import PGDAT, TRADES
from unfool.training.objectives.cross_entropy import CrossEntropy
from unfool.training.objectives.denoising import Denoising, denoising_loss, time_and_label

X = Noise.of(0, range(4)).uniform(torch.empty(4, 1, 4, 4))
Y = torch.tensor([0, 1, 1, 0])
NOISE = Noise.of(3, range(4))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(16, 16)

    def forward(self, x, time):
        return self.map(x.flatten(1)).view(x.shape)


def perfect(predicts: Prediction) -> NetworkDenoiser:
    """A denoiser with a small linear network, whose prediction a test may replace by the target."""
    return NetworkDenoiser(Linear(), predicts=predicts)


@pytest.mark.parametrize("predicts", ["noise", "image", "velocity", "edm"])
@pytest.mark.parametrize("t", [0.001, 0.1, 0.5, 1.0])
def test_exact_prediction_recovers_the_image(predicts, t):
    """`forward` maps the target to x_0, at every time and for every kind of prediction."""
    model, time = perfect(predicts), torch.tensor(t, dtype=torch.float64)
    z, eps = (2 * X - 1).double(), NOISE.normal(X.double())
    _, alpha, sigma, _ = VP()(time)
    model.predict = lambda x_t, t, label=None: model.target(z, eps, time)
    assert torch.allclose(model(alpha * z + sigma * eps, time), z, atol=1e-6)


@pytest.mark.parametrize("predicts", ["noise", "image", "velocity", "edm"])
def test_loss_factor_converts_image_error_to_loss(predicts):
    """(out - target)^2 = loss_factor (x_hat - x_0)^2."""
    model, t = perfect(predicts).double(), torch.tensor(0.3, dtype=torch.float64)
    x = X.double()
    z, eps = 2 * x - 1, NOISE.normal(x)
    _, alpha, sigma, _ = VP()(t)
    loss = denoising_loss(model, model.encode(x), t, Y, eps)
    error = (model(alpha * z + sigma * eps, t) - z).square().flatten(1).mean(1)
    assert torch.allclose(loss, model.loss_factor(t) * error)


def test_edm_network_inputs_and_targets_have_unit_variance():
    """Karras et al. (2022), section 5, for data with standard deviation 1/2."""
    noise = Noise.of(1, range(4000))
    z = SIGMA_DATA * noise.child("z").normal(torch.empty(4000, 1, 2, 2))
    eps = noise.child("e").normal(z)
    model = NetworkDenoiser(nn.Identity(), predicts="edm")
    for t in (0.01, 0.2, 0.9):
        time = torch.tensor(t)
        _, alpha, sigma, _ = VP()(time)
        seen = []
        model.network.forward = lambda x, time, seen=seen: seen.append(x) or x
        model.predict(alpha * z + sigma * eps, time)
        assert float(seen[0].std()) == pytest.approx(1, abs=0.03)
        assert float(model.target(z, eps, time).std()) == pytest.approx(1, abs=0.03)


def test_lognormal_times_follow_the_truncated_lognormal_distribution():
    objective = Denoising(t_max=0.9, times="lognormal")
    share = (torch.arange(4000) + 0.5).view(-1, 1, 1, 1) / 4000
    t = objective.quantile(share, VP()).double()
    assert t.min() >= objective.t_min
    assert t.max() <= 0.9
    _, alpha, sigma, _ = VP()(t)
    ends = [VP()(torch.tensor(end, dtype=torch.float64)) for end in (1e-3, 0.9)]
    low, high = ((math.log(s.sigma / s.alpha) + 1.2) / 1.2 for s in ends)
    found = (sigma / alpha).log().flatten().numpy()
    assert kstest(found, truncnorm(low, high, loc=-1.2, scale=1.2).cdf).statistic < 0.01


def test_no_time_of_a_short_chain_is_without_noise():
    """Times round to steps, and EDM's network takes the logarithm of the noise."""
    model = perfect("edm")
    model.schedule, model.time, noise = Discrete(100), "edm", Noise.of(0, range(400))
    x = X.repeat(100, 1, 1, 1)
    t, _ = time_and_label(Denoising(), model, x, Y.repeat(100), noise)
    assert float(model.schedule(t).sigma.min()) > 0
    assert float(t.min()) == pytest.approx(0.01)


def test_min_snr_weights_match_the_paper():
    """Hang et al. (2023): min(SNR, gamma) / SNR times the error of the predicted noise."""
    model = perfect("noise")
    plain, capped = Denoising(t_max=0.9), Denoising(t_max=0.9, min_snr=5.0)
    t = plain.quantile(NOISE.child("time").uniform(X[:, :1, :1, :1]), model.schedule)
    _, alpha, sigma, _ = model.schedule(t)
    snr = ((alpha / sigma) ** 2).flatten()
    weight = snr.clamp(max=5) / snr
    assert len(set(weight.tolist())) > 1
    assert torch.allclose(capped(model, X, Y, NOISE), weight * plain(model, X, Y, NOISE))


class Line(nn.Module):
    """A linear classifier of two classes, for which the worst change within a budget is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.norm = nn.BatchNorm1d(2, affine=False)

    def forward(self, x):
        score = (x - 0.5).flatten(1) @ self.weight
        return self.norm(torch.stack([-score, score], 1))


def line() -> Any:
    return NormalizedClassifier(Line(Noise.of(9, [0]).normal(torch.empty(1, 16))[0]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarial_training_uses_the_worst_case_image(norm):
    model, eps = line().eval(), 0.05
    x = 0.5 + 0.1 * (X - 0.5)  # far from the edges of [0, 1]
    loss = PGDAT(norm, eps, steps=20, step_size=0.2)(model, x, Y, NOISE)
    weight = model.network.weight.detach()
    pull = Threat(norm, eps).steepest(weight.view(1, 1, 4, 4))
    x_adv = x - eps * (2 * Y - 1).view(-1, 1, 1, 1) * pull
    worst = F.cross_entropy(model(x_adv, NOISE), Y, reduction="none")
    assert torch.allclose(loss, worst, atol=1e-3)
    assert loss.requires_grad


def test_trades_is_cross_entropy_plus_the_largest_divergence():
    model, eps = line().eval(), 0.05
    x = 0.5 + 0.1 * (X - 0.5)
    clean = model(x, NOISE)
    plain = F.cross_entropy(clean, Y, reduction="none")
    assert torch.allclose(TRADES(eps=eps, beta=0.0)(model, x, Y, NOISE), plain)
    sign = model.network.weight.detach().sign().view(1, 1, 4, 4)
    worst = torch.zeros(4)
    for side in (-1, 1):  # the score is linear, so the divergence is largest at one of the two ends
        moved = model(x + side * eps * sign, NOISE).log_softmax(1)
        drift = F.kl_div(moved, clean.softmax(1), reduction="none").sum(1)
        worst = torch.maximum(worst, drift)
    loss = TRADES(eps=eps, steps=30, step_size=0.1, beta=6.0)(model, x, Y, NOISE)
    found = (loss - plain) / 6
    assert (found <= worst + 1e-6).all()
    assert (found >= 0.3 * worst).all(), "one end of two is found, the better one as a rule"
    assert found.sum() > 0.9 * worst.sum()


@pytest.mark.parametrize("objective", [PGDAT(steps=3), TRADES(steps=3)])
def test_search_keeps_the_mode_and_batch_norm_statistics(objective):
    """The search changes neither the training mode nor the batch statistics."""
    model = line().train()
    objective(model, X, Y, NOISE).sum().backward()
    assert model.training
    assert model.network.norm.training
    # The count rises with each forward pass in training mode, but not with those of the search.
    passes = int(model.network.norm.num_batches_tracked)
    assert passes == (1 if isinstance(objective, PGDAT) else 2)
    assert model.network.weight.grad is not None


@pytest.mark.parametrize("make", [PGDAT, TRADES])
@pytest.mark.parametrize("bad", [{"eps": -1.0}, {"norm": "l1"}, {"steps": -1}, {"step_size": 0.0}])
def test_bad_options_are_refused(make, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(**bad)


def test_label_smoothing_spreads_a_share_over_all_classes():
    model, x = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4))), X
    log = F.log_softmax(model(x, NOISE), dim=1)
    right = log[torch.arange(4), Y]
    loss = CrossEntropy(smoothing=0.2)(model, x, Y, NOISE)
    assert torch.allclose(loss, -(0.8 * right + 0.2 * log.mean(1)))


def test_stratified_times_are_even_and_follow_the_image():
    """Times do not depend on the place in the batch, and the time of one image is still uniform."""
    model, keys = perfect("noise"), list(range(50, 114))
    plain, spread = Denoising(t_max=0.9), Denoising(t_max=0.9, stratified=True)
    x, y = torch.empty(64, 1, 4, 4), torch.zeros(64, dtype=torch.long)

    def times(objective, seed, keys=keys):
        t, _ = time_and_label(objective, model, x, y, Noise.of(seed, keys))
        return ((t - 1e-3) / (0.9 - 1e-3)).flatten()

    found = times(spread, 0)
    assert sorted((found * 64).long().tolist()) == list(range(64))
    turned = permutation(64, 1)
    assert torch.equal(times(spread, 0, [keys[i] for i in turned]), found[turned])
    free = times(plain, 0)
    assert torch.equal(found.argsort(), free.argsort()), "the order is that of the image's own time"
    of_one = torch.stack([times(spread, seed)[5] for seed in range(800)])
    assert kstest(of_one.numpy(), "uniform").pvalue > 0.01


def test_classification_weight_adds_the_cross_entropy_of_class_errors():
    model = unet(channels=1, size=4, widths=(8,), groups=4, classes=3, multi_head=True)
    plain = Denoising(label_dropout=0.5)
    both = Denoising(label_dropout=0.5, classification_weight=0.01)
    t, _ = time_and_label(plain, model, X, Y, NOISE)
    z = model.encode(X)
    eps = NOISE.child("noise").normal(z)
    errors = torch.stack(
        [denoising_loss(model, z, t, torch.full_like(Y, label), eps) for label in range(3)], dim=1
    )
    expected = plain(model, X, Y, NOISE) + 0.01 * F.cross_entropy(-16 * errors, Y, reduction="none")
    assert torch.allclose(both(model, X, Y, NOISE), expected, rtol=1e-5)


def test_classification_weight_without_heads_is_refused():
    model = unet(channels=1, size=4, widths=(8,), groups=4, classes=3)
    with pytest.raises(ValueError, match="classification_weight"):
        Denoising(classification_weight=0.01)(model, X, Y, NOISE)
