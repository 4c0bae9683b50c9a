"""Helpers for tests of training: interrupt a training, and compare final weights."""

from itertools import count
from pathlib import Path

import pytest
import torch

from unfool.models import card
from unfool.training import run as training
from unfool.training import train as loop


def stopped(asked, folder: Path, at: int) -> Path:
    """Run a checked training spec, interrupt it at batch `at` (from 1), and return its folder."""
    real, numbers = loop.load_batch, count(1)

    def stops(*arguments):
        if next(numbers) == at:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_batch", stops)
        with pytest.raises(KeyboardInterrupt):
            training.run(asked, folder, quiet=True)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return card.read_state(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Check that two folders hold the same weights bit for bit."""
    ours, theirs = weights(one), weights(other)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
