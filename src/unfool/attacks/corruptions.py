"""The common corruptions of images (Hendrycks and Dietterich, 2019): 15 kinds, 5 severities.

The definitions and settings are those of CIFAR-10-C, whose lengths are in pixels of 32 x 32
images. Images of another size get the same recipe, which is then not a published benchmark. All
randomness comes from the image's own noise. Only frost differs: the original overlays photographs,
which we may not distribute, so here the ice is synthetic. (The files of CIFAR-10-C are the data set
`cifar10-c`.)
"""

import io
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.data.cifar_c import SEVERITIES, Kind, Severity
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import check_arguments, checked_dataclass
from unfool.threat import Threat


@checked_dataclass
class Corruption:
    """A common corruption, used like an attack. It ignores the model and the threat.

    Attributes:
        kind: One of `data.cifar_c.KINDS`.
        severity: 1 to 5; None draws one for each image, so that the mean over images is also a
            mean over severities.
        bounded: False: the threat does not limit the changes.
        adversarial: False: nobody chose these changes to fool the model.
    """

    kind: Kind
    severity: Severity | None = None
    bounded: ClassVar[bool] = False
    adversarial: ClassVar[bool] = False

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Corrupted images, shaped like `x`."""
        return corrupt(x, self.kind, self.severity, noise)


def corrupt(x: Tensor, kind: Kind, severity: Severity | None, noise: Noise) -> Tensor:
    """Corrupt images, and round them to 8 bits.

    Args:
        x: Images (B, C, H, W) in [0, 1], where C is 1 or 3.
        kind: One of `data.cifar_c.KINDS`.
        severity: 1 to 5; None draws one for each image.
        noise: The source of all randomness, for the same images.

    Raises:
        ValueError: There is no such kind or severity, or images have neither 1 nor 3 channels.
    """
    check_arguments(corrupt, locals())
    if x.shape[1] not in (1, 3):
        raise ValueError(f"corruptions need images of 1 or 3 channels, not {x.shape[1]}")
    out = np.empty(x.shape, np.float32)
    arrays = x.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    for i, array in enumerate(arrays):
        draws = noise.take([i])
        level = severity
        if level is None:
            level = 1 + int(SEVERITIES * float(_uniform(draws.child("severity"), 1)[0]))
        result = np.clip(_CORRUPTIONS[kind](array, level - 1, draws), 0, 1)
        out[i] = (result * 255).round().transpose(2, 0, 1) / 255
    return torch.from_numpy(out).to(x)


# Each function takes an image (H, W, C) in [0, 1], the severity counted from 0, and its noise.


def _gaussian_noise(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * _normal(noise, *x.shape)


def _shot_noise(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    photons = (500, 250, 100, 75, 50)[level]  # per white pixel
    return stats.poisson.ppf(_uniform(noise, *x.shape), x * photons) / photons


def _impulse_noise(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    draw = _uniform(noise, *x.shape)  # the lower half of the share turns black, the upper white
    return np.where(draw < share, np.where(draw < share / 2, 0.0, 1.0), x)


def _defocus_blur(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    row, column = np.mgrid[-3:4, -3:4]
    disc = (row**2 + column**2 <= radius**2).astype(float)
    taps = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * soft**2))
    for axis in (0, 1):
        disc = ndimage.convolve1d(disc, taps / taps.sum(), axis=axis)
    return ndimage.convolve(x, (disc / disc.sum())[..., None], mode="mirror")


def _glass_blur(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[level]
    x = _blurred(x, sigma)
    height, width = x.shape[:2]
    row, column = np.mgrid[:height, :width]
    inside = (row > 1) & (column > 1)
    for i in range(rounds):
        # Each pixel gets its own value or that of a neighbor above and left of it. (The release
        # intends to swap the two, but assigns from a value that it has just overwritten.)
        up, left = (_uniform(noise.child(i), height, width, 2) < 0.5).transpose(2, 0, 1) & inside
        x = x[row - up, column - left]
    return _blurred(x, sigma)


def _motion_blur(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    return _streaked(x, radius, sigma, 90 * float(_uniform(noise, 1)[0]) - 45)


def _zoom_blur(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    # As released: whether the range includes its end depends on rounding.
    zooms = np.arange(
        1, *((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))[level]
    )
    return (x + sum(_zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


def _snow(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    mean, spread, zoom, threshold, radius, sigma, image_share = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = _zoomed(mean + spread * _normal(noise.child("flakes"), *x.shape[:2], 1), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    angle = -135 + 90 * float(_uniform(noise.child("angle"), 1)[0])
    flakes = _streaked(flakes, radius, sigma, angle)
    gray = (x @ np.array([0.299, 0.587, 0.114]))[..., None] if x.shape[2] == 3 else x
    paler = image_share * x + (1 - image_share) * np.maximum(x, 1.5 * gray + 0.5)
    return paler + flakes + flakes[::-1, ::-1]


def _frost(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    image_share, ice_share = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    height, width = x.shape[:2]
    grains = _plasma(_power(max(height, width)), 1.5, noise)[:height, :width]
    ice = ((1 - np.abs(2 * grains - 1)) ** 1.5)[..., None]  # ridges, like those of crystals
    tint = np.array([0.85, 0.95, 1.0]) if x.shape[2] == 3 else np.ones(1)
    return image_share * x + ice_share * ice * tint


def _fog(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    share, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    height, width = x.shape[:2]
    bank = _plasma(_power(max(height, width)), decay, noise)[:height, :width, None]
    brightest = x.max()
    return (x + share * bank) * brightest / (brightest + share)


def _brightness(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[level]
    value = x.max(2, keepdims=True)  # the V of HSV; hue and saturation are kept
    brighter = np.minimum(value + added, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


def _elastic_transform(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    side = min(x.shape[:2])
    amplitude, smooth, tilt = (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[level]
    center, arm = np.array(x.shape[:2]) // 2, side // 3
    corners = center + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + tilt * side * (2 * _uniform(noise.child("tilt"), 3, 2) - 1)
    # It maps a pixel of the result to its source: the affine map from `moved` to `corners`.
    # Both deformations share one interpolation; the release interpolates twice, which blurs more.
    inverse_map = np.linalg.solve(np.c_[moved, np.ones(3)], corners.astype(float))
    coordinates = np.mgrid[: x.shape[0], : x.shape[1]].astype(float)
    shift = amplitude * side * (2 * _uniform(noise.child("shift"), 2, *x.shape[:2]) - 1)
    coordinates += [ndimage.gaussian_filter(s, smooth * side, truncate=3) for s in shift]
    rows, columns = np.tensordot(inverse_map[:2].T, coordinates, 1) + inverse_map[2][:, None, None]
    channels = [
        ndimage.map_coordinates(channel, (rows, columns), order=1, mode="mirror")
        for channel in x.transpose(2, 0, 1)
    ]
    return np.stack(channels, 2)


def _pixelate(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    height, width = x.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    box = Image.Resampling.BOX
    return _from_pil(_to_pil(x).resize(small, box).resize((width, height), box), x.shape)


def _jpeg_compression(x: np.ndarray, level: int, noise: Noise) -> np.ndarray:
    buffer = io.BytesIO()
    _to_pil(x).save(buffer, "JPEG", quality=(80, 65, 58, 50, 40)[level])
    with Image.open(buffer) as picture:
        return _from_pil(picture, x.shape)


_CORRUPTIONS: dict[Kind, Callable[[np.ndarray, int, Noise], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _streaked(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blur along a line (degrees clockwise from the right): half a Gaussian, 2 radius + 1 taps."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    row, column = np.mgrid[: x.shape[0], : x.shape[1]]
    out = np.zeros_like(x)
    for i, weight in enumerate(weights / weights.sum()):
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        rows = np.clip(row + down, 0, x.shape[0] - 1)
        out += weight * x[rows, np.clip(column + right, 0, x.shape[1] - 1)]
    return out


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of an image to the size of the whole."""
    cut = [math.ceil(side / factor) for side in x.shape[:2]]
    top, left = ((side - c) // 2 for side, c in zip(x.shape[:2], cut, strict=True))
    middle = x[top : top + cut[0], left : left + cut[1]]
    large = np.asarray(ndimage.zoom(middle, (factor, factor, 1), order=1))
    top, left = ((a - b) // 2 for a, b in zip(large.shape[:2], x.shape[:2], strict=True))
    return large[top : top + x.shape[0], left : left + x.shape[1]]


def _plasma(side: int, decay: float, noise: Noise) -> np.ndarray:
    """Clouds (side, side) in [0, 1]: diamond-square on a torus; each scale is `decay`^2 fainter."""
    map_ = np.zeros((side, side))
    step, size = side, 100.0
    while step > 1:
        half, n = step // 2, side // step
        wobble = size**2 * (2 * _uniform(noise.child("plasma", step), 3, n, n) - 1)
        corner = map_[::step, ::step]
        across = corner + np.roll(corner, -1, 1)
        down = corner + np.roll(corner, -1, 0)
        center = (across + np.roll(across, -1, 0)) / 4 + wobble[0]
        map_[half::step, half::step] = center
        map_[::step, half::step] = (across + center + np.roll(center, 1, 0)) / 4 + wobble[1]
        map_[half::step, ::step] = (down + center + np.roll(center, 1, 1)) / 4 + wobble[2]
        step, size = half, size / decay
    map_ -= map_.min()
    return map_ / (map_.max() or 1)


def _power(side: int) -> int:
    """The smallest power of 2 that is at least `side`."""
    return 1 << (side - 1).bit_length()


def _to_pil(x: np.ndarray) -> Image.Image:
    pixels = (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if x.shape[2] == 1 else pixels)


def _from_pil(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(image).reshape(shape) / 255


def _normal(noise: Noise, *shape: int) -> np.ndarray:
    return noise.normal(torch.empty(1, *shape))[0].double().numpy()


def _uniform(noise: Noise, *shape: int) -> np.ndarray:
    return noise.uniform(torch.empty(1, *shape))[0].double().numpy()
