"""Tests of denoisers: every adapter returns E[x_0 | x_t], which is exact for `Mixture`."""

import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import nn

from unfool.diffusion.denoiser import Mixture, NetworkDenoiser, Prediction
from unfool.diffusion.schedule import VP, Discrete, time_of_noise
from unfool.noise import Noise

SHAPE = (2, 3, 3)
NOISE = Noise.of(0, range(5))
BLANK = torch.zeros(5, *SHAPE, dtype=torch.float64)
Z = NOISE.child("z").uniform(BLANK) * 2 - 1
EPS = NOISE.child("eps").normal(BLANK)


class Oracle(nn.Module):
    """A network that returns a given output and records its inputs."""

    def __init__(self, answer: torch.Tensor, wrap: bool = False):
        super().__init__()
        self.answer, self.wrap, self.asked = answer, wrap, []

    def forward(self, x, time, label=None):
        self.asked.append((x, time, label))
        return SimpleNamespace(sample=self.answer) if self.wrap else self.answer


@pytest.mark.parametrize("schedule", [VP(), Discrete(), Discrete(100, "cosine")])
@pytest.mark.parametrize("time", [0.02, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("wrap", [False, True])
def test_all_parameterizations_recover_the_image_and_the_score(schedule, time: float, wrap: bool):
    """(x_0, noise) gives x_t and the network's output, which gives x_0 back, for every
    parameterization and shape of times. All parameterizations give the same score."""
    for t in (torch.tensor(time), torch.full((5, 1, 1, 1), time, dtype=torch.float64)):
        _, alpha, sigma, _ = schedule(t.double())
        x_t = alpha * Z + sigma * EPS
        answers: dict[Prediction, torch.Tensor] = {
            "noise": EPS,
            "image": Z,
            "velocity": alpha * EPS - sigma * Z,
        }
        for predicts, answer in answers.items():
            model = NetworkDenoiser(Oracle(answer, wrap), schedule=schedule, predicts=predicts)
            assert torch.allclose(model(x_t, t), Z, atol=1e-12 / float(alpha.min()))
            assert torch.allclose(model.target(Z, EPS, t.double()), answer, atol=1e-14)
            assert torch.equal(model.predict(x_t, t), answer)
            score = (alpha * model(x_t, t) - x_t) / sigma**2
            assert torch.allclose(score, -EPS / sigma, atol=1e-10 / float(alpha.min()))


@pytest.mark.parametrize("noise", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("kind", ["subvp", "ve", "edm"])
def test_network_of_another_sde_is_evaluated_at_the_same_noise(
    noise: float, kind: Literal["subvp", "ve", "edm"]
):
    """For Gaussian data, the network of each SDE has a closed form."""
    spread, x = 0.5, Z + noise * EPS

    def answer(inputs, told):
        if kind == "edm":  # inputs of unit variance, for which the ideal output is 0
            assert torch.allclose(inputs, x / math.hypot(noise, spread))
            return torch.zeros_like(inputs)
        if kind == "ve":
            level = 2 * told.exp()[:, None, None, None]
            return -level * inputs / (level**2 + spread**2)
        t = told[:, None, None, None] / 999
        alpha = torch.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
        sigma = 1 - alpha**2
        return sigma * inputs / (sigma**2 + (alpha * spread) ** 2)

    class Exact(nn.Module):
        def forward(self, inputs, told):
            return answer(inputs, told)

    model = NetworkDenoiser(Exact(), predicts=kind, time=kind)
    t = torch.tensor(time_of_noise(VP(), noise / 2), dtype=torch.float64)
    x_hat = model(VP()(t).alpha * x, t)
    assert torch.allclose(x_hat, spread**2 / (spread**2 + noise**2) * x, rtol=1e-9, atol=1e-11)


def test_learned_variance_is_split_off():
    both = torch.cat([EPS, 7 + EPS], 1)
    t = torch.tensor(0.3)
    assert torch.equal(NetworkDenoiser(Oracle(both))(Z, t), NetworkDenoiser(Oracle(EPS))(Z, t))


def test_network_without_a_null_class_needs_labels():
    model = NetworkDenoiser(Oracle(Z), classes=10, null=False)
    with pytest.raises(ValueError, match="10 classes and no null class"):
        model(Z, torch.tensor(0.3))
    model(Z, torch.tensor(0.3), torch.zeros(5, dtype=torch.long))


def test_perturb_returns_x_t():
    model = NetworkDenoiser(Oracle(Z), predicts="image")
    t = torch.tensor(0.3, dtype=torch.float64)
    _, alpha, sigma, _ = VP()(t)
    assert torch.equal(model.perturb(Z, t, NOISE), alpha * Z + sigma * NOISE.normal(Z))
    other = Discrete(10)
    _, alpha, sigma, _ = other(t)
    assert torch.equal(model.perturb(Z, t, NOISE, other), alpha * Z + sigma * NOISE.normal(Z))


NOISE_AT_TENTH = math.sqrt(math.expm1(0.1 * 0.1 + 0.5 * 19.9 * 0.1**2))  # sigma / alpha of VP


@pytest.mark.parametrize(
    ("time", "schedule", "told"),
    [
        ("scaled", VP(), 99.0),
        ("score_sde", VP(), 99.9),
        ("index", VP(), 99.0),
        ("scaled", Discrete(1000), 99.0),
        ("index", Discrete(1000), 99.0),
        ("index", Discrete(50), 4.0),
        ("scaled", Discrete(4000, "cosine"), 399.0),
        ("rescaled", Discrete(4000, "cosine"), 99.75),
        ("edm", VP(), math.log(NOISE_AT_TENTH) / 4),
        ("consistency", VP(), math.log(NOISE_AT_TENTH) * 250),
        ("ve", VP(), math.log(NOISE_AT_TENTH / 2)),
        (lambda scales: 2 * scales.t, VP(), 0.2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_network_receives_the_time_in_its_own_units(time, schedule, told: float, dtype):
    oracle = Oracle(Z.to(dtype))
    model = NetworkDenoiser(oracle, schedule=schedule, predicts="image", time=time)
    for t in (torch.tensor(0.1), torch.full((5, 1, 1, 1), 0.1)):
        model(Z.to(dtype), t)
        _, asked, label = oracle.asked[-1]
        assert asked.shape == (5,)
        assert asked.dtype == dtype
        assert label is None
        assert asked.tolist() == pytest.approx([told] * 5, rel=1e-6)


@pytest.mark.parametrize("steps", [1000, 100])
@pytest.mark.parametrize("time", ["scaled", "index", "rescaled", "score_sde"])
def test_network_is_told_the_step_whose_noise_x_t_has(steps: int, time):
    """Between two steps of a chain, the scales and the time input are those of the nearest one."""
    schedule, oracle = Discrete(steps), Oracle(Z)
    model = NetworkDenoiser(oracle, schedule=schedule, predicts="image", time=time)

    def told(t) -> list[float]:
        model(Z, t)
        return oracle.asked[-1][1].tolist()

    for half in range(2, 2 * steps + 1, 7):  # also in the middle between two steps
        for t in (half / 2 / steps, (half / 2 - 0.2) / steps):
            abar = schedule(torch.tensor(t, dtype=torch.float64)).alpha ** 2
            step = torch.tensor(int((schedule.abar - abar).abs().argmin()) / steps).double()
            assert told(torch.tensor(t, dtype=torch.float64)) == told(step)
    many = (torch.arange(5, dtype=torch.float32) + 10.5).view(-1, 1, 1, 1) / steps
    assert told(many) == [told(t)[0] for t in many.flatten().double()]


def test_every_time_index_is_an_exact_integer_in_float32():
    oracle = Oracle(Z.float())
    model = NetworkDenoiser(oracle, schedule=Discrete(), predicts="image", time="index")
    for n in range(1, 1001):
        model(Z.float(), torch.tensor(n / 1000, dtype=torch.float32))
    asked = [int(time[0]) for _, time, _ in oracle.asked]
    assert asked == list(range(1000))
    assert all(float(time[0]) == int(time[0]) for _, time, _ in oracle.asked)


def test_images_of_one_batch_may_have_different_times():
    t = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)[:, None, None, None]
    oracle = Oracle(EPS)
    whole = NetworkDenoiser(oracle)(Z, t)
    assert oracle.asked[-1][1].tolist() == pytest.approx([99, 199, 299, 399, 499])
    for i in range(5):
        alone = NetworkDenoiser(Oracle(EPS[i : i + 1]))(Z[i : i + 1], t[i, 0, 0, 0])
        assert torch.allclose(whole[i], alone[0], atol=1e-14)


def test_images_without_a_label_get_the_null_class():
    oracle = Oracle(Z)
    model = NetworkDenoiser(oracle, predicts="image", classes=10)
    model(Z, torch.tensor(0.1))
    assert oracle.asked[-1][2].tolist() == [10] * 5
    model(Z, torch.tensor(0.1), torch.arange(5))
    assert oracle.asked[-1][2].tolist() == [0, 1, 2, 3, 4]


def test_clipping_is_off_by_default():
    wide = 3 * Z
    t = torch.tensor(0.1)
    assert torch.equal(NetworkDenoiser(Oracle(wide), predicts="image")(Z, t), wide)
    clipped = NetworkDenoiser(Oracle(wide), predicts="image", clip_x0=True)(Z, t)
    assert torch.equal(clipped, wide.clamp(-1, 1))


def test_encode_and_decode_are_inverse_and_do_not_clamp():
    model = NetworkDenoiser(Oracle(Z))
    x = torch.tensor([[[[-0.5, 0.0, 0.25, 1.0, 2.0]]]])
    assert model.encode(x).flatten().tolist() == [-2, -1, -0.5, 1, 3]
    assert torch.equal(model.decode(model.encode(x)), x)


def test_unknown_prediction_and_time_are_refused():
    with pytest.raises(ValueError, match=r"noise, image, .*; not 'score'"):
        NetworkDenoiser(Oracle(Z), predicts="score")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"index, .*; not 'steps'"):
        NetworkDenoiser(Oracle(Z), time="steps")  # pyright: ignore[reportArgumentType]


MEANS = Noise.of(1, range(3)).uniform(BLANK[:3]) * 2 - 1


@pytest.mark.parametrize("schedule", [VP(), Discrete()])
@pytest.mark.parametrize("time", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("label", [None, torch.tensor([0, 1, 2, 2, 0])])
def test_mixture_matches_tweedies_formula_for_the_exact_density(schedule, time: float, label):
    """x_hat = (x_t + sigma^2 grad log p(x_t)) / alpha, with the density written out below."""
    spread, t = 0.3, torch.tensor(time, dtype=torch.float64)
    _, alpha, sigma, _ = schedule(t)
    x_t = (alpha * MEANS[[0, 1, 2, 0, 1]] + sigma * EPS).requires_grad_()
    variance = alpha**2 * spread**2 + sigma**2
    logs = torch.stack(
        [-(x_t - alpha * m).square().flatten(1).sum(1) / (2 * variance) for m in MEANS], 1
    )
    log_p = logs.logsumexp(1) if label is None else logs.gather(1, label[:, None])[:, 0]
    (score,) = torch.autograd.grad(log_p.sum(), x_t)
    model = Mixture(MEANS, spread, schedule)
    expected = (x_t + sigma**2 * score) / alpha
    assert torch.allclose(model(x_t, t, label), expected, atol=1e-11 / float(alpha) ** 2)
    each = t.expand(5, 1, 1, 1)
    assert torch.allclose(model(x_t, each, label), expected, atol=1e-11 / float(alpha) ** 2)


def test_mixture_accepts_different_times_in_one_batch():
    model = Mixture(MEANS, 0.3)
    t = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9], dtype=torch.float64)[:, None, None, None]
    alone = torch.cat([model(EPS[i : i + 1], t[i, 0, 0, 0]) for i in range(5)])
    assert torch.allclose(model(EPS, t), alone, atol=1e-14)
    assert model.shape == SHAPE
    assert model.classes == 3
