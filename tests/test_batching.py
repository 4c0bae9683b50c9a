"""As many images at a time as memory allows, and the same answers however many they are."""

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
    """A noisy model that runs out of memory above so many images, on the way there or back."""

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
def test_when_memory_runs_out_smaller_parts_give_the_same(back: bool, capsys):
    roomy, narrow = Batched(Crowded(1000, back), 64), Crowded(6, back)
    limited = Batched(narrow, 64)
    mine, wanted = (query_model(m, X, Y, "margin", NOISE, 0, 2) for m in (limited, roomy))
    for one, other in zip(mine, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)
    assert limited.batch_size == 5  # of 20, half of a half
    assert narrow.asked[-4:] == [5] * 4
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "unfool: out of memory with 20 images in one call; continuing with 10",
        "unfool: out of memory with 10 images in one call; continuing with 5",
    ]
    narrow.asked.clear()
    assert torch.equal(predict_draws(limited, X, NOISE, 3), predict_draws(roomy, X, NOISE, 3))
    assert max(narrow.asked) == 5  # what was learned is kept
    assert torch.allclose(
        query_logits(limited, X, NOISE, 0, 2), query_logits(roomy, X, NOISE, 0, 2), rtol=1e-12
    )


def test_an_attack_survives_it_and_finds_the_same():
    threat = Threat("linf", 0.1)
    found = [
        PGD(steps=3, eot=4)(Batched(Crowded(most, True), 64), X, Y, threat, NOISE)
        for most in (7, 1000)
    ]
    assert torch.allclose(*found, rtol=1e-12, atol=1e-15)
    assert not torch.equal(found[0], X)


def test_views_share_what_was_learned(capsys):
    inner = Crowded(6, False)
    whole = Batched(Purified(inner, lambda x, noise: x), 64)
    for _ in range(2):
        views.classifier_only(whole)(X, NOISE)
    assert whole.batch_size == 5
    assert len(capsys.readouterr().err.splitlines()) == 1, "it is found out once"


def test_when_one_image_is_too_much_it_is_said():
    with pytest.raises(torch.OutOfMemoryError):
        predict_draws(Batched(Crowded(0, False), 64), X, NOISE, 1)
    with pytest.raises(torch.OutOfMemoryError):  # nobody said how many it may be
        query_model(Crowded(4, False), X, Y, "ce", NOISE, 0, 1)


def test_how_many_fit_is_measured(monkeypatch):
    """Of a purified classifier: what one image's graphs take, in a quarter of the free memory."""
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
