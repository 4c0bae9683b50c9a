"""A purifier for images of another size than its denoiser's."""

import pytest
import torch
from torch.nn import functional as F

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.resized import Resized
from unfool.noise import Noise
from unfool.toy.blobs import mixture

NOISE = Noise.of(0, range(3))
X = 0.5 + 0.1 * Noise.of(1, range(3)).normal(torch.empty(3, 1, 7, 7)).double()
INSIDE = DiffPure(mixture(), t=0.1, steps=4)  # of 4 x 4 images


def test_it_purifies_at_the_denoiser_s_size():
    up = F.interpolate(X, size=(4, 4), mode="bilinear", align_corners=False)
    pure = F.interpolate(INSIDE(up, NOISE), size=(7, 7), mode="bilinear", align_corners=False)
    assert torch.equal(Resized(INSIDE)(X, NOISE), pure)
    assert torch.equal(Resized(INSIDE, size=4)(X, NOISE), pure)


def test_images_of_that_size_are_left_alone():
    x = X[:, :, :4, :4]
    assert torch.equal(Resized(INSIDE)(x, NOISE), INSIDE(x, NOISE))


def test_walk_is_the_purifier_s_own_if_it_has_one():
    states = list(Resized(INSIDE).walk(X, NOISE))
    assert len(states) == 5
    assert states[0][1].shape == X.shape
    assert torch.equal(states[-1][1], Resized(INSIDE)(X, NOISE))
    assert not hasattr(Resized(lambda x, noise: x, size=4), "walk")


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="images of 4 x 4"):
        Resized(INSIDE, size=8)
    with pytest.raises(ValueError, match="set `size`"):
        Resized(lambda x, noise: x)
    with pytest.raises(ValueError, match="no adjoint"):
        Resized(lambda x, noise: x, size=4).adjoint()
