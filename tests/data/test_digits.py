"""The data set `digits`, which needs no file."""

import pytest
import torch
from sklearn.datasets import load_digits

from unfool.data.digits import digits
from unfool.noise import permutation


def test_split_is_fixed_and_complete():
    test, train = digits("test"), digits("train")
    assert (len(test), len(train)) == (500, 1297)
    assert test.shape == (1, 8, 8)
    assert set(test.labels.tolist()) == set(range(10))
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # every image is in exactly one split
    assert torch.equal(digits().images, test.images)
    assert (test.images * 16 == (test.images * 16).round()).all()
    assert (test.images.min(), test.images.max()) == (0, 1)


def test_split_starts_with_known_labels():
    assert digits("test").labels[:8].tolist() == [6, 6, 1, 4, 2, 0, 0, 9]
    assert digits("train").labels[:8].tolist() == [1, 1, 3, 3, 6, 3, 2, 9]


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'test', not 'val'"):
        digits("val")  # pyright: ignore[reportArgumentType]


def test_images_and_labels_equal_those_of_scikit_learn():
    pixels, labels = load_digits(return_X_y=True)
    order = permutation(1797, seed=0)
    both = [digits("train"), digits("test")]
    images = torch.cat([part.images for part in both])
    assert torch.equal(images.flatten(1).double(), torch.from_numpy(pixels[order] / 16))
    found = torch.cat([part.labels for part in both])
    assert torch.equal(found, torch.from_numpy(labels[order]))
