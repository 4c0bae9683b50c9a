"""Batches are as large as memory allows, and the outputs do not depend on their size."""

import pytest
import torch
from torch import nn

from unfool.attacks import views
from unfool.attacks.losses import query_logits, query_model
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.batching import MAX_BATCH_SIZES, estimate_batch_size
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified, predict_draws
from unfool.models.build import small_cnn
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.threat import Threat


class Crowded(nn.Module):
    """A noisy model that runs out of memory above `most` images, in the forward or backward pass."""

    def __init__(self, most: int, back: bool):
        super().__init__()
        self.most, self.back, self.asked = most, back, []
        seed_torch(0, "crowded")
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()

    def forward(self, x, noise):
        self.asked.append(len(x))
        out = self.inner(x + 0.1 * noise.normal(x))
        if len(x) > self.most:
            if not (self.back and out.requires_grad):
                raise torch.OutOfMemoryError("there is no room")
            out.register_hook(self._full)
        return out

    def _full(self, gradient):
        raise torch.OutOfMemoryError("there is no room on the way back")


X = Noise.of(5, range(10)).uniform(torch.empty(10, 3, 2, 2, dtype=torch.float64))
Y = torch.arange(10) % 3
NOISE = Noise.of(0, range(10))


@pytest.mark.parametrize("back", [False, True])
def test_outputs_are_the_same_after_running_out_of_memory(back: bool, capsys):
    roomy, narrow = Batched(Crowded(1000, back), 64), Crowded(6, back)
    limited = Batched(narrow, 64)
    mine, wanted = (query_model(m, X, Y, "margin", NOISE, 0, 2) for m in (limited, roomy))
    for one, other in zip(mine, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)
    assert limited.batch_size == 5  # 20 images, halved twice
    assert narrow.asked[-4:] == [5] * 4
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "unfool: out of memory with 20 images in one call; continuing with 10",
        "unfool: out of memory with 10 images in one call; continuing with 5",
    ]
    narrow.asked.clear()
    assert torch.equal(predict_draws(limited, X, NOISE, 3), predict_draws(roomy, X, NOISE, 3))
    assert max(narrow.asked) == 5  # the smaller batch size is kept
    assert torch.allclose(
        query_logits(limited, X, NOISE, 0, 2), query_logits(roomy, X, NOISE, 0, 2), rtol=1e-12
    )


def test_attack_that_runs_out_of_memory_finds_the_same_images():
    threat = Threat("linf", 0.1)
    found = [
        PGD(steps=3, eot=4)(Batched(Crowded(most, True), 64), X, Y, threat, NOISE)
        for most in (7, 1000)
    ]
    assert torch.allclose(*found, rtol=1e-12, atol=1e-15)
    assert not torch.equal(found[0], X)


def test_views_share_the_reduced_batch_size(capsys):
    inner = Crowded(6, False)
    whole = Batched(Purified(inner, lambda x, noise: x), 64)
    for _ in range(2):
        views.classifier_only(whole)(X, NOISE)
    assert whole.batch_size == 5
    assert len(capsys.readouterr().err.splitlines()) == 1, "it is found out once"


def test_out_of_memory_is_raised_when_the_batch_cannot_shrink():
    with pytest.raises(torch.OutOfMemoryError):
        predict_draws(Batched(Crowded(0, False), 64), X, NOISE, 1)
    with pytest.raises(torch.OutOfMemoryError):  # no `Batched`, so no retry
        query_model(Crowded(4, False), X, Y, "ce", NOISE, 0, 1)


def test_batch_size_is_estimated_from_free_memory(monkeypatch):
    """For a purified classifier, the graphs of a batch may take a quarter of the free memory."""
    seed_torch(0, "fit")
    denoiser = unet(channels=1, size=8, widths=(8, 16), groups=4).eval().requires_grad_(False)
    model = Purified(small_cnn(), DiffPure(denoiser, steps=1)).eval().requires_grad_(False)
    x = torch.full((1, 1, 8, 8), 0.5)
    monkeypatch.setattr("unfool.batching.free_bytes", lambda device: 2**40)
    assert estimate_batch_size(model, x) == MAX_BATCH_SIZES[0]
    found = []
    for free in (2**22, 2**24):
        monkeypatch.setattr("unfool.batching.free_bytes", lambda device, free=free: free)
        found.append(estimate_batch_size(model, x))
    assert 1 <= found[0] < found[1] < MAX_BATCH_SIZES[0]
    assert found[1] == pytest.approx(4 * found[0], rel=0.2)
