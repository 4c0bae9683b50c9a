"""Muon against its known properties, and torch's AdamW for the other parameters."""

import pytest
import torch
from torch import nn
from torch.optim import _muon  # torch's own Muon, for matrices only

from unfool.noise import Noise
from unfool.training import train as loop
from unfool.training.muon import Muon, orthogonal
from unfool.training.options import TrainingOptions

W = Noise.of(4, range(8)).normal(torch.empty(8, 27)).view(8, 3, 3, 3)


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)])
def test_update_is_nearly_orthogonal(shape):
    """The update keeps the singular directions of the matrix and gives them about equal length."""
    matrix = Noise.of(1, range(shape[0])).normal(torch.empty(shape))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ v.T
    assert torch.linalg.svdvals(found).aminmax().min > 0.5
    assert torch.linalg.svdvals(found).max() < 1.3
    off = found - found.diagonal().diag()
    assert off.abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (32, 2, 3, 3)])
def test_kernel_updates_match_torch_muon_on_matrices(shape):
    """torch's Muon works in bfloat16, so the match is only approximate."""
    like = torch.empty(shape)
    start = Noise.of(2, range(shape[0])).normal(like)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    one = Muon([{"params": [ours], "muon": True}], lr=0.02, weight_decay=0.1)
    other = _muon.Muon([theirs], lr=0.02, weight_decay=0.1)
    for step in range(4):
        grad = Noise.of(step, range(shape[0])).normal(like)
        ours.grad, theirs.grad = grad, grad.flatten(1).clone()
        one.step()
        other.step()
    moved = (ours - start).detach().flatten(1)
    assert torch.allclose(
        moved, (theirs.detach() - start.flatten(1)), atol=0.05 * float(moved.std()) * 3
    )


def test_other_parameters_follow_adamw():
    start = Noise.of(2, range(5)).normal(torch.empty(5, 4))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.99)}
    one = Muon([{"params": [ours]}], **settings)
    other = torch.optim.AdamW([theirs], **settings)
    for step in range(5):
        ours.grad = theirs.grad = Noise.of(step, range(5)).normal(start)
        one.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_kernels_and_biases_have_their_own_learning_rates():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    options = TrainingOptions(
        1,
        learning_rate=0.1,
        weight_decay=0.2,
        bias_lr_factor=4,
        optimizer="muon",
        muon_lr_factor=20,
    )
    groups = loop.build_optimizer(model, options).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1, 2]
    assert [group.get("faster", 1) for group in groups] == [20, 1, 4]
    assert [group["muon"] for group in groups] == [True, False, False]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.05]
