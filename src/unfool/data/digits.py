"""Handwritten digits: the data set that comes with the package.

`digits.npz` holds the test half of "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak, 1998, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0), as in scikit-learn.
"""

from importlib import resources

import numpy as np
import torch

from unfool.data.arrays import Arrays
from unfool.data.download import Split, check_split
from unfool.noise import permutation

_TEST = 500


def digits(split: Split = "test") -> Arrays:
    """The digits (Alpaydin and Kaynak, 1998): 1,297 train or 500 test images (1, 8, 8).

    Pixels are integers from 0 to 16, divided by 16. The split is our own and never changes: the
    last 500 images of `permutation(1797, 0)` are for testing, the others for training.

    Args:
        split: `"train"` or `"test"`.

    Raises:
        ValueError: `split` is neither `"train"` nor `"test"`.
    """
    check_split(split)
    with resources.files("unfool.data").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file)
        pixels, labels = arrays["pixels"], arrays["labels"]
    order = permutation(len(pixels), seed=0)
    chosen = order[-_TEST:] if split == "test" else order[:-_TEST]
    images = torch.from_numpy((pixels[chosen] / 16).astype(np.float32)).view(-1, 1, 8, 8)
    return Arrays(images, torch.from_numpy(labels[chosen].astype(np.int64)), tuple("0123456789"))
