"""Random flips and shifts of training images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool.noise import Noise
from unfool.threat import per_image


def augmented(x: Tensor, noise: Noise, flip: bool, crop: int) -> Tensor:
    """Mirror half of the images if `flip`, and shift all by up to `crop` pixels (gray outside)."""
    if flip:
        x = torch.where(per_image(noise.child("flip").uniform(x[:, 0, 0, 0]) < 0.5), x.flip(3), x)
    if crop:
        padded = F.pad(x, (crop,) * 4, value=0.5)
        offsets = (noise.child("crop").uniform(x[:, 0, 0, :2]) * (2 * crop + 1)).long().tolist()
        height, width = x.shape[2:]
        x = torch.stack(
            [p[:, i : i + height, j : j + width] for p, (i, j) in zip(padded, offsets, strict=True)]
        )
    return x
