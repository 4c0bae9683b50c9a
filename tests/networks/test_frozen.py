"""Tests of layers with frozen weights: outputs and gradients of torch, in less memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.networks import score_unet, unet
from unfool.networks.frozen_layers import Conv2d, norm_silu
from unfool.networks.score_unet import ADM, DDPM, DDPMPP, ScoreUNet
from unfool.networks.unet import UNet
from unfool.noise import Noise, seed_torch
from unfool.runtime.memory import count_graph_memory

NOISE = Noise.of(0, range(2))
LAYOUTS = {
    "rows": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "odd batch stride": lambda x: x[:1].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
}


def plain(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None):
    x = norm(x)
    return F.silu(x if scale is None or shift is None else x * (1 + scale) + shift)


def gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum(), x)[0]


@pytest.fixture
def norm() -> nn.GroupNorm:
    norm = nn.GroupNorm(4, 8).double().requires_grad_(False)
    norm.weight.copy_(torch.linspace(-1, 2, 8))
    norm.bias.copy_(torch.linspace(1, -1, 8))
    return norm


@pytest.fixture
def modulation() -> list[Tensor]:
    return [
        NOISE.child(name).normal(torch.empty(2, 8, 1, 1)).double() for name in ("scale", "shift")
    ]


def image(*size: int) -> Tensor:
    return NOISE.normal(torch.empty(2, 8, *size)).double().requires_grad_()


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_and_silu_match_torch(norm, modulation, layout, modulated):
    x = image(4, 3)
    at = LAYOUTS[layout](x)
    given = [part[: len(at)] for part in modulation] if modulated else []
    mine, theirs = norm_silu(norm, at, *given), plain(norm, at, *given)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(mine, x), gradient(theirs, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2}, {"groups": 2, "dilation": 2}, {"padding": "same"}]
)
def test_convolution_matches_torch(layout, options):
    mine = Conv2d(8, 6, 3, **options).double().requires_grad_(False)
    theirs = nn.Conv2d(8, 6, 3, **options).double().requires_grad_(False)
    theirs.load_state_dict(mine.state_dict())
    x = image(8, 6)
    at = LAYOUTS[layout](x)
    torch.testing.assert_close(mine(at), theirs(at), rtol=1e-12, atol=1e-12)
    found, wanted = gradient(mine(at), x), gradient(theirs(at), x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True])
def test_second_derivatives_are_exact(norm, modulation, modulated):
    conv = Conv2d(8, 2, 2).double().requires_grad_(False)
    given = modulation if modulated else []
    x = image(2, 2)
    assert torch.autograd.gradcheck(lambda x: conv(norm_silu(norm, x, *given)), x)
    assert torch.autograd.gradgradcheck(lambda x: conv(norm_silu(norm, x, *given)), x)


def test_trainable_weights_get_the_gradients_of_torch(norm):
    conv = Conv2d(8, 2, 3).double()
    norm.requires_grad_(True)
    x = image(4, 4)
    weights = [conv.weight, norm.weight, norm.bias]
    found = torch.autograd.grad(conv(norm_silu(norm, x)).square().sum(), weights)
    out = F.conv2d(plain(norm, x), conv.weight, conv.bias).square().sum()
    for mine, theirs in zip(found, torch.autograd.grad(out, weights), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_autocast_matches_torch(norm):
    norm, conv = norm.float(), Conv2d(8, 8, 3).requires_grad_(False)
    x = image(4, 4).detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = conv(norm_silu(norm, x))
        theirs = F.conv2d(plain(norm, x), conv.weight, conv.bias)
    assert mine.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(gradient(mine, x), gradient(theirs, x))


def test_backward_pass_can_be_repeated(norm):
    x = image(4, 4)
    out = norm_silu(norm, x).sum()
    once = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(once, torch.autograd.grad(out, x)[0])


NETWORKS = {
    "unet": lambda: UNet(3, (16, 32), groups=8, layers=2, attention=(1,)),
    "adm": lambda: ScoreUNet((32, 64), layers=2, attention=(1,), head_width=32, style=ADM),
    "ddpm": lambda: ScoreUNet((32, 64), layers=2, attention=(1,), heads=1, style=DDPM),
    "ddpm++": lambda: ScoreUNet((32, 64), layers=2, attention=(1,), heads=1, style=DDPMPP),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_keeps_less_than_half_the_memory_for_equal_gradients(name, monkeypatch):
    seed_torch(0)
    network = NETWORKS[name]().double().eval().requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.xavier_normal_(weight)
    x = NOISE.normal(torch.empty(2, 3, 16, 16)).double().requires_grad_()

    def run() -> tuple[int, Tensor]:
        with count_graph_memory(network) as kept:
            out = network(x, torch.full((2,), 10.0, dtype=torch.float64))
        return kept.peak, gradient(out, x)

    few, mine = run()
    monkeypatch.setattr(Conv2d, "forward", nn.Conv2d.forward)
    for module in (unet, score_unet):
        monkeypatch.setattr(module, "norm_silu", plain)
    many, theirs = run()
    assert few < 0.45 * many
    assert float((mine - theirs).norm()) < 1e-12 * float(theirs.norm())
