"""Batches of a data set."""

import pytest
import torch
from torch import Tensor

from unfool.data import fetch
from unfool.data.arrays import Arrays


class Given:
    """A user's data set, which may violate the interface."""

    classes = ("a", "b")

    def __init__(self, *images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 2


def test_batch_holds_requested_images_in_order():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    x, y = fetch(Arrays(images, torch.tensor([0, 1, 2]), "abc"), [2, 0])
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, images[[2, 0]].float() / 255)
    assert y.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)), "image 1 is 1x2x3.* `size`"),
        ((torch.zeros(1, 2, 2).double(),), "float64"),
        ((torch.full((1, 2, 2), 255.0),), "from 255 to 255"),
        ((torch.full((1, 2, 2), torch.nan),), "nan"),
        ((torch.zeros(2, 2),), "must give float32 images"),
        ((), "at least one"),
    ],
)
def test_data_set_with_invalid_images_is_refused(images: tuple[Tensor, ...], message: str):
    data = Given(*images)
    with pytest.raises(ValueError, match=message):
        fetch(data, range(len(data)))  # pyright: ignore[reportArgumentType]
