"""Tests of drawing a step's noise while the denoiser runs: the same noise, without waiting."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from unfool import noise as noises
from unfool.defenses.diffpure import DiffPure
from unfool.diffusion import reverse as reverses
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.matched_noise import CoarseNoise
from unfool.diffusion.reverse import DDIM, Ancestral, even, flow, reverse
from unfool.diffusion.schedule import VP
from unfool.noise import Noise

SLOW, STEPS = 0.05, 6
X = Noise.of(0, range(3)).child("x").normal(torch.empty(3, 1, 4, 4))


class Still(Denoiser):
    """A denoiser that takes no time."""

    schedule = VP()

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return 0.9 * x_t


class Slow(Still):
    """A slow denoiser, like one on a device."""

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        time.sleep(SLOW)
        return super().forward(x_t, t, label)


def reversed_(step: Any) -> tuple[Tensor, float]:
    began = time.perf_counter()
    with torch.no_grad():
        out = reverse(Slow(), X, even(0.1, STEPS), Noise.of(1, range(3)), step=step)
    return out, time.perf_counter() - began


@pytest.fixture
def slow_stream(monkeypatch):
    """Make drawing as slow as the denoiser, and return a list with an entry per draw."""
    write, calls = noises._write, []

    def slowly(*of: Any) -> None:
        time.sleep(SLOW)
        calls.append(1)
        write(*of)

    monkeypatch.setattr(noises, "_write", slowly)
    return calls


def as_on_a_gpu(monkeypatch) -> None:
    real = reverses.draws_ahead

    class Gpu:
        is_cuda = True

    monkeypatch.setattr(reverses, "draws_ahead", lambda step, x_t: real(step, Gpu()))  # pyright: ignore


@pytest.mark.parametrize("step", [reverses.euler_maruyama, Ancestral(), DDIM(0.5)])
def test_noise_is_drawn_while_the_denoiser_runs(slow_stream, monkeypatch, step):
    there, one_by_one = reversed_(step)
    asked = len(slow_stream)
    as_on_a_gpu(monkeypatch)
    ahead, together = reversed_(step)
    assert torch.equal(ahead, there)
    assert len(slow_stream) == 2 * asked, "a stream is drawn once"
    assert together < one_by_one - (STEPS - 2) * SLOW


@pytest.mark.parametrize("step", [flow, DDIM(0.0)])
def test_deterministic_steps_draw_no_noise(slow_stream, monkeypatch, step):
    as_on_a_gpu(monkeypatch)
    reversed_(step)
    assert not slow_stream


def test_drawing_ahead_does_not_change_the_gradient(monkeypatch):
    def gradient() -> Tensor:
        x = X.clone().requires_grad_()
        out = reverse(Slow(), x, even(0.1, 2), Noise.of(1, range(3)), step=Ancestral())
        return torch.autograd.grad(out.square().sum(), x)[0]

    there = gradient()
    as_on_a_gpu(monkeypatch)
    assert torch.equal(gradient(), there)


def test_noise_drawn_ahead_equals_the_noise():
    noise, like = Noise.of(2, range(3)), torch.empty(3, 2, 2)
    ahead = noise.drawn_ahead(like)
    assert torch.equal(ahead.normal(like), noise.normal(like))
    assert torch.equal(ahead.normal(like.double()), noise.normal(like.double()))
    assert torch.equal(ahead.normal(torch.empty(3, 5)), noise.normal(torch.empty(3, 5)))
    assert torch.equal(ahead.uniform(like), noise.uniform(like))
    assert torch.equal(ahead.child("guide").normal(like), noise.child("guide").normal(like))
    assert torch.equal(ahead.take([1]).normal(like[1:2]), noise.take([1]).normal(like[1:2]))
    with pytest.raises(ValueError, match="3 images"):
        noise.drawn_ahead(like[:2]).normal(like)


def test_noise_of_several_fine_steps_drawn_ahead_is_that_of_all_of_them():
    groups, like = ((0.6, 0.8), (1.0,), (0.8, 0.0)), torch.empty(3, 2, 2)
    steps = CoarseNoise(Noise.of(3, range(3)).keys, groups=groups).child("reverse")
    for i in range(len(groups)):
        ahead = steps.child(i).drawn_ahead(like)
        assert torch.equal(ahead.normal(like), steps.child(i).normal(like))
        assert torch.equal(
            ahead.child("guide").normal(like), steps.child(i).child("guide").normal(like)
        )


def test_view_on_the_same_noise_is_the_same_on_a_gpu(monkeypatch):
    view = DiffPure(Still(), t=0.1, steps=20).with_fewer_steps(5)
    x, noise = X.sigmoid(), Noise.of(4, range(3))
    on_a_cpu = view(x, noise)
    as_on_a_gpu(monkeypatch)
    assert torch.equal(view(x, noise), on_a_cpu)
