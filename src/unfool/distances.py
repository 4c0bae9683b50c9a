"""Differentiable distances, one per image of a batch, (B,), which guides minimize.

`INPUT` compares images with images, `OUTPUT` a classifier's logits with those of a reference.
Nothing is averaged over the batch, so the value for an image never depends on the others.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Callable[[Tensor, Tensor], Tensor]
Input = Literal["mse", "ssim", "l1", "lpips"]
Output = Literal["kl", "l2", "confidence", "entropy", "repel"]
WINDOW_SIZE, WINDOW_DEVIATION = 11, 1.5  # size and standard deviation of SSIM's Gaussian window


def mse(x: Tensor, y: Tensor) -> Tensor:
    """The mean squared difference of the pixels (B,)."""
    return (x - y).square().flatten(1).mean(1)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute difference of the pixels (B,)."""
    return (x - y).abs().flatten(1).mean(1)


def ssim(x: Tensor, y: Tensor, span: float = 1.0) -> Tensor:
    """The structural similarity of images (B,), 1 for equal ones (Wang et al., 2004).

    Means and (biased) variances are weighted by a Gaussian window of 11 x 11 pixels with standard
    deviation 1.5, at every position where it lies inside the image, and the map is averaged over
    positions and channels. For an image with a side below 11, the window is the largest odd one
    that fits.

    Args:
        x: Images (B, C, H, W).
        y: Images to compare with.
        span: The length of the pixels' range: 1 for [0, 1].
    """
    size = min(WINDOW_SIZE, *(side - (side + 1) % 2 for side in x.shape[2:]))
    offset = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    window = (-(offset**2) / (2 * WINDOW_DEVIATION**2)).softmax(0)
    channels = x.shape[1]
    row = window.view(1, 1, 1, size).expand(channels, 1, 1, size)

    def mean(image: Tensor) -> Tensor:
        rows = F.conv2d(image, row, groups=channels)
        return F.conv2d(rows, row.transpose(2, 3), groups=channels)

    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    m_x, m_y = mean(x), mean(y)
    v_x, v_y, v_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
    luminance = (2 * m_x * m_y + c1) / (m_x**2 + m_y**2 + c1)
    return (luminance * (2 * v_xy + c2) / (v_x + v_y + c2)).flatten(1).mean(1)


def dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """1 - SSIM of images in [0, 1] (B,)."""
    return 1 - ssim(x, y)


def lpips(x: Tensor, y: Tensor) -> Tensor:
    """The learned perceptual distance of images in [0, 1] (B,) (Zhang et al., 2018; AlexNet).

    Raises:
        ValueError: The packages that LPIPS needs, or its weights, are not available.
    """
    return lpips_network().to(x)(2 * x - 1, 2 * y - 1).flatten()


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """The divergence KL(p of the reference || p) (B,)."""
    log_p, log_r = logits.log_softmax(1), reference.log_softmax(1)
    return (log_r.exp() * (log_r - log_p)).sum(1)


def l2(logits: Tensor, reference: Tensor) -> Tensor:
    """The squared l2 distance of the two probability vectors (B,)."""
    return (logits.softmax(1) - reference.softmax(1)).square().sum(1)


def confidence(logits: Tensor, reference: Tensor) -> Tensor:
    """- log max_y p(y) (B,), which COUP minimizes; the reference is not used."""
    return -logits.log_softmax(1).max(1).values


def entropy(logits: Tensor, reference: Tensor) -> Tensor:
    """The entropy of p in nats (B,); the reference is not used."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def repel(logits: Tensor, reference: Tensor) -> Tensor:
    """- KL(p of the reference || p) (B,), which drives p away from that of the reference."""
    return -kl(logits, reference)


INPUT: dict[str, Distance] = {"mse": mse, "ssim": dissimilarity, "l1": l1, "lpips": lpips}
OUTPUT: dict[str, Distance] = {
    "kl": kl,
    "l2": l2,
    "confidence": confidence,
    "entropy": entropy,
    "repel": repel,
}


@cache
def lpips_network() -> Any:
    """The network of LPIPS, loaded once.

    Raises:
        ValueError: The packages that LPIPS needs, or its weights, are not available.
    """
    try:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports]

        return LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(
            f"the distance lpips cannot be used ({error}): it needs the packages lpips and "
            "torchvision (pip install 'unfool[lpips]') and AlexNet's weights, which they download "
            "once"
        ) from error
