"""Tests of the choice of a run's images from a data set."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from unfool.data.arrays import Arrays
from unfool.data.digits import digits
from unfool.data.subset import choose_indices, labels_of
from unfool.errors import SpecError
from unfool.toy.blobs import Blobs


def subset(data, images, seed):
    return choose_indices(len(data), images, seed, labels=labels_of(data))


def arrays(*counts):
    """Return a data set with the given number of images of each class, in order."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = torch.zeros(len(labels), 1, 2, 2)
    return Arrays(images, torch.tensor(labels), [str(label) for label in range(len(counts))])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("images", [1, 9, 10, 16, 80, 101])
def test_classes_are_taken_in_turn(images, seed):
    data = digits()
    counts = Counter(int(data.labels[index]) for index in subset(data, images, seed))
    assert sum(counts.values()) == images
    assert len(counts) == min(10, images)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_exhausted_class_leaves_its_turns_to_the_others():
    counts = Counter(int(arrays(2, 50, 50).labels[i]) for i in subset(arrays(2, 50, 50), 20, 0))
    assert counts == {0: 2, 1: 9, 2: 9}


@pytest.mark.parametrize("data", [arrays(5, 30, 11), Blobs(size=40)])
def test_subset_is_part_of_larger_ones_and_depends_on_the_seed(data):
    sizes = (1, 3, 10, 25, 40)
    chosen = [set(subset(data, size, 0)) for size in sizes]
    assert all(few < more for few, more in pairwise(chosen))
    assert subset(data, None, 0) == list(range(len(data)))
    assert subset(data, 10, 0) != subset(data, 10, 1)
    with pytest.raises(SpecError, match="is 99, "):
        subset(data, 99, 0)
