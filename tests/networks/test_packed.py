"""Convolutions whose frozen weights oneDNN reads in its own order: the same numbers, never old ones."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.gradient import keeping
from unfool.diffusion.reverse import Ancestral, reverse, strided
from unfool.networks.frozen_layers import Conv2d
from unfool.networks.unet import UNet
from unfool.noise import Noise, seed_torch

NOISE = Noise.of(3, range(2))


def image(*size: int) -> Tensor:
    return NOISE.normal(torch.empty(2, 8, *size))


def torchs(layer: Conv2d, x: Tensor) -> Tensor:
    """What torch computes, in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    out = F.conv2d(
        x.double(), layer.weight.double(), bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )  # fmt: skip
    return out.float()


@pytest.fixture
def layer() -> Conv2d:
    seed_torch(0)
    return Conv2d(8, 6, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (3, 1), "groups": 2, "dilation": (2, 1)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("size", [(8, 6), (5, 5)])
@torch.no_grad()
def test_they_equal_those_of_torch(options, size):
    seed_torch(0)
    mine = Conv2d(8, 6, **options).requires_grad_(False)
    theirs = nn.Conv2d(8, 6, **options)
    theirs.load_state_dict(mine.state_dict())
    for x in (image(*size), image(*size).contiguous(memory_format=torch.channels_last)):
        for some in (x, x[:1], x[:0]):  # with what was packed before
            torch.testing.assert_close(mine(some), theirs(some), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_weight_that_changes_is_read_again(layer):
    x = image(8, 8)
    layer(x)
    changes = {
        "in place": lambda: layer.weight.mul_(2),
        "through .data": lambda: layer.weight.data.add_(0.1),
        "another": lambda: setattr(layer, "weight", nn.Parameter(layer.weight.flip(0), False)),
        "loaded": lambda: layer.load_state_dict(Conv2d(8, 6, 3).state_dict()),
        "its bias": lambda: layer.bias.data.add_(1),  # pyright: ignore[reportOptionalMemberAccess]
    }
    for name, change in changes.items():
        before = layer(x)
        change()
        assert not torch.allclose(layer(x), before, atol=1e-3), name
        torch.testing.assert_close(layer(x), torchs(layer, x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_copy_has_a_weight_of_its_own(layer):
    x = image(8, 8)
    out = layer(x)
    copy = deepcopy(layer)
    copy.weight.zero_()
    assert torch.equal(layer(x), out)
    assert not torch.allclose(copy(x), out, atol=1e-3)


@torch.no_grad()
def test_other_precisions_are_those_of_torch(layer):
    x = image(8, 8)
    layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


def test_a_replay_takes_the_way_of_a_graph():
    """So that a gradient is the same to the last bit, however many graphs are kept."""
    seed_torch(0)
    network = UNet(3, (16, 32), groups=8).eval().requires_grad_(False)
    denoiser = NetworkDenoiser(network, shape=(3, 8, 8))
    noise, times = Noise.of(0, range(2)), strided(0.1, 4, 1000)
    start = noise.child("x").normal(torch.empty(2, 3, 8, 8))

    def gradient(graphs: int) -> Tensor:
        x = start.clone().requires_grad_()
        with keeping(graphs):
            out = reverse(denoiser, x, times, noise, step=Ancestral())
        return torch.autograd.grad(out.square().sum(), x)[0]

    kept = gradient(4)
    assert all(torch.equal(gradient(graphs), kept) for graphs in (0, 2))


@torch.no_grad()
def test_a_time_for_all_is_that_of_each():
    seed_torch(0)
    network = UNet(3, (16, 32), groups=8, classes=2).eval().double()
    x = NOISE.normal(torch.empty(2, 3, 8, 8)).double()
    label, time = torch.tensor([0, 2]), torch.tensor(70.0, dtype=torch.float64)
    each = network(x, time.repeat(2), label)
    torch.testing.assert_close(network(x, time.expand(2), label), each, rtol=1e-12, atol=1e-12)
