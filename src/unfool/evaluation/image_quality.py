"""Distances of images from the clean ones, before and after purification."""

import torch
from torch import Tensor

from unfool.distances import lpips, mse, ssim

MIN_MSE = 1e-10  # mean squared error: equal images get 100 dB, not infinity


def measure(x: Tensor, clean: Tensor, perceptual: bool = False) -> list[dict[str, float]]:
    """Measure the distances of each image to its clean image.

    Args:
        x: Images (B, C, H, W), nominally in [0, 1]. Values outside, left by a purifier, are not
            clipped.
        clean: The clean images.
        perceptual: Also measure LPIPS.

    Returns:
        For each image, `psnr` in dB (100 for equal images), `ssim` (1 for equal ones), the norms
        `l2` and `linf` of the difference, and `lpips` if `perceptual` is set (0 for equal ones).

    Raises:
        ValueError: The package or the weights of LPIPS are missing.
    """
    x, clean = x.detach().double(), clean.detach().double()
    gap = (x - clean).flatten(1)
    distances = {
        "psnr": -10 * torch.log10(mse(x, clean).clamp(min=MIN_MSE)),
        "ssim": ssim(x, clean),
        "l2": gap.norm(dim=1),
        "linf": gap.abs().amax(1),
    }
    if perceptual:
        distances["lpips"] = lpips(x.float(), clean.float())
    return [
        {name: round(float(values[i]), 4) for name, values in distances.items()}
        for i in range(len(x))
    ]


def check_perceptual(image: Tensor) -> None:
    """Check that LPIPS can be computed on an image (C, H, W).

    Raises:
        ValueError: The package or the weights of LPIPS are missing, or the image is too small.
    """
    try:
        lpips(image[None], image[None])
    except RuntimeError as error:
        size = " x ".join(map(str, image.shape))
        raise ValueError(
            f"LPIPS needs gray or RGB images of at least 31 x 31 pixels, not {size}"
        ) from error
