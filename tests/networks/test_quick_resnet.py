"""Tests of the network that learns CIFAR-10 quickly."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfool import spec as specs
from unfool.models.card import read_card, trained_classifier
from unfool.networks.quick_resnet import QuickResNet
from unfool.noise import Noise
from unfool.training import run as training
from unfool.training.options import TrainingOptions
from unfool.training.spec import check
from unfool.training.train import build_optimizer

X = Noise.of(0, range(6)).normal(torch.empty(6, 3, 16, 16))
SMALL = (8, 8)


def test_reloaded_weights_give_equal_logits():
    network, other = QuickResNet(SMALL, 4).eval(), QuickResNet(SMALL, 4).eval()
    network.prepare(X)
    assert network(X).shape == (6, 4)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X), network(X))


def test_whitened_patches_have_unit_covariance():
    """The colors and neighbors of the input are strongly correlated."""
    x = X.cumsum(3).cumsum(1)
    network = QuickResNet(SMALL)
    network.prepare(x)
    out = F.conv2d(x, network.whitening).transpose(0, 1).flatten(1)
    assert torch.allclose(out.cov(), torch.eye(12), atol=2e-2)
    raw = F.unfold(x, 2).transpose(0, 1).flatten(1).cov()
    assert not torch.allclose(raw / raw[0, 0], torch.eye(12), atol=0.5)


def test_convolution_starts_as_the_identity():
    stage: Any = QuickResNet(SMALL).stages[1]
    x = X[:, :1].expand(-1, 8, -1, -1)
    assert torch.equal(stage.conv2(x), x)


def test_norm_scales_are_fixed_and_shifts_are_learned():
    names = [name for name, _ in QuickResNet(SMALL).named_parameters()]
    assert "stages.0.norm1.bias" in names
    assert "stages.0.norm1.weight" not in names


def test_training_from_a_spec_whitens_first_and_learns(elsewhere):
    asks = {
        "data": {"name": "digits", "split": "train"},
        "test": {"name": "digits", "split": "test"},
        "classifier": {
            "name": "quick-resnet",
            "channels": 1,
            "widths": [16, 32],
            "mean": [0.5],
            "std": [0.5],
        },
        "objective": {"name": "cross-entropy", "smoothing": 0.1},
        "training": {
            "steps": 40,
            "batch_size": 64,
            "learning_rate": 0.1,
            "warmup": 10,
            "weight_decay": 1e-3,
        }
        | {"bias_lr_factor": 64, "optimizer": "sgd", "ema_decay": 0.9, "grad_clip": 100},
    }
    folder = training.run(check(specs.load(asks)), elsewhere / "run", quiet=True)
    trained = trained_classifier(str(folder))
    assert read_card(str(folder))[1].get("metrics", {}).get("accuracy", 0) > 0.7
    network: Any = trained.network
    assert not torch.equal(network.whitening.flatten(1), torch.eye(4))


def test_biases_learn_faster_but_do_not_decay_faster():
    """One step of SGD, with gradients of zero and of one."""
    options = TrainingOptions(
        1, learning_rate=0.01, weight_decay=0.1, bias_lr_factor=4, optimizer="sgd"
    )
    for gradient in (0.0, 1.0):
        layer = nn.Linear(1, 1)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        descent = build_optimizer(layer, options)
        for group in descent.param_groups:
            group["lr"] = 0.01 * group.get("faster", 1)
        for p in layer.parameters():
            p.grad = torch.full_like(p, gradient)
        descent.step()
        moved = [1 - p.item() for p in layer.parameters()]
        # Nesterov's first step is 1.9 gradients long.
        assert moved[0] == pytest.approx(1.9 * 0.01 * (gradient + 0.1), rel=1e-3)
        assert moved[1] == pytest.approx(1.9 * 0.01 * (4 * gradient + 0.1), rel=1e-3)


@pytest.mark.parametrize("widths", [(), (8, 0)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="widths must be 1 or more"):
        QuickResNet(widths)
