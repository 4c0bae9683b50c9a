"""A sample of CIFAR-10 that comes with the package."""

from importlib import resources

import numpy as np
import torch
from PIL import Image

from unfool.data.arrays import Arrays
from unfool.data.cifar import CLASSES

_PER_CLASS, _SIDE = 10, 32


def cifar10_sample() -> Arrays:
    """The first ten test images of each CIFAR-10 class (Krizhevsky, 2009): 100 images (3, 32, 32).

    The images are enough to try a spec without data files, but too few for a result. They are
    sorted by class, and within a class in the order of the official test file.
    """
    resource = resources.files("unfool.data").joinpath("cifar10_sample.png")
    with resource.open("rb") as file, Image.open(file) as image:
        grid = np.array(image.convert("RGB"))
    tiles = grid.reshape(len(CLASSES), _SIDE, _PER_CLASS, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    images = torch.from_numpy(np.ascontiguousarray(tiles.reshape(-1, 3, _SIDE, _SIDE)))
    return Arrays(images, torch.arange(len(CLASSES)).repeat_interleave(_PER_CLASS), CLASSES)
