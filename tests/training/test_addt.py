"""ADDT against the example of its paper, its invariants, and closed forms."""

import pytest
import torch
from torch import nn

from unfool import spec as specs
from unfool.cli.main import run
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.schedule import Discrete
from unfool.models import card
from unfool.noise import Noise, seed_torch
from unfool.training.objectives.addt import ADDT, rank_map
from unfool.training.objectives.denoising import Denoising

X = Noise.of(0, range(3)).uniform(torch.empty(3, 2, 4, 4))
Y = torch.tensor([0, 1, 1])
NOISE = Noise.of(3, range(3))


def test_rank_mapping_matches_the_example_of_the_paper():
    """The example is a figure of the release, with its two misprints corrected."""
    numbers = torch.tensor([1.2, 0, -1.6, 0.8, -0.6, 0.4, -0.2]).view(1, 1, 1, 7)
    values = torch.tensor([0.5, -2.2, -1.4, 7.2, 5.1, -0.6, 1.1]).view(1, 1, 1, 7)
    wanted = [0, -1.6, -0.6, 1.2, 0.8, -0.2, 0.4]
    assert torch.equal(rank_map(values, numbers).flatten(), torch.tensor(wanted))


def test_rank_mapping_sorts_the_noise_into_the_order_of_the_values():
    values, numbers = NOISE.child("v").normal(X), NOISE.child("g").normal(X)
    out = rank_map(values, numbers)
    assert torch.equal(out.flatten(2).sort(2).values, numbers.flatten(2).sort(2).values)
    assert torch.equal(out.flatten(2).argsort(2), values.flatten(2).argsort(2))
    assert torch.equal(rank_map(1e-9 * values**3, numbers), out), "only the order matters"


@pytest.fixture(autouse=True)
def _the_same_weights():
    seed_torch(0, "addt")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.drop = nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.5)
        self.modes = []

    def forward(self, x, time):
        self.modes.append(self.training)
        return self.drop(self.map(x))


def brightness(x, noise):
    """A classifier of two classes: is the mean above 0.5?"""
    score = 20 * (x.flatten(1).mean(1) - 0.5)
    return torch.stack([-score, score], 1)


class Bright(nn.Module):
    def forward(self, x, noise):
        return brightness(x, noise)


def made(**options) -> ADDT:
    return ADDT(classifier=Bright(), **options)


def test_zero_strength_equals_plain_denoising():
    model = NetworkDenoiser(Net()).eval()
    plain = Denoising()(model, X, Y, NOISE)
    assert torch.allclose(made(lambda_unit=0.0, mode="eval")(model, X, Y, NOISE), plain)
    assert not torch.allclose(made(mode="eval")(model, X, Y, NOISE), plain)


@pytest.mark.parametrize(("t", "share"), [(0.026, 0.3), (0.05, 0.17), (0.1, 0.088), (0.5, 0.0087)])
def test_strength_matches_the_published_schedule(t, share):
    """The expected values are from the release's schedule, at steps 26, 50, 100, and 500 of 1000."""
    from unfool.diffusion.schedule import Discrete

    model = NetworkDenoiser(Net(), schedule=Discrete(1000))
    time = torch.full((3, 1, 1, 1), t)
    zero, one = torch.zeros_like(X), torch.ones_like(X)
    found = made().mixed(model, time, zero, one)
    assert float(found.mean()) == pytest.approx(share, rel=0.04)
    whole = made().mixed(model, time, one, zero) ** 2 + found**2
    assert torch.allclose(whole, one), "the variance is kept"


def test_perturbation_is_standardized_and_raises_the_loss():
    model = NetworkDenoiser(Net()).eval()
    many = Noise.of(1, range(64))
    x = many.uniform(torch.empty(64, 2, 4, 4))
    y = (x.flatten(1).mean(1) > 0.5).long()
    t = torch.full((64, 1, 1, 1), 0.3)
    delta = made(cgpo_steps=3, mode="eval").perturbation(model, x, y, t, y, many)
    assert abs(float(delta.mean())) < 0.1
    assert float(delta.std()) == pytest.approx(1, abs=0.05)

    def loss(delta):
        _, alpha, sigma, _ = model.schedule(t)
        x_hat = model.estimate(alpha * model.encode(x) + 0.5 * sigma * delta, t)
        logits = brightness(model.decode(x_hat), many)
        return torch.nn.functional.cross_entropy(logits, y)

    assert loss(delta) > loss(many.child("other").normal(x))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_search_leaves_no_gradients_and_restores_the_mode(mode):
    model = NetworkDenoiser(Net()).train()
    objective = made(mode=mode, cgpo_steps=2)
    t = torch.full((3, 1, 1, 1), 0.2)
    delta = objective.perturbation(model, X, Y, t, Y, NOISE)
    assert not delta.requires_grad
    assert model.network.modes == [mode == "train"] * 2
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_loss_does_not_depend_on_the_batch():
    model, objective = NetworkDenoiser(Net()).eval(), made(mode="eval")
    whole = objective(model, X, Y, NOISE)
    parts = [objective(model, X[i : i + 1], Y[i : i + 1], NOISE.take([i])) for i in range(3)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4)


class Normalized(nn.Module):
    """A guide whose outputs depend on the batch in training mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(2), nn.Linear(32, 2)

    def forward(self, x, noise):
        return self.head(self.norm(x).flatten(1))


def test_guide_is_in_evaluation_mode_and_frozen():
    model, guide = NetworkDenoiser(Net()).eval(), Normalized().train()
    objective = ADDT(classifier=guide, mode="eval", cgpo_steps=2)
    whole = objective(model, X, Y, NOISE)
    parts = [objective(model, X[i : i + 1], Y[i : i + 1], NOISE.take([i])) for i in range(3)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4)
    assert guide.norm.num_batches_tracked == 0, "the statistics have not moved"
    assert not any(p.requires_grad for p in guide.parameters())


def edm(network, x, level):
    """Estimate x_0 from x = x_0 + level n, by the formulas of Karras et al. (2022, table 1)."""
    total = (level**2 + 0.25).sqrt()
    return 0.25 / total**2 * x + level * 0.5 / total * network(x / total, None)


def by_hand(network, predicts, mapping, seeks, rounds=3, schedule=None):
    """Compute ADDT's loss of each image from the formulas of the paper, with images in [-1, 1]."""
    model = NetworkDenoiser(network, schedule=schedule)
    t = Denoising().quantile(NOISE.child("time").uniform(X[:, :1, :1, :1]), model)
    _, alpha, sigma, _ = model.schedule(t)
    z, cgpo = 2 * X - 1, NOISE.child("cgpo")
    gamma = alpha / sigma
    share = (0.03 * gamma).clamp(0, 0.3)

    def mixed(eps, delta):
        if mapping == "linf":
            return eps + torch.where(gamma < 10, gamma, 10.0) * delta
        return (1 - share**2).sqrt() * eps + share * delta

    def estimate(x_t):
        if predicts == "edm":
            return edm(network, x_t / alpha, sigma / alpha)
        return (x_t - sigma * network(x_t, None)) / alpha

    delta = torch.zeros_like(X) if mapping == "linf" else cgpo.child("start").normal(X)
    total = torch.zeros_like(X)
    for i in range(rounds):
        delta.requires_grad_()
        eps = cgpo.child(i, "noise").normal(X)
        x_t = alpha * z + sigma * mixed(eps, delta)
        if seeks == "mse":
            value = (network(x_t, None) - eps).square().flatten(1).mean(1).sum()
        else:
            logits = brightness(estimate(x_t) / 2 + 0.5, None)
            value = -logits.log_softmax(1)[range(3), Y].sum()
        (gradient,) = torch.autograd.grad(value, delta)
        total, numbers = total + gradient, cgpo.child(i, "rank").normal(X)
        if mapping == "linf":
            delta = torch.clip(delta.detach() + 8 / 255 * gradient.sign(), -16 / 255, 16 / 255)
            delta = torch.clip(z + delta, -1, 1) - z
        elif mapping == "rbgm":
            delta = torch.empty_like(X)
            for image, channel in ((b, c) for b in range(3) for c in range(2)):
                places = total[image, channel].flatten().argsort()
                delta[image, channel].view(-1)[places] = numbers[image, channel].flatten().sort()[0]
        elif mapping == "normalize":
            delta = torch.stack([row / row.std() for row in total])
        else:
            delta = total.clone()
    n = mixed(NOISE.child("noise").normal(X), delta.detach())
    x_t = alpha * z + sigma * n
    if predicts == "noise":
        error = network(x_t, None) - n
    else:  # of the scaled network, whose target is (x_0 - c_skip x) / c_out
        level = sigma / alpha
        error = (z - edm(network, x_t / alpha, level)) * (level**2 + 0.25).sqrt() / (level * 0.5)
    return error.square().flatten(1).mean(1)


@pytest.mark.parametrize("mapping", ["rbgm", "normalize", "none", "linf"])
@pytest.mark.parametrize(("predicts", "seeks"), [("noise", "ce"), ("noise", "mse"), ("edm", "ce")])
def test_loss_matches_a_handwritten_loop(mapping, predicts, seeks):
    model = NetworkDenoiser(Net(), predicts=predicts).eval()
    objective = made(mapping=mapping, target=seeks, cgpo_steps=3, mode="eval")
    wanted = by_hand(model.network, predicts, mapping, seeks)
    assert torch.allclose(objective(model, X, Y, NOISE), wanted, rtol=1e-4)


def test_loss_on_a_discrete_schedule_matches_a_handwritten_loop():
    chain = Discrete(1000)
    model = NetworkDenoiser(Net(), schedule=chain, time="index").eval()
    objective = made(cgpo_steps=3, mode="eval")
    wanted = by_hand(model.network, "noise", "rbgm", "ce", schedule=chain)
    assert torch.allclose(objective(model, X, Y, NOISE), wanted, rtol=1e-4)


def test_rank_mapping_breaks_ties_by_position():
    values = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    gaussian = torch.tensor([[[[3.0, 1.0], [4.0, 2.0]]]])
    assert rank_map(values, gaussian).flatten().tolist() == [3, 1, 4, 2]


def test_linf_perturbation_stays_within_budget_and_image_range():
    model = NetworkDenoiser(Net()).eval()
    t = torch.full((3, 1, 1, 1), 0.3)
    delta = made(mapping="linf", mode="eval").perturbation(model, X.round(), Y, t, Y, NOISE)
    assert 8 / 255 < float(delta.abs().max()) <= 16 / 255 + 1e-7
    z = model.encode(X.round())
    assert float((z + delta).abs().max()) <= 1


def test_guide_sees_the_unclipped_estimate():
    """Clipped values have no gradient, so clipping would change the perturbation."""
    plain = NetworkDenoiser(Net()).eval()
    clipped = NetworkDenoiser(plain.network, clip_x0=True).eval()
    t = torch.full((3, 1, 1, 1), 0.5)
    x_t = NOISE.normal(X)
    assert not torch.allclose(clipped(x_t, t), plain(x_t, t)), "it must have been clipped"
    found = [
        made(cgpo_steps=2, mode="eval").perturbation(model, X, Y, t, Y, NOISE)
        for model in (plain, clipped)
    ]
    assert torch.equal(*found)


def test_addt_trains_from_the_command_line(elsewhere):
    import yaml

    spec = {
        "data": {"name": "digits", "split": "train"},
        "denoiser": {"name": "trained", "weights": "digits-denoiser"},
        "objective": {
            "name": "addt",
            "classifier": {"name": "trained", "weights": "digits-classifier"},
            "cgpo_steps": 1,
        },
        "training": {"steps": 2, "batch_size": 4},
    }
    (elsewhere / "a.yaml").write_text(yaml.safe_dump(spec))
    assert specs.load("a.yaml") == spec
    assert run(["train", "a.yaml", "--out", "made", "--quiet"]) == 0
    told = card.read_card("made")[1]
    assert told["began_as"] == "digits-denoiser"
    assert told["part"] == card.read_card("digits-denoiser")[1]["part"]
    assert card.trained_denoiser("made").shape == (1, 8, 8)


@pytest.mark.parametrize(
    "bad", [{"mapping": "sorted"}, {"cgpo_steps": 0}, {"lambda_max": 2.0}, {"t_max": 2}]
)
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        made(**bad)
