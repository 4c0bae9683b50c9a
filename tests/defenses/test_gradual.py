"""Tests of gradual purification: several DiffPure passes in a row."""

import pytest
import torch

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.gradual import CIFAR, Gradual
from unfool.noise import Noise
from unfool.toy.blobs import Blobs, mixture

X = torch.stack([Blobs(3)[i][0] for i in range(3)]).double()
NOISE = Noise.of(0, range(3))


def test_gradual_equals_consecutive_diffpure_passes():
    pure = Gradual(mixture(), passes=[(0.03, 2), (0.1, 5)], sampler="ddim", eta=0.5)
    first, second = (
        DiffPure(mixture(), t=t, steps=steps, sampler="ddim", eta=0.5)
        for t, steps in ((0.03, 2), (0.1, 5))
    )
    expected = second(first(X, NOISE.child("pass", 0)), NOISE.child("pass", 1))
    assert torch.equal(pure(X, NOISE), expected)
    assert pure.pixel_noise == second.pixel_noise


def test_default_passes_match_the_paper():
    assert [steps for _, steps in CIFAR] == [30, 30, 30, 30, 50, 50, 125, 125]
    assert all(
        round(1000 * t) == steps for t, steps in CIFAR
    )  # each pass takes every step of the chain
    assert len(Gradual(mixture()).passes) == 8


def test_invalid_passes_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        Gradual(mixture(), passes=[])
    with pytest.raises(ValueError, match="pass 1: steps must be at most 50"):
        Gradual(mixture(), passes=[(0.03, 30), (0.05, 60)])
