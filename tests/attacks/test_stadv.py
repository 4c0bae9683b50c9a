"""Shifted images: known shifts, and a model whose worst shift is known."""

import torch
from analytic import NOISE, SIZE, THREATS, X, Y

from unfool.attacks.stadv import StAdv, roughness, warp

STILL = torch.zeros(SIZE, 4, 4, 2, dtype=torch.float64)
RIGHT = torch.tensor([1.0, 0.0], dtype=torch.float64)


def test_zero_flow_changes_nothing():
    assert torch.allclose(warp(X, STILL), X, atol=1e-12)


def test_constant_flow_shifts_the_image_by_one_pixel():
    moved = warp(X, STILL + RIGHT * 2 / 4)  # sampled one pixel further right
    assert torch.allclose(moved[..., :-1], X[..., 1:])
    assert torch.allclose(moved[..., -1], X[..., -1])  # the border is repeated
    down = warp(X, STILL + RIGHT.flip(0) * 2 / 4)
    assert torch.allclose(down[:, :, :-1], X[:, :, 1:])


def test_roughness_by_hand():
    assert float(roughness(STILL).max()) < 1e-3
    flow = STILL.clone()
    flow[:, 1, 1] = torch.tensor([3.0, 4.0], dtype=torch.float64)  # 5 off its 4 neighbors
    assert torch.allclose(roughness(flow), torch.full_like(X[:, 0, 0, 0], 20), atol=1e-3)


def test_worst_shift_of_a_ramp_is_found():
    """Brightness increases to the right, and darker images raise the logit of the true class."""
    x = torch.linspace(0.2, 0.8, 9, dtype=torch.float64).expand(2, 1, 9, 9).contiguous()

    def model(x, noise):
        bright = x.flatten(1).sum(1)
        return torch.stack([-bright, bright], 1)

    bound = 0.1
    attack = StAdv(40, bound=bound, learning_rate=0.02)
    found = attack(model, x, torch.zeros(2, dtype=torch.long), THREATS["linf"], NOISE.take([0, 1]))
    expected = warp(x, bound * RIGHT.expand(2, 9, 9, 2))
    assert torch.allclose(found[..., :-1], expected[..., :-1], atol=2e-3)
    assert torch.allclose(
        expected[..., :-1] - x[..., :-1], torch.full((), bound * 9 / 2 * 0.075).double()
    )


def test_values_stay_in_the_range_of_the_images():
    def model(x, noise):
        return torch.stack([torch.sin(9 * x).flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    found = StAdv(10, eot=2)(model, X, Y, THREATS["linf"], NOISE)
    assert not torch.equal(found, X)
    assert float(found.min()) >= float(X.min())
    assert float(found.max()) <= float(X.max())
