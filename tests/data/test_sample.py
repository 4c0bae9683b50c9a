"""The sample of CIFAR-10 that comes with the package."""

import os
from importlib import resources
from pathlib import Path

import pytest
import torch

from unfool.data import cifar10_sample
from unfool.data.cifar import CLASSES, cifar10


def test_it_has_ten_images_of_each_class_and_is_small():
    data = cifar10_sample()
    assert (len(data), data.shape, data.classes) == (100, (3, 32, 32), CLASSES)
    assert data.labels.bincount().tolist() == [10] * 10
    assert len({image.numpy().tobytes() for image in data.images}) == 100
    file = resources.files("unfool.data").joinpath("cifar10_sample.png")
    assert len(file.read_bytes()) < 300_000


@pytest.mark.skipif(not os.environ.get("UNFOOL_DATA"), reason="needs CIFAR-10 in UNFOOL_DATA")
def test_they_are_the_first_of_each_class_in_the_official_file():
    data, whole = cifar10_sample(), cifar10(Path(os.environ["UNFOOL_DATA"]))
    first = torch.cat([(whole.labels == number).nonzero()[:10, 0] for number in range(10)])
    assert torch.equal(data.images, whole.images[first])
    assert torch.equal(data.labels, whole.labels[first])
