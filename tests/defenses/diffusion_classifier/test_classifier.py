"""Tests of the diffusion classifier: known likelihoods, exact gradients, and the number of calls."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfool import spec as specs
from unfool.attacks import views
from unfool.attacks.losses import query_model
from unfool.attacks.pgd import PGD
from unfool.attacks.transfer import Transfer
from unfool.batching import BatchLimit
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier, calibrate
from unfool.defenses.diffusion_classifier.elimination import SCHEDULES, Paired, Stages
from unfool.defenses.diffusion_classifier.errors import ClassErrors
from unfool.defenses.diffusion_classifier.timesteps import weights_of
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.denoiser import Mixture, NetworkDenoiser
from unfool.diffusion.gradient import keep_graphs
from unfool.diffusion.schedule import VP, Discrete, Scales
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.models.card import trained_denoiser
from unfool.noise import Noise
from unfool.threat import Knowledge, Threat
from unfool.toy.blobs import bayes, mixture


class Tiny(nn.Module):
    """A smooth conditional network for 2 x 2 images with one channel."""

    def __init__(self, classes=4):
        super().__init__()
        self.mix = nn.Linear(4, 8)
        self.told = nn.Embedding(classes + 1, 8)
        self.out = nn.Linear(8, 4)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(Noise.of(7, [i]).normal(p[None])[0])

    def forward(self, x, time, label):
        inner = torch.tanh(self.mix(x.flatten(1)) + self.told(label) + time[:, None] / 1000)
        return self.out(inner).view_as(x)


@pytest.fixture
def tiny():
    return NetworkDenoiser(Tiny(), shape=(1, 2, 2), classes=4).double().requires_grad_(False)


@pytest.fixture
def calls():
    """Record the batch size of each call of a denoiser."""

    def watch(denoiser):
        rows = []
        denoiser.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
        return rows

    return watch


class Heads(nn.Module):
    """A wrapper of `Tiny` that predicts for several labels (B, L) in one call."""

    def __init__(self, tiny):
        super().__init__()
        self.tiny = tiny

    def forward(self, x, time, label):
        if label.ndim == 1:
            return self.tiny(x, time, label)
        return torch.stack([self.tiny(x, time, column) for column in label.T], 1)


def pictures(size, side=2, seed=0):
    return Noise.of(seed, range(size)).uniform(torch.empty(size, 1, side, side)).double()


def keys(size, seed=1):
    return Noise.of(seed, range(size))


@pytest.mark.parametrize("elimination", [None, "paired"])
@pytest.mark.parametrize("batch_size", [3, 256])
def test_multi_head_denoiser_gives_same_logits_with_fewer_rows(
    tiny, calls, elimination, batch_size
):
    heads = NetworkDenoiser(Heads(tiny.network), shape=(1, 2, 2), classes=4, multi_head=True)
    x, found = pictures(5).requires_grad_(), []
    for denoiser in (tiny, heads):
        rows = calls(denoiser)
        model = DiffusionClassifier(
            denoiser, draws=40, elimination=elimination, batch_size=batch_size
        )
        logits = model(x, keys(5))
        (gradient,) = torch.autograd.grad(logits[:, :2].sum(), x)
        with torch.no_grad():
            rows.clear()
            plain = model(x, keys(5))
        assert max(rows) <= batch_size
        found.append((logits, gradient, plain, sum(rows)))
    (*one, rows_of_one), (*many, rows_of_many) = found
    for a, b in zip(one, many, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    if elimination is None:
        assert (rows_of_one, rows_of_many) == (5 * 4 * 40, 5 * 40)
    assert rows_of_many < rows_of_one / 2


def worlds(classes, spread=0.3):
    """Return a mixture of `classes` classes and the mean image of each."""
    means = 0.5 * keys(classes, 5).normal(torch.empty(classes, 1, 2, 2))
    return Mixture(means, spread), (means + 1) / 2


# ---- values


def test_logits_estimate_the_known_log_likelihood_ratio():
    x = torch.full((1, 1, 4, 4), 0.52)
    x[..., 0] = 0.45
    logits = DiffusionClassifier(mixture(), draws=250, weight="elbo", batch_size=10**5)(
        x.expand(80, -1, -1, -1), keys(80)
    )
    ratio = logits[:, 1] - logits[:, 0]
    truth = bayes()(x, keys(1))[0]
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 1
    assert abs(ratio.mean() - (truth[1] - truth[0])) < 4 * error


def test_errors_are_noise_prediction_errors_for_all_parameterizations(tiny):
    x, scales = pictures(3), VP()(torch.tensor([0.1, 0.7], dtype=torch.float64))
    for predicts in ("noise", "velocity", "image", "edm"):
        tiny.predicts = predicts
        z, noise = tiny.encode(x), keys(3)
        found = ClassErrors(tiny, scales, noise, "l2", BatchLimit(4)).at(
            z, torch.tensor([[1, i, 2] for i in range(3)])
        )
        eps = noise.child(1).normal(z)
        x_t = scales.alpha[1] * z + scales.sigma[1] * eps
        x_hat = tiny(x_t, scales.t[1], torch.full((3,), 2))
        wanted = (x_t - scales.alpha[1] * x_hat) / scales.sigma[1] - eps
        torch.testing.assert_close(found, wanted.square().flatten(1).mean(1))
        if predicts == "noise":
            told = tiny.predict(x_t, scales.t[1], torch.full((3,), 2)) - eps
            torch.testing.assert_close(found, told.square().flatten(1).mean(1))


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [("l2", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)],
)
def test_losses_match_torch_loss_functions(tiny, loss, wanted):
    x, noise = pictures(2), keys(2)
    logits = DiffusionClassifier(tiny, draws=3, loss=loss, scale=2.0)(x, noise)
    total = torch.zeros(2, 4, dtype=torch.float64)
    for k, t in enumerate((167, 501, 834)):  # the middles of three equal parts of the chain
        _, alpha, sigma, _ = VP()(torch.tensor(t / 1000, dtype=torch.float64))
        eps = noise.child("eps", k).normal(x)
        x_t = alpha * tiny.encode(x) + sigma * eps
        for c in range(4):
            out = tiny.predict(x_t, torch.tensor(t / 1000).double(), torch.full((2,), c))
            total[:, c] += torch.stack([wanted(o, e) for o, e in zip(out, eps, strict=True)])
    torch.testing.assert_close(logits, -2 * total / 3, rtol=1e-5, atol=1e-8)


def test_rdc_weight_reproduces_the_error_in_the_released_code():
    sigma = torch.tensor([0.003, 0.01, 0.05, 0.1, 0.3, 0.5, 1, 2], dtype=torch.float64)
    alpha = (1 + sigma**2) ** -0.5
    scales = Scales(sigma, alpha, sigma * alpha, sigma)
    true, slip = weights_of("edm", scales), weights_of("rdc", scales)
    told = torch.tensor([4e-4, 0.0133, 0.31, 0.63, 1.0, 0.91, 0.59, 0.26]).double()
    torch.testing.assert_close(slip / true, told, rtol=0.1, atol=0)
    # lambda(s) p(s) ds s^2, where lambda p is the weight of an error of x_hat
    wide = torch.tensor([0.007, 0.047, 0.09, 0.25, 0.4, 0.7, 1.5, 1.0]) / 2
    p = torch.distributions.LogNormal(-1.2, 1.2).log_prob(sigma).exp()
    shape = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * p * wide * sigma**2
    torch.testing.assert_close(true / true[0], shape / shape[0], rtol=1e-6, atol=0)


def test_sigma_grid_has_the_requested_noise_levels():
    for schedule in (VP(), Discrete(1000)):
        world = Mixture(torch.zeros(2, 1, 2, 2), 0.3, schedule)
        scales = DiffusionClassifier(world, times="sigma", span=(0.5, 3), draws=6).scales
        wanted = torch.linspace(0.5, 3, 6).double()
        off = (
            1e-9 if schedule == VP() else 0.02
        )  # a discrete chain takes its first step with enough noise
        torch.testing.assert_close(scales.sigma / scales.alpha, wanted, rtol=off, atol=0)
    steps = scales.t * 1000
    torch.testing.assert_close(steps, steps.round())


def test_weights_can_be_numbers_or_a_function(tiny):
    x, noise = pictures(2), keys(2)
    named = DiffusionClassifier(tiny, draws=5, weight="snr")
    numbers = [float((s.alpha / s.sigma) ** 2) for s in map(VP(), named.scales.t)]
    for weight in (numbers, lambda s: (s.alpha / s.sigma) ** 2):
        other = DiffusionClassifier(tiny, draws=5, weight=weight)
        torch.testing.assert_close(other(x, noise), named(x, noise))


# ---- invariances


def test_logits_do_not_depend_on_batch_size_or_position(tiny):
    x, noise = pictures(5), keys(5)
    for options in ({}, {"elimination": "staged", "samples": (2, 6), "classes_per_stage": (2, 1)}):
        draws = None if options else 6
        model = DiffusionClassifier(tiny, draws=draws, **options)
        logits = model(x, noise)
        for rows in (1, 7, 64):
            small = DiffusionClassifier(tiny, draws=draws, batch_size=rows, **options)
            torch.testing.assert_close(small(x, noise), logits)
        which = [4, 1]
        torch.testing.assert_close(model(x[which], noise.take(which)), logits[which])


def test_class_order_does_not_affect_logits():
    world, x = worlds(5)
    turned = Mixture(world.means[[3, 0, 4, 1, 2]], world.spread)
    for elimination in (None, "paired"):
        first, second = (
            DiffusionClassifier(w, draws=60, elimination=elimination) for w in (world, turned)
        )
        there = second(x, keys(5))
        torch.testing.assert_close(first(x, keys(5))[:, [3, 0, 4, 1, 2]], there)


# ---- gradient


def losses_of(logits):
    """Return a scalar loss that depends on all logits."""
    y = torch.arange(len(logits)) % logits.shape[1]
    return F.cross_entropy(logits, y) + (logits[:, 0] * logits[:, 1]).sum()


def test_gradient_matches_plain_autograd(tiny):
    x, noise = pictures(3), keys(3)
    z = tiny.encode(x).requires_grad_()
    model = DiffusionClassifier(tiny, draws=7, weight="elbo", batch_size=5, scale=3.0)
    errors = ClassErrors(tiny, model.scales, noise.child("eps"), "l2", BatchLimit(10**6))
    places = torch.ones(7, 3, 4).nonzero()
    table = errors.at(z, places).view(7, 3, 4).permute(1, 2, 0)
    plain = losses_of(-3 * table @ (model.weight / model.weight.sum()))
    (wanted,) = torch.autograd.grad(plain, z)
    for rows in (5, 1000):
        x_ = x.clone().requires_grad_()
        model.row_limit.batch_size = rows
        value = losses_of(model(x_, noise))
        torch.testing.assert_close(value, plain)
        (found,) = torch.autograd.grad(value, x_)
        torch.testing.assert_close(found, 2 * wanted)  # z = 2 x - 1


@pytest.mark.parametrize("elimination", [None, "paired"])
def test_gradient_matches_finite_differences(tiny, elimination):
    x, noise = pictures(2), keys(2)
    model = DiffusionClassifier(
        tiny, draws=24, elimination=elimination, risk=0.3, batch_size=9, scale=1.0
    )
    x_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(model(x_, noise)), x_)
    way = keys(2, 3).normal(x)
    above, below = (losses_of(model(x + h * way, noise)) for h in (1e-5, -1e-5))
    assert float((gradient * way).sum()) == pytest.approx(float((above - below) / 2e-5), rel=1e-5)


def test_gradient_of_more_draws_is_closer_to_the_reference_gradient():
    """The cosine between an EOT gradient and that of many fixed draws grows with the number of draws."""
    two = NetworkDenoiser(Tiny(2), shape=(1, 2, 2), classes=2).double().requires_grad_(False)
    model = DiffusionClassifier(two, draws=1, batch_size=10**5)
    x, y, noise = pictures(32), torch.arange(32) % 2, keys(32)

    def gradient(query_index, draws):
        return query_model(model, x, y, "margin", noise, query_index, draws).gradient.flatten(1)

    whole = gradient(0, 512)
    cosines = [float(F.cosine_similarity(gradient(n, n), whole).mean()) for n in (1, 4, 16, 64)]
    assert all(more > less for less, more in pairwise(cosines)), cosines
    assert cosines[0] < 0.5
    assert cosines[-1] > 0.85


def test_trainable_weights_get_correct_gradients(tiny):
    tiny.requires_grad_(True)
    x, noise = pictures(2), keys(2)
    found = []
    for rows in (5, 1000):
        model = DiffusionClassifier(tiny, draws=3, batch_size=rows, scale=1.0)
        found.append(torch.autograd.grad(losses_of(model(x, noise)), [*tiny.parameters()]))
    weight = tiny.network.out.bias
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(one, many)
    with torch.no_grad():
        values = []
        for h in (1e-5, -1e-5):
            weight[1] += h
            values.append(losses_of(model(x, noise)))
            weight[1] -= h
    slope = float((values[0] - values[1]) / 2e-5)
    assert float(found[0][-1][1]) == pytest.approx(slope, rel=1e-5)


def test_backward_pass_skips_classes_and_images_not_in_the_loss(tiny, calls):
    rows = calls(tiny)
    x = pictures(3).requires_grad_()
    logits = DiffusionClassifier(tiny, draws=10, batch_size=16)(x, keys(3))
    assert sum(rows) == 3 * 4 * 10
    assert max(rows) <= 16
    rows.clear()
    (logits[:, 2] - logits[:, 0])[:2].sum().backward()
    assert sum(rows) == 2 * 2 * 10, "two images, two classes"


def test_graphs_are_kept_only_when_the_loss_uses_nearly_all_classes(tiny, calls):
    """The gradient is bitwise the same whether or not graphs are kept."""
    rows = calls(tiny)
    x, noise = pictures(3), keys(3)
    model = DiffusionClassifier(tiny, draws=10, batch_size=16)  # 120 rows in 8 calls

    def back(loss):
        x_ = x.clone().requires_grad_()
        value = loss(model(x_, noise))
        rows.clear()
        return torch.autograd.grad(value, x_, retain_graph=True)[0], len(rows), value, x_

    def margin(logits):
        return (logits[:, 2] - logits[:, 0]).sum()

    with keep_graphs(0):
        wanted, calls_back, *_ = back(losses_of)
    assert calls_back == 8
    for graphs, left in ((3, 5), (100, 0)):
        with keep_graphs(graphs):
            found, calls_back, value, x_ = back(losses_of)
            assert calls_back == left
            assert torch.equal(found, wanted)
            (again,) = torch.autograd.grad(value, x_)
            assert torch.equal(again, wanted), "a second way back has no graphs, and replays"
    assert back(losses_of)[1] == 0, "the first way back has shown what a graph takes"
    few, calls_back, *_ = back(margin)
    assert calls_back == 4, "60 rows, whatever was kept"
    assert back(losses_of)[1] == 8, "after which nothing is kept until it pays again"
    assert back(losses_of)[1] == 0
    with keep_graphs(0):
        assert torch.equal(back(margin)[0], few)


CODE = """
import sys, torch
torch.set_num_threads(1)
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from torch import nn
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.gradient import keep_graphs
from unfool.noise import Noise
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.told = nn.Embedding(3, 256)
        self.first, self.last = nn.Conv2d(1, 256, 1), nn.Conv2d(256, 1, 1)
    def forward(self, x, time, label):
        return self.last(torch.tanh(self.first(x) + self.told(label)[..., None, None]))
net = NetworkDenoiser(Net(), classes=2).eval().requires_grad_(False)
x = torch.full((2, 1, 16, 16), 0.5)
def high():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
def peak(draws):
    x_ = x.clone().requires_grad_()
    model = DiffusionClassifier(net, draws=draws, batch_size=16)
    with keep_graphs(0):
        model(x_, Noise.of(0, range(2))).square().sum().backward()
    return high()
with torch.no_grad():
    DiffusionClassifier(net, draws=4, batch_size=16)(x, Noise.of(0, range(2)))
for draws in (4, 80):
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
    start = high()
    print(peak(draws) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_gradient_memory_does_not_grow_with_draws():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    peaks = [int(line) for line in out.stdout.split()]
    assert peaks[0] > 1000, "KiB; the measurement saw nothing"
    assert peaks[1] <= 1.3 * peaks[0], peaks


# ---- elimination


def test_timestep_grids_match_the_released_code():
    world, _ = worlds(10)
    model = DiffusionClassifier(world, elimination="cifar10")
    assert (model.scales.t * 1000 - 1).round().tolist() == list(range(1, 1000, 2))
    assert model.rule is not None
    first, second = model.rule.rounds(500)
    assert [2 * k + 1 for k in first] == list(range(11, 1000, 20)), "indices into the chain"
    assert sorted(first + second) == list(range(500))
    assert [len(r) for r in Stages(*SCHEDULES["food"]).rounds(500)][:2] == [20, 50], "no overlap"
    for name, (samples, keep) in SCHEDULES.items():
        whole, seen = max(samples), set()
        for size, added in zip(samples, Stages(samples, keep).rounds(whole), strict=True):
            part = whole // size
            grid = set(range(whole)[part // 2 :: part][:size])
            assert sorted(added) == sorted(grid - seen), name
            seen |= grid
    model = DiffusionClassifier(world, elimination="imagenet")
    assert (model.scales.t * 1000 - 1).round().tolist() == list(range(1000))


def test_grid_that_does_not_divide_the_chain_covers_it_all():
    world, _ = worlds(2)
    t = DiffusionClassifier(world, draws=300).scales.t
    assert len(t.unique()) == 300
    assert float(t[-1]) > 0.997
    assert float(t.mean()) == pytest.approx(0.5, abs=2e-3)
    t = DiffusionClassifier(world, draws=4, span=(0.2, 0.6)).scales.t
    assert t.tolist() == pytest.approx([0.251, 0.351, 0.451, 0.551])
    chain = Mixture(world.means, 0.3, Discrete(10))
    assert DiffusionClassifier(chain, draws=10).scales.t.tolist() == [k / 10 for k in range(1, 11)]


def test_staged_elimination_has_expected_cost_and_keeps_the_best_classes(calls):
    world, x = worlds(10)
    rows = calls(world)
    model = DiffusionClassifier(world, elimination="cifar10", batch_size=4000)
    x, noise = x[:2].flip(3), keys(2)
    logits = model(x, noise)
    assert sum(rows) == 2 * (10 * 50 + 5 * 450)
    early, full = model.stage(1)(x, noise), model.without_elimination()(x, noise)
    for image in range(2):
        kept = set(early[image].topk(5).indices.tolist())
        assert set(logits[image].topk(5).indices.tolist()) == kept
        for c in range(10):
            if c in kept:
                torch.testing.assert_close(logits[image, c], full[image, c])
            else:
                floor = min(float(logits[image, k]) for k in kept) - 1
                wanted = min(float(early[image, c]), floor)
                assert float(logits[image, c]) == pytest.approx(wanted, rel=1e-6)


def test_stages_keep_the_classes_of_lowest_weighted_mean_error():
    rule = Stages((2, 4), (2, 1))
    model = DiffusionClassifier(
        worlds(4)[0], elimination="staged", samples=(2, 4), classes_per_stage=(2, 1)
    )
    assert rule.rounds(4) == [[1, 3], [0, 2]]
    errors = torch.tensor([[[1.0, 3.0], [2, 1], [0, 2], [2, 0]]])
    alive = torch.ones(1, 4, dtype=torch.bool)
    weight = torch.ones(2)
    remaining = rule.remaining(errors, weight, alive, 0, 4)
    assert remaining.tolist() == [[False, False, True, True]], "means 2, 1.5, 1, 1"
    assert rule.remaining(errors, weight * torch.tensor([9, 1]), alive, 0, 4).tolist() == [
        [True, False, True, False]
    ], "weighted means 1.2, 1.9, 0.2, 1.8"
    tied = rule.remaining(torch.ones(1, 4, 2), weight, alive, 0, 4)
    assert tied.tolist() == [[True, True, False, False]], "of equals, the lower number"
    assert model.rule == rule


def simulated(images, classes, draws, gap):
    """Return errors (B, K, M) with a trend over time, shared noise, and noise of each class."""
    t = torch.linspace(0, 1, draws)
    common = 3 * keys(images, 11).normal(torch.empty(images, 1, draws))
    own = keys(images, 12).normal(torch.empty(images, classes, draws))
    worse = gap * keys(images, 13).normal(torch.empty(images, classes, 1)).abs()
    return 5 * (1 - t) + common + own * (0.2 + t) + worse * 4 * t * (1 - t)


def test_paired_elimination_keeps_the_best_class_and_saves_draws():
    errors, draws = simulated(400, 10, 500, 4.0).double(), 500
    rule = Paired()
    alive, cost = torch.ones(400, 10, dtype=torch.bool), 0
    seen = []
    for query_index, added in enumerate(rule.rounds(draws)):
        unsure = alive & (alive.sum(1, keepdim=True) > 1)
        cost += int(unsure.sum()) * len(added)
        seen = sorted(seen + added)
        remaining = rule.remaining(
            errors[..., seen], torch.ones(len(seen)).double(), unsure, query_index, draws
        )
        alive = torch.where(unsure, remaining, alive)
    assert sorted(seen) == list(range(500))
    best = errors.mean(2).argmin(1)
    lost = int((~alive[torch.arange(400), best]).sum())
    assert lost <= 400 * 0.005
    assert cost < 400 * 2750 / 3, "the cost of 50 / 500, divided by three"


def test_paired_elimination_is_certain_even_if_differences_vary_with_time():
    rule, worse, t = Paired(), torch.arange(10).double(), torch.linspace(0, 1, 500).double()
    errors = worse[:, None] * torch.exp(-t / 0.15) + simulated(1, 10, 500, 0.0)[0] / 100
    seen, alive = sorted(rule.rounds(500)[0]), torch.ones(1, 10, dtype=torch.bool)
    left = rule.remaining(errors[None, :, seen], torch.ones(len(seen)).double(), alive, 0, 500)
    assert left.tolist() == [[True] + [False] * 9]


def test_paired_elimination_never_breaks_a_tie():
    errors = simulated(20, 1, 64, 0.0).expand(-1, 3, -1).double()
    alive = torch.ones(20, 3, dtype=torch.bool)
    assert bool(Paired().remaining(errors[..., :16], torch.ones(16).double(), alive, 0, 64).all())


def test_paired_elimination_saves_calls_and_ranks_eliminated_classes_lower(calls):
    world, x = worlds(6)
    rows = calls(world)
    model = DiffusionClassifier(world, draws=128, elimination="paired", batch_size=10**5)
    logits = model(x, keys(6))
    assert sum(rows) < 6 * 6 * 128 / 3
    assert logits.argmax(1).tolist() == model.without_elimination()(x, keys(6)).argmax(1).tolist()
    assert bool(logits.isfinite().all())
    best, second = logits.topk(2).values.T
    assert bool((best - second >= 1).all()), "what was dropped is lower, and by 1 at least"


# ---- randomness


def test_noise_policies_reuse_draws_as_documented():
    x, one, two = pictures(2, 4).float(), keys(2, 1), keys(2, 2)
    x[1] = x[0]

    def answers(policy, seed=0):
        model = DiffusionClassifier(mixture(), draws=3, policy=policy, seed=seed)
        return model(x, one), model(x, two)

    first, second = answers("fresh")
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])
    for policy in ("fixed", "image"):
        first, second = answers(policy)
        assert torch.equal(first, second)
        torch.testing.assert_close(first[0], first[1])
        assert not torch.allclose(first, answers(policy, seed=1)[0])
    model = DiffusionClassifier(mixture(), draws=3, policy="image")
    moved = model(x + 2 / 255, one) - model(x + 2 / 255 + 1e-6, two)
    assert float(moved.abs().max()) < 0.1, "the same to 8 bits, the same draws"


def test_attacker_who_knows_the_noise_gets_the_same_draws():
    x, secret = pictures(2, 4).float(), keys(2, 9)
    model = DiffusionClassifier(mixture(), draws=3)
    told = keys(2, 4).with_known_noise(secret, ["eps"]).for_query(5)
    assert torch.equal(model(x, told), model(x, secret))
    assert not torch.allclose(model(x, keys(2, 4).for_query(5)), model(x, secret))


def test_semi_knowledge_limits_each_draw_to_known_candidates():
    x, model = pictures(2, 4).float(), DiffusionClassifier(mixture(), draws=3)
    own = [Knowledge("semi-1-steps").reveal(keys(2, seed), keys(2, 9)) for seed in (1, 2)]
    one = model(x, own[0].for_query(0))
    assert all(
        torch.equal(model(x, told.for_query(query_index)), one)
        for told in own
        for query_index in (0, 5)
    )
    two = Knowledge("semi-2-steps").reveal(keys(2, 1), keys(2, 9))
    seen = {tuple(model(x, two.for_query(query_index))[0].tolist()) for query_index in range(40)}
    assert 4 < len(seen) <= 8  # 2 candidates for each of 3 draws


def test_batch_size_is_halved_when_memory_runs_out(tiny, monkeypatch, capsys):
    x, noise, forward = pictures(3), keys(3), type(tiny).forward

    def crowded(self, x_t, t, label):
        if len(x_t) > 9:
            raise torch.OutOfMemoryError("there is no room")
        return forward(self, x_t, t, label)

    def gradient(model):
        at = x.clone().requires_grad_()
        return torch.autograd.grad(losses_of(model(at, noise)), at)[0]

    roomy = DiffusionClassifier(tiny, draws=7, batch_size=32)
    wanted = roomy(x, noise), gradient(roomy)
    model = DiffusionClassifier(tiny, draws=7, batch_size=32)
    monkeypatch.setattr(type(tiny), "forward", crowded)
    torch.testing.assert_close((model.without_elimination()(x, noise), gradient(model)), wanted)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "unfool: out of memory with 32 noised images in one call; continuing with 16",
        "unfool: out of memory with 16 noised images in one call; continuing with 8",
    ]


# ---- scale, specs, errors


def test_calibration_finds_the_scale_that_minimizes_cross_entropy():
    world, _ = worlds(3, 0.4)
    y = torch.arange(60) % 3
    z = world.means[y] + 0.4 * keys(60, 21).normal(torch.empty(60, 1, 2, 2))
    x = (z + 1) / 2
    model = DiffusionClassifier(world, draws=8, elimination="paired")
    scale = calibrate(model, x, y, keys(60))
    logits = DiffusionClassifier(world, draws=8, scale=1.0)(x, keys(60))

    def loss(s):
        return float(F.cross_entropy(s * logits, y))

    assert loss(scale) < min(loss(0.97 * scale), loss(1.03 * scale))
    other = DiffusionClassifier(world, draws=8, scale=scale / 50)
    assert calibrate(other, x, y, keys(60)) == pytest.approx(scale, rel=1e-4)


def test_spec_nests_the_denoiser_inside_the_classifier():
    part = {"name": "diffusion", "denoiser": {"name": "mixture", "side": 3}, "draws": 4}
    checked = check_model(specs.load({"classifier": part | {"span": [0.1, 0.9], "batch_size": 3}}))
    assert checked["classifier"]["denoiser"]["side"] == 3
    assert specs.identity(checked)
    model = build_model(checked, "cpu")
    assert model(pictures(2, 3).float(), keys(2)).shape == (2, 2)
    with pytest.raises(SpecError, match="did you mean 'elimination'"):
        check_model({"classifier": part | {"eliminaton": "paired"}})
    with pytest.raises(SpecError, match="'denoiser' is missing"):
        check_model({"classifier": "diffusion"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"elimination": "cifar"}, "elimination must be one of paired, staged, cifar10"),
        ({"elimination": "staged"}, "samples and classes_per_stage belong"),
        ({"samples": [1, 2], "classes_per_stage": [2, 1]}, "samples and classes_per_stage belong"),
        (
            {"elimination": "staged", "samples": [9, 4], "classes_per_stage": [2, 1]},
            "samples must rise",
        ),
        (
            {"elimination": "staged", "samples": [4, 9], "classes_per_stage": [2, 2]},
            "classes_per_stage must fall",
        ),
        (
            {"elimination": "staged", "samples": [4, 9], "classes_per_stage": [3, 2]},
            "classes_per_stage must fall",
        ),
        (
            {"elimination": "staged", "samples": [4, 9], "classes_per_stage": [1]},
            "one number for each stage",
        ),
        ({"elimination": "cifar10", "draws": 100}, "leave out draws = 100"),
        ({"draws": 1001}, "at most 1000"),
        ({"span": (0.5, 0.5)}, "span must be two times"),
        ({"times": "sigma", "span": (0, 3)}, "span must be two values of sigma"),
        ({"weight": "snrr"}, "weight must be one of"),
        ({"weight": [1.0, 2.0]}, "100 numbers above 0"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DiffusionClassifier(mixture(), **options)


def test_unsuitable_denoisers_images_and_stages_are_refused(tiny):
    unconditional = NetworkDenoiser(nn.Identity(), shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"2 or more classes.* `classes`"):
        DiffusionClassifier(unconditional)
    with pytest.raises(ValueError, match=r"2 or more classes, .* 1"):
        DiffusionClassifier(Mixture(torch.zeros(1, 1, 2, 2), 0.2))
    model = DiffusionClassifier(tiny, draws=2)
    with pytest.raises(ValueError, match=r"images of shape \(1, 2, 2\)"):
        model(pictures(1, 3), keys(1))
    with pytest.raises(ValueError, match="has 0 stages"):
        model.stage(1)
    with pytest.raises(ValueError, match="no stage 0"):
        DiffusionClassifier(tiny, elimination="cifar10").stage(0)


def test_elimination_views_match_the_corresponding_classifiers():
    world, x = worlds(8)
    model = DiffusionClassifier(
        world, elimination="staged", samples=(4, 16), classes_per_stage=(3, 1)
    )
    noise = keys(8)
    for view, wanted in (
        (views.no_elimination, model.without_elimination()),
        (views.first_stage, model.stage(1)),
    ):
        assert torch.equal(view(model)(x, noise), wanted(x, noise))
        limited = view(views.Batched(model, 3))
        torch.testing.assert_close(limited(x, noise), wanted(x, noise))
        with pytest.raises(ValueError, match="the classifier `diffusion`"):
            view(bayes())


def test_attacker_can_use_a_subset_of_the_draws(tiny, calls):
    """Using all draws changes nothing; n draws are a fixed subset and cost n calls per class."""
    model = DiffusionClassifier(
        tiny, elimination="staged", samples=(4, 12), classes_per_stage=(2, 1), scale=1.0
    )
    x, noise, rows = pictures(3), keys(3), calls(tiny)

    def gradient(of):
        at = x.clone().requires_grad_()
        return torch.autograd.grad(losses_of(of(at, noise)), at)[0]

    assert torch.equal(
        gradient(views.no_elimination(model, 12)), gradient(views.no_elimination(model))
    )
    rows.clear()
    few = views.no_elimination(model, 5)(x, noise)
    assert sum(rows) == 3 * 5 * 4
    errors = ClassErrors(tiny, model.scales, noise.child("eps"), "l2", BatchLimit(10**6))
    table = errors.at(tiny.encode(x), torch.ones(12, 3, 4).nonzero()).view(12, 3, 4)
    torch.testing.assert_close(few, -table[[1, 3, 6, 8, 10]].mean(0))
    for draws in (0, 13):
        with pytest.raises(ValueError, match=f"12, not {draws}"):
            views.no_elimination(model, draws)


def test_transfer_attack_uses_the_source_without_elimination():
    world, x = worlds(8)
    x = x.clamp(0, 1)
    source = DiffusionClassifier(
        world, elimination="staged", samples=(2, 16), classes_per_stage=(2, 1)
    )
    attack, y, threat = PGD(steps=4, loss="margin"), torch.arange(8), Threat("linf", 0.1)

    def made(of):
        return attack(of, x, y, threat, keys(8))

    def unasked(x, noise):
        raise AssertionError("the images are those of the source")

    found = Transfer(source, attack)(unasked, x, y, threat, keys(8))
    assert torch.equal(found, made(source.without_elimination()))
    assert not torch.equal(found, made(source)), "with it, some gradients are others"
    behind = Purified(source, lambda x, noise: x)
    found = Transfer(behind, attack)(unasked, x, y, threat, keys(8))
    assert torch.equal(found, made(behind.with_classifier(source.without_elimination())))


@pytest.mark.parametrize("elimination", [None, "paired"])
def test_transfer_attack_calls_the_source_with_the_batch_size_of_the_model(elimination):
    world, x = worlds(8)
    rows, x, y, threat = [], x.clamp(0, 1), torch.arange(8), Threat("linf", 0.1)

    class Source(DiffusionClassifier):
        def forward(self, x, noise=None):
            rows.append(len(x))
            return super().forward(x, noise)

    transfer = Transfer(Source(world, draws=4, elimination=elimination), PGD(2, eot=4))
    model = views.Batched(world, 6)
    found = transfer(model, x, y, threat, keys(8))
    assert max(rows) == 6
    rows.clear()
    assert torch.allclose(transfer(world, x, y, threat, keys(8)), found)
    assert max(rows) == 32
    assert model.batch_size == 6


def test_early_exit_attack_gets_the_true_class_eliminated():
    """Five classes must beat the true one in the first stage; the loss uses the fifth of them."""
    model = DiffusionClassifier(
        trained_denoiser("digits-conditional").eval().requires_grad_(False),
        elimination="staged",
        samples=(2, 4),
        classes_per_stage=(5, 1),
        policy="fixed",
    )
    x, y = fetch(digits("test"), range(3))
    noise, attack, threat = Noise.of(0, range(3)), PGD(4, loss="margin"), Threat("linf", 0.4)

    def dropped(at):
        """Count the images whose true class the model ranks below the five classes that remain."""
        logits = model(at, noise)
        return int(((logits > logits.gather(1, y[:, None])).sum(1) >= 5).sum())

    early = views.first_stage(model)
    found = attack(early, x, y, threat, noise)
    assert dropped(x) == 0
    assert dropped(found) >= 2
    seen = query_model(early, found, y, "margin", noise, 0, 1, gradient=False)
    assert int(seen.error_rate.sum()) == dropped(found)
    logits = model.stage(1)(found, noise)
    wrong = logits.scatter(1, y[:, None], -torch.inf).topk(5).values[:, 4]
    torch.testing.assert_close(seen.loss, wrong - logits.gather(1, y[:, None])[:, 0])


def test_early_exit_gradient_matches_finite_differences(tiny):
    model = DiffusionClassifier(
        tiny, elimination="staged", samples=(4, 8), classes_per_stage=(2, 1), scale=1.0
    )
    x, noise, y = pictures(2), keys(2), torch.tensor([0, 3])

    def climb(at, gradient=False):
        return query_model(
            views.first_stage(model), at, y, "margin", noise, 0, 1, gradient=gradient
        )

    way = keys(2, 8).normal(x)
    slope = (climb(x + 1e-6 * way).loss - climb(x - 1e-6 * way).loss) / 2e-6
    told = (climb(x, gradient=True).gradient * way).flatten(1).sum(1)
    torch.testing.assert_close(told, slope, rtol=1e-5, atol=1e-8)
    assert model.stage(1).classes_kept == 2
    assert (
        model.without_elimination().classes_kept
        == DiffusionClassifier(tiny, elimination="paired").stage(1).classes_kept
        == 1
    )
