"""Tests of a purifier for images of a size that differs from its denoiser's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.resized import Resized
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.schedule import VP
from unfool.noise import Noise
from unfool.toy.blobs import mixture

NOISE = Noise.of(0, range(3))
X = 0.5 + 0.1 * Noise.of(1, range(3)).normal(torch.empty(3, 1, 7, 7)).double()
INSIDE = DiffPure(mixture(), t=0.1, steps=4)  # of 4 x 4 images


def test_images_are_purified_at_the_size_of_the_denoiser():
    up = F.interpolate(X, size=(4, 4), mode="bilinear", align_corners=False)
    pure = F.interpolate(INSIDE(up, NOISE), size=(7, 7), mode="bilinear", align_corners=False)
    assert torch.equal(Resized(INSIDE)(X, NOISE), pure)
    assert torch.equal(Resized(INSIDE, size=4)(X, NOISE), pure)


def test_images_of_that_size_are_not_resized():
    x = X[:, :, :4, :4]
    assert torch.equal(Resized(INSIDE)(x, NOISE), INSIDE(x, NOISE))


def test_walk_exists_if_the_inner_purifier_has_one():
    states = list(Resized(INSIDE).walk(X, NOISE))
    assert len(states) == 5
    assert states[0][1].shape == X.shape
    assert torch.equal(states[-1][1], Resized(INSIDE)(X, NOISE))
    assert not hasattr(Resized(lambda x, noise: x, size=4), "walk")


class Wide(Denoiser):
    """A denoiser of 4 x 8 images that refuses others."""

    schedule, shape = VP(), (1, 4, 8)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        assert x_t.shape[1:] == self.shape
        return 0.9 * x_t


def test_views_keep_the_size_of_a_denoiser_that_is_not_square():
    resized = Resized(DiffPure(Wide(), t=0.1, steps=5))
    assert torch.equal(resized.with_fewer_steps(5)(X, NOISE), resized(X, NOISE))


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="images of 4 x 4"):
        Resized(INSIDE, size=8)
    with pytest.raises(ValueError, match="set `size`"):
        Resized(lambda x, noise: x)
    with pytest.raises(ValueError, match="no adjoint"):
        Resized(lambda x, noise: x, size=4).adjoint()
