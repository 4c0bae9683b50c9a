"""Tests that our U-Net computes what that of diffusers does, and loads its weights."""

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from unfool import spec as specs
from unfool.models import card
from unfool.models.checkpoints import weights_that_fit
from unfool.networks.unet import UNet, rename, timestep_embedding
from unfool.noise import Noise, seed_torch

CASES = {
    "plain": {"channels": 3, "widths": (8, 16)},
    "one level": {"channels": 1, "widths": (8,), "layers": 2},
    "attention": {"channels": 1, "widths": (8, 16, 24), "attention": (0, 2)},
    "more than a head": {"channels": 3, "widths": (64, 128), "attention": (1,), "groups": 32},
    "uneven heads": {"channels": 3, "widths": (12, 20), "attention": (0, 1)},
    "patches": {"channels": 1, "widths": (8, 8), "patch": 2, "layers": 2},
    "classes": {"channels": 3, "widths": (16, 8), "classes": 3, "attention": (1,)},
    "an odd width": {"channels": 1, "widths": (9, 18), "groups": 3},
    "dropout": {"channels": 3, "widths": (8, 16), "dropout": 0.3},
}
NOISE = Noise.of(0, range(3))


class Reference(nn.Module):
    """The U-Net of diffusers, on patches."""

    def __init__(self, channels, widths, *, attention=(), patch=1, classes=0, **options):
        super().__init__()
        self.patch = patch
        attends = [level in attention for level in range(len(widths))]
        self.unet = UNet2DModel(
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=widths,
            layers_per_block=options.get("layers", 1),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),  # pyright: ignore
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),  # pyright: ignore
            add_attention=any(attends),
            norm_num_groups=options["groups"],
            attention_head_dim=min(64, *widths),
            dropout=options.get("dropout", 0.0),
            num_class_embeds=classes + 1 if classes else None,
        )

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        out = self.unet(F.pixel_unshuffle(x, self.patch), time, label, return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch)


@pytest.fixture(params=CASES)
def case(request):
    return {"groups": 4, **CASES[request.param]}


def randomized(model: nn.Module) -> nn.Module:
    """Change all weights from their initial values, including biases and norms."""
    noise = Noise.of(1, range(1))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += 0.1 * noise.child(name).normal(weight[None])[0]
    return model.eval()


def inputs(case) -> tuple[Tensor, Tensor, Tensor | None]:
    x = NOISE.normal(torch.empty(3, case["channels"], 16, 16))
    label = torch.tensor([0, 2, 3]) if case.get("classes") else None
    return x, torch.tensor([0.0, 123.4, 999.0]), label


def computed(model: nn.Module, case) -> tuple[Tensor, Tensor]:
    """Return the output of a network and the gradient of its square, in float64."""
    x, time, label = inputs(case)
    x, model = x.double().requires_grad_(), model.double()
    out = model(x, time, label)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


def test_unet_equals_diffusers_with_its_weights(case):
    reference = randomized(Reference(**case))
    ours = UNet(**case).eval()
    ours.load_state_dict(reference.state_dict())
    for found, wanted in zip(computed(ours, case), computed(reference, case), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-12


def test_initialization_and_dropout_match_diffusers_for_the_same_seed(case):
    outs = []
    for kind in (Reference, UNet):
        seed_torch(0)
        outs.append(computed(kind(**case).train(), case)[0])
    assert torch.allclose(*outs, rtol=1e-9, atol=1e-9)


def test_layer_order_matches_diffusers(case):
    """The order matters for a LoRA adapter, which draws its initial weights layer by layer."""

    def names(model: nn.Module, of_attention: bool) -> list[str]:
        layers = (n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
        found = dict.fromkeys(layers)
        rename(found)
        return [name for name in found if ("attention" in name) is of_attention]

    for of_attention in (True, False):
        wanted = names(Reference(**case).unet, of_attention)
        assert names(UNet(**case), of_attention) == wanted


@pytest.mark.parametrize("prefix", ["", "network.", "network.unet."])
def test_diffusers_names_are_converted_and_our_names_are_kept(case, prefix):
    old = {prefix + name: value for name, value in Reference(**case).unet.state_dict().items()}
    ours = nn.ModuleDict({"network": UNet(**case)}) if prefix else UNet(**case)
    found = weights_that_fit(ours, old)
    assert set(found) == set(ours.state_dict())
    ours.load_state_dict(old)
    assert all(torch.equal(value, found[name]) for name, value in ours.state_dict().items())
    names = list(found)
    rename(found, "network." if prefix else "")
    assert list(found) == names


def test_names_of_other_modules_are_kept():
    state = {"other.conv_shortcut.weight": 0, "network.conv_shortcut.weight": 1}
    rename(state, "network.")
    assert state == {"other.conv_shortcut.weight": 0, "network.shortcut.weight": 1}


@pytest.mark.parametrize("name", card.shipped())
def test_shipped_denoisers_are_unets_of_the_stated_size(name):
    told = card.read_card(name)[1]
    if told["kind"] == "denoiser":
        unet = card.trained_denoiser(name).network
        assert isinstance(unet, UNet)
        assert sum(p.numel() for p in unet.parameters()) == told["parameters"]


def test_folder_with_old_names_can_be_loaded_and_initialize_training(elsewhere):
    part = {
        "name": "unet", "channels": 1, "size": 8, "widths": [8, 16], "groups": 4, "patch": 2,
        "attention": [1],
    }  # fmt: skip
    checked = specs.check("denoiser", part)
    model = specs.build("denoiser", checked)
    old = Reference(1, (8, 16), groups=4, patch=2, attention=(1,))
    model.network.load_state_dict(old.state_dict())
    wanted = model.network.state_dict()
    kept = specs.build("denoiser", checked)
    kept.network = old
    card.save(elsewhere / "old", "denoiser", checked, kept)
    begun = specs.build("denoiser", checked)
    assert card.initialize_from(begun, str(elsewhere / "old")) == []
    for loaded in (card.trained_denoiser(str(elsewhere / "old")), begun):
        network: Any = loaded.network
        assert all(torch.equal(v, wanted[n]) for n, v in network.state_dict().items())


def test_labels_are_required_only_with_classes():
    x = torch.zeros(1, 1, 4, 4)
    for classes, label in ((0, torch.tensor([0])), (2, None)):
        model = UNet(1, (8,), groups=4, classes=classes)
        with pytest.raises(ValueError, match="labels must be given"):
            model(x, torch.zeros(1), label)


def test_time_embedding_matches_ddpm():
    found = timestep_embedding(torch.tensor([0.0, 10.0]), 5)
    angles = torch.tensor([[0.0, 0.0], [10.0, 0.1]])
    assert torch.allclose(found, torch.cat([angles.cos(), angles.sin(), torch.zeros(2, 1)], dim=1))


def test_channels_last_does_not_change_the_output():
    model = randomized(UNet(3, (8, 16), attention=(0, 1), groups=4))
    x, time, _ = inputs({"channels": 3})
    wanted = model(x, time)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert torch.allclose(model(x, time), wanted, atol=1e-5)
