"""Tests of Wide ResNets."""

from typing import Any

import pytest
import torch
from torch import nn

from unfool.models.checkpoints import load_state
from unfool.networks.wide_resnet import wide_resnet
from unfool.noise import seed_torch

# The layers of the smallest network, with the names of TRADES and RobustBench.
BLOCK = ["bn1", "conv1", "bn2", "conv2", "convShortcut"]
LAYERS = [
    "conv1",
    *(f"block{stage}.layer.0.{layer}" for stage in (1, 2, 3) for layer in BLOCK),
    "bn1",
    "fc",
]


def test_weight_names_match_public_checkpoints():
    names = wide_resnet(10, 2).state_dict()
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in names)) == LAYERS
    deep = wide_resnet(16, 2).state_dict()
    assert "block1.layer.1.conv2.weight" in deep
    assert "block1.layer.1.convShortcut.weight" not in deep
    assert not any(
        name.startswith("block1.layer.0.convShortcut") for name in wide_resnet(10, 1).state_dict()
    )


def test_size_matches_the_paper():
    with torch.device("meta"):
        count = sum(p.numel() for p in wide_resnet().parameters())
    assert count == 36_479_194


def test_activation_precedes_the_shortcut_if_channels_change():
    seed_torch(0)
    block = wide_resnet(16, 2).eval().block2
    first: Any = block.get_submodule("layer.0")
    second: Any = block.get_submodule("layer.1")
    for module in (first.conv2, second.conv2):
        nn.init.zeros_(module.weight)
    x = torch.linspace(-1, 1, 32 * 16).view(1, 32, 4, 4)
    assert torch.equal(first(x), first.convShortcut(torch.relu(first.bn1(x))))
    assert torch.equal(second(first(x)), first(x))


def test_unused_stage_of_trades_is_dropped_and_other_keys_are_refused():
    seed_torch(0)
    network = wide_resnet(10, 2)
    own = dict(network.state_dict())
    spare = {f"sub_{name}": value for name, value in own.items() if name.startswith("block1.")}
    load_state(network, own | spare, "it")
    with pytest.raises(ValueError, match=r"unexpected 1 \(block4"):
        load_state(network, own | {"block4.weight": torch.zeros(1)}, "it")


def test_dropout_acts_in_training_only():
    seed_torch(0)
    network, x = wide_resnet(10, 1, classes=4, dropout=0.5), torch.ones(2, 3, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    assert network(x).shape == (2, 4)


@pytest.mark.parametrize(("depth", "width"), [(4, 1), (27, 1), (28, 0)])
def test_impossible_sizes_are_refused(depth: int, width: int):
    with pytest.raises(ValueError, match="must be"):
        wide_resnet(depth, width)
