"""Consistency distillation against closed forms, and its effect on purification in one call."""

import pytest
import torch
from torch import nn

from unfool import distances
from unfool import spec as specs
from unfool.cli.main import run
from unfool.data import fetch
from unfool.defenses.denoised_smoothing import OneStep
from unfool.diffusion.denoiser import Mixture, NetworkDenoiser
from unfool.diffusion.reverse import Heun, karras, reverse
from unfool.diffusion.schedule import VP, Discrete
from unfool.errors import SpecError
from unfool.models import card
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.toy.blobs import Blobs, mixture
from unfool.training.objectives.consistency import ConsistencyDistillation, Solver, pseudo_huber
from unfool.training.objectives.denoising import Denoising, denoising_loss
from unfool.training.options import TrainingOptions
from unfool.training.spec import check
from unfool.training.train import train

MEAN, SPREAD = 0.1, 0.4  # of the only Gaussian of the teacher, in [-1, 1]
NOISE = Noise.of(3, range(64))
X = (MEAN + SPREAD * NOISE.child("x").normal(torch.empty(64, 1, 4, 4)) + 1) / 2
Y = torch.zeros(64, dtype=torch.int64)


def teacher(schedule=None, side: int = 4) -> Mixture:
    return Mixture(torch.full((1, 1, side, side), MEAN), SPREAD, schedule)


class Exact(NetworkDenoiser):
    """The end of the flow of one Gaussian, in closed form: deviations from the mean are rescaled."""

    def __init__(self, schedule=None, wrong: float = 1.0):
        super().__init__(nn.Conv2d(1, 1, 1), schedule=schedule)
        self.wrong = wrong

    def estimate(self, x_t, t, label=None):
        _, alpha, sigma, _ = self.schedule(t)
        size = sigma / alpha
        return MEAN + self.wrong * SPREAD / torch.sqrt(SPREAD**2 + size**2) * (x_t / alpha - MEAN)


@pytest.mark.parametrize("schedule", [None, Discrete(1000)])
def test_consistent_network_has_almost_no_loss(schedule):
    """Only the solver's error remains: it falls with more levels, and is smaller with Heun than Euler."""

    def loss(model, levels, solver: Solver = "heun"):
        objective = ConsistencyDistillation(
            teacher(schedule), levels=levels, solver=solver, distance="l1", t_max=0.3
        )
        return float(objective(model, X, Y, NOISE).mean())

    exact = Exact(schedule)
    assert loss(exact, 30) < 1e-3
    assert loss(exact, 30) < loss(exact, 8) / 3
    assert loss(exact, 30) < loss(exact, 30, "euler") / 5
    assert loss(Exact(schedule, wrong=0.8), 30) > 20 * loss(exact, 30)


def test_teacher_step_matches_the_heun_sampler():
    """The states that are compared lie on one path of the sampler `Heun`, for any teacher."""
    model, levels = mixture(), 6
    times = karras(model.schedule, 0.3, levels)
    objective = ConsistencyDistillation(model, levels=levels, t_max=0.3)
    x_t = NOISE.normal(X)
    for i in (0, 2, levels - 1):
        now, then = (model.schedule(times[j].float().expand(64, 1, 1, 1)) for j in (i, i + 1))
        wanted = reverse(model, x_t, times[i : i + 2], NOISE, step=Heun(model.schedule))
        assert torch.allclose(objective._step(x_t, now, then, None), wanted, atol=1e-4)


def test_last_state_is_compared_with_the_clean_image_of_the_teacher():
    """The network is never called at time 0, where the logarithm of the noise level is infinite."""
    seed_torch(0, "edm")
    model = NetworkDenoiser(Told(), predicts="consistency", time="edm")
    objective = ConsistencyDistillation(teacher(), levels=2, t_max=0.3, distance="l2")
    loss = objective(model, X, Y, NOISE)
    assert loss.isfinite().all()
    last = NOISE.child("time").uniform(X[:, 0, 0, 0]) >= 0.5
    assert 0 < int(last.sum()) < 64
    times = karras(VP(), 0.3, 2).float()
    z, eps = 2 * X - 1, NOISE.child("noise").normal(X)
    _, alpha, sigma, _ = VP()(times[1])
    x_t = alpha * z + sigma * eps
    wanted = (model(x_t, times[1]) - teacher()(x_t, times[1])).square().flatten(1).mean(1)
    assert torch.allclose(loss[last], wanted[last], rtol=1e-4, atol=1e-6)


class Told(nn.Module):
    """A network that fails if the time is not finite."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(1, 1, 1)

    def forward(self, x, time):
        assert time.isfinite().all()
        return self.map(x) + time.view(-1, 1, 1, 1) / 100


def test_target_has_no_gradient_and_no_dropout():
    seed_torch(0, "target")
    network = nn.ModuleDict({"map": nn.Conv2d(1, 1, 1), "drop": nn.Dropout(0.5)})
    modes = []

    def forward(x, time):
        modes.append((network.training, torch.is_grad_enabled()))
        return network["drop"](network["map"](x))

    network.forward = forward
    model = NetworkDenoiser(network).train()
    ConsistencyDistillation(teacher(), levels=4)(model, X, Y, NOISE).mean().backward()
    assert modes == [(False, False), (True, True)]
    assert network["map"].weight.grad is not None


def test_loss_does_not_depend_on_the_batch():
    model, objective = Exact(wrong=0.9), ConsistencyDistillation(teacher(), levels=5)
    whole = objective(model, X, Y, NOISE)
    parts = [objective(model, X[i : i + 1], Y[:1], NOISE.take([i])) for i in range(5)]
    assert torch.allclose(whole[:5], torch.cat(parts), rtol=1e-4)


def test_pseudo_huber_distance_is_between_the_norm_and_its_square():
    gap = torch.zeros(3, 1, 4, 4)
    gap[1:, 0, 0, 0] = torch.tensor([1e-5, 1.0])
    c = 0.00054 * 4
    wanted = torch.tensor([0.0, 1e-10 / (2 * c), 1 - c])
    assert torch.allclose(pseudo_huber(gap), wanted, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("t", [0.01, 0.1, 0.3])
def test_predicting_the_target_makes_the_consistency_function_the_image(t):
    model, time = NetworkDenoiser(Told(), predicts="consistency"), torch.tensor(t)
    z, eps = 2 * X - 1, NOISE.normal(X)
    _, alpha, sigma, _ = VP()(time)
    x_t, wanted = alpha * z + sigma * eps, model.target(z, eps, time)
    loss, error = denoising_loss(model, z, time, Y, eps), (model(x_t, time) - z).square()
    assert torch.allclose(loss, model.loss_factor(time) * error.flatten(1).mean(1), rtol=1e-3)
    model.predict = lambda x_t, t, label=None: wanted
    assert torch.allclose(model(x_t, time), z, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (NetworkDenoiser(nn.Conv2d(1, 1, 1), schedule=Discrete(1000)), {}, "its schedule is VP"),
        (NetworkDenoiser(nn.Conv2d(1, 1, 1), predicts="image"), {}, "predicts images"),
    ],
)
def test_incompatible_networks_are_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        ConsistencyDistillation(teacher(), **options)(model, X, Y, NOISE)


def test_teacher_gets_its_own_null_class(monkeypatch):
    """The null class has another number in a network with another number of classes."""
    model = unet(channels=1, size=4, widths=(8,), groups=4, classes=2)
    asked, drawn = unet(channels=1, size=4, widths=(8,), groups=4, classes=5), []
    monkeypatch.setattr(
        asked, "forward", lambda x, t, label: drawn.append(label) or torch.zeros_like(x)
    )
    ConsistencyDistillation(asked, solver="euler", label_dropout=0.5)(model, X, Y, NOISE)
    assert set(drawn[0].tolist()) == {0, 5}


def test_more_levels_than_discrete_times_are_refused():
    chain = Discrete(1000)
    with pytest.raises(ValueError, match="levels = 50"):
        ConsistencyDistillation(teacher(chain), levels=50, t_max=0.02)(Exact(chain), X, Y, NOISE)


@pytest.mark.parametrize("bad", [{"levels": 1}, {"t_max": 0}, {"distance": "vgg"}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ConsistencyDistillation(teacher(), **bad)


def test_lpips_without_its_library_or_on_small_images_is_refused(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lpips", None)
    distances.lpips_network.cache_clear()
    objective = ConsistencyDistillation(teacher(side=32), distance="lpips")
    noise = Noise.of(0, [0])
    with pytest.raises(ValueError, match=r"lpips and torchvision .*unfool\[lpips\]"):
        objective(Exact(), torch.full((1, 1, 32, 32), 0.5), Y[:1], noise)
    with pytest.raises(ValueError, match="31 pixels"):
        ConsistencyDistillation(teacher(), distance="lpips")(Exact(), X[:1], Y[:1], noise)


def small(predicts):
    seed_torch(0, "small")
    return unet(channels=1, size=4, widths=(16,), groups=8, predicts=predicts)


def test_short_distillation_maps_one_call_to_the_end_of_the_teacher_flow(tmp_path):
    """One step of a denoiser gives a mean of images; the distilled network gives the end of the flow."""
    options = TrainingOptions(120, batch_size=64, learning_rate=5e-3, warmup=10, ema_decay=0.9)
    one = train(small("edm"), Denoising(t_max=0.3), Blobs(512), tmp_path / "1", options, quiet=True)
    student = small("consistency")
    student.load_state_dict(one.state_dict())
    objective = ConsistencyDistillation(mixture(), levels=8, t_max=0.3)
    other = train(student, objective, Blobs(512), tmp_path / "2", options, quiet=True)
    noise = Noise.of(9, range(200))
    x, _ = fetch(Blobs(712), range(512, 712))
    flow = mixture()
    x_t = flow.perturb(2 * x - 1, torch.tensor(0.3), noise.child("forward"))
    end = reverse(flow, x_t, karras(VP(), 0.3, 40), noise, step=Heun(VP()))

    def gap(denoiser):
        with torch.no_grad():
            found = OneStep(denoiser, t=0.3)(x, noise)
        return float((2 * found - 1 - end).square().mean())

    assert gap(other) < gap(one) / 3


def test_consistency_trains_from_the_command_line_after_an_edm_denoiser(elsewhere):
    import yaml

    part = {"name": "unet", "channels": 1, "size": 4, "widths": [8], "groups": 4, "predicts": "edm"}
    first = {
        "data": {"name": "blobs", "size": 16}, "denoiser": part,
        "objective": {"name": "denoising", "t_max": 0.3}, "training": {"steps": 2, "batch_size": 4},
    }  # fmt: skip
    second = first | {
        "test": {"name": "blobs", "size": 16},
        "denoiser": part | {"predicts": "consistency"},
        "objective": {
            "name": "consistency", "levels": 4, "t_max": 0.3,
            "denoiser": {"name": "trained", "weights": "teacher"},
        },
        "training": {"steps": 2, "batch_size": 4, "init_from": "teacher"},
    }  # fmt: skip
    for name, spec in (("teacher", first), ("student", second)):
        (elsewhere / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        assert run(["train", f"{name}.yaml", "--out", name, "--quiet"]) == 0
    model = card.trained_denoiser("student")
    assert model.predicts == "consistency"
    assert card.read_card("student")[1].get("metrics", {}).get("denoising_loss")
    x, _ = fetch(Blobs(4), range(4))
    assert OneStep(model, t=0.1)(x, Noise.of(0, range(4))).isfinite().all()
    with pytest.raises(SpecError, match="predicts of student is consistency"):
        check(specs.load(first | {"training": {"steps": 2, "init_from": "student"}}))
