"""Tests of CIFAR ResNets and of the published accuracy of public weights."""

import os
from pathlib import Path

import pytest
import torch

from unfool.data import fetch
from unfool.data.cifar import cifar10
from unfool.models.checkpoints import load_state, read_state
from unfool.models.classifiers import NormalizedClassifier
from unfool.networks.cifar_resnet import cifar_resnet
from unfool.noise import Noise, seed_torch


@pytest.mark.parametrize(
    ("depth", "thousands"), [(20, 269.7), (32, 464.2), (44, 658.6), (56, 853.0)]
)
def test_size_matches_the_paper(depth: int, thousands: float):
    count = sum(p.numel() for p in cifar_resnet(depth).parameters())
    assert count / 1000 == pytest.approx(thousands, abs=0.1)


def test_weight_names_match_public_checkpoints():
    names = list(cifar_resnet(8).state_dict())
    assert names[0] == "conv1.weight"
    assert "layer3.0.bn2.running_var" in names
    assert not any("shortcut" in name for name in names)
    assert names[-2:] == ["linear.weight", "linear.bias"]


def test_option_a_shortcut_subsamples_and_pads():
    block = cifar_resnet(8).layer2[0]
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.arange(2 * 16 * 8 * 8.0).view(2, 16, 8, 8)
    out = block.eval()(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].sum() + out[:, 24:].sum() == 0


def test_network_accepts_other_sizes_and_numbers_of_classes():
    seed_torch(0)
    network = cifar_resnet(8, classes=7).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert network(torch.zeros(1, 3, 40, 24)).shape == (1, 7)


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_impossible_depth_is_refused(depth: int):
    with pytest.raises(ValueError, match="depth must be 6n \\+ 2"):
        cifar_resnet(depth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "correct"),
    [(20, "resnet20-12fca82f.th", 9173), (56, "resnet56-4bfd9763.th", 9339)],
)
def test_public_weights_reach_their_published_accuracy(depth: int, file: str, correct: int):
    data, weights = os.environ.get("UNFOOL_DATA"), os.environ.get("UNFOOL_WEIGHTS")
    if not data or not weights:
        pytest.skip("set UNFOOL_DATA to a folder with CIFAR-10 and UNFOOL_WEIGHTS to the weights'")
    network = cifar_resnet(depth)
    load_state(network, read_state(Path(weights) / "cifar10_resnet" / file), file)
    model = NormalizedClassifier(
        network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ).eval()
    test, right = cifar10(Path(data)), 0
    with torch.inference_mode():
        for first in range(0, len(test), 500):
            where = range(first, first + 500)
            x, y = fetch(test, where)
            right += int((model(x, Noise.of(0, where)).argmax(1) == y).sum())
    assert abs(right - correct) <= 2  # images near a decision boundary may differ
