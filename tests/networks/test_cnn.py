"""Tests of the small network."""

import pytest
import torch
from torch import nn

from unfool.data import fetch
from unfool.data.digits import digits
from unfool.networks.cnn import small_cnn
from unfool.noise import permutation, seed_torch


def test_number_of_parameters_is_as_documented():
    assert sum(p.numel() for p in small_cnn().parameters()) == 67_562


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (1, 4), (2, 9)])
def test_logits_have_the_right_shape(channels: int, size: int):
    network = small_cnn(channels, size, classes=7, width=4)
    assert network(torch.zeros(3, channels, size, size)).shape == (3, 7)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="size must be 4 or more, not 3"):
        small_cnn(size=3)


def test_network_learns_the_digits():
    seed_torch(0)
    train, test = digits("train"), digits("test")
    x, y = fetch(train, range(len(train)))
    network, epochs, batch = small_cnn(), 20, 64
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for epoch in range(epochs):
        order = permutation(len(train), 0, "epoch", epoch)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = fetch(test, range(len(test)))
    with torch.inference_mode():
        accuracy = (network(x).argmax(1) == y).double().mean()
    assert accuracy > 0.97
