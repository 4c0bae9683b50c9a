"""Tests of FlowPure: with an exact network, images move along a straight line in any number of steps."""

import pytest
import torch
from probe import Probe

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.flowpure import FlowPure, straight
from unfool.diffusion.denoiser import Denoiser, Mixture
from unfool.diffusion.schedule import VP, Discrete, pixel_noise
from unfool.noise import Noise

X = Noise.of(0, range(3)).uniform(torch.empty(3, 1, 4, 4)).double()
NOISE = Noise.of(1, range(3))


class Toward(Denoiser):
    """The network of a flow to one image: x_hat is always that image."""

    def __init__(self, goal: float = 0.3, schedule=None):
        super().__init__()
        self.goal, self.schedule, self.asked = 2 * goal - 1, schedule or VP(), []

    def forward(self, x_t, t, label=None):
        self.asked.append((float(t), x_t))
        return torch.full_like(x_t, self.goal)


@pytest.mark.parametrize("schedule", [VP(), Discrete(1000)])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_states_lie_on_the_straight_line_to_the_clean_image(schedule, steps):
    model = Toward(schedule=schedule)
    purify, probe = FlowPure(model, t=0.1, steps=steps), Probe()
    assert torch.allclose(purify(X, probe), torch.full_like(X, 0.3), atol=1e-9)
    assert probe.drawn == [], "nothing is drawn"
    assert len(model.asked) == steps, "each step is one call"
    for t, x_t in model.asked:
        passed = pixel_noise(schedule, t) / pixel_noise(schedule, 0.1)
        line = passed * (2 * X - 1) + (1 - passed) * model.goal
        assert torch.allclose(x_t / schedule(torch.tensor(t).double()).alpha, line, atol=1e-6)


def test_steps_have_equal_length():
    sizes = torch.tensor([pixel_noise(VP(), float(t)) for t in straight(VP(), 0.1, 9)])
    assert torch.allclose(sizes.diff(), torch.full((9,), -pixel_noise(VP(), 0.1) / 9), atol=1e-6)
    chain = Discrete(1000)
    times = straight(chain, 0.1, 9)
    assert torch.equal((times * 1000).round() / 1000, times)


def test_walk_yields_images_from_input_to_output():
    path = list(FlowPure(Toward(), t=0.1, steps=3).walk(X, NOISE))
    assert [t for t, _ in path] == FlowPure(Toward(), t=0.1, steps=3).times.tolist()
    assert torch.allclose(path[0][1], X, atol=1e-9)
    assert torch.allclose(path[-1][1], torch.full_like(X, 0.3), atol=1e-9)


def test_one_noised_step_of_an_ordinary_denoiser_equals_diffpure():
    """The Gaussian variant adds the noise of time t and takes the same deterministic reverse step."""
    model = Mixture(torch.full((1, 1, 4, 4), 0.2, dtype=torch.float64), 0.5)
    ours = FlowPure(model, t=0.1, steps=1, noised=True)
    theirs = DiffPure(model, t=0.1, steps=1, sampler="ddim")
    assert torch.allclose(ours(X, NOISE), theirs(X, NOISE), atol=1e-9)
    assert ours.pixel_noise == theirs.pixel_noise
    assert FlowPure(model).pixel_noise == 0


def test_with_fewer_steps_reaches_the_same_image():
    purify = FlowPure(Toward(), t=0.1, steps=9)
    for matched in (True, False):
        shorter = purify.with_fewer_steps(3, matched)
        assert torch.allclose(shorter(X, NOISE), torch.full_like(X, 0.3), atol=1e-9)
    assert len(purify.times) == 10


def test_chain_too_short_for_the_steps_is_refused():
    with pytest.raises(ValueError, match="steps = 300"):
        FlowPure(Toward(schedule=Discrete(1000)), t=0.1, steps=300)
