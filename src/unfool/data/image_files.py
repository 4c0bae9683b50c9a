"""Reading image files as tensors in [0, 1], and writing tensors as PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unfool.runtime.files import raise_system_error, write_bytes

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DEEP = ("PNG", "TIFF")  # formats with up to 16 bits per channel
ANIMATED = ("PNG", "WEBP", "GIF")  # not JPEG, whose further frames are previews of a photograph


def hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden or is `__MACOSX`."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def is_image_file(path: Path) -> bool:
    """Return whether a path is a visible file with the extension of an image."""
    return path.suffix.lower() in ENDINGS and not hidden(path) and path.is_file()


def read(path: Path | BinaryIO, gray: bool = False, name: str = "") -> Tensor:
    """Read an image file as a tensor (C, H, W) in [0, 1].

    Args:
        path: The path, or an open file.
        gray: Return one channel instead of three.
        name: The name of an open file in error messages.

    Raises:
        ValueError: The file is not an image or is damaged, or the image is animated, has more than
            8 bits per channel, or is partly transparent.
    """
    pixels = np.array(decode(path, gray, name))
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1).float() / 255


def decode(path: Path | BinaryIO, gray: bool = False, name: str = "") -> Image.Image:
    """Open an image file with Pillow, in color or gray, rotated upright by its EXIF orientation.

    The arguments are those of `read`.

    Raises:
        ValueError: The file is not an image or is damaged, or the image is animated, has more than
            8 bits per channel, or is partly transparent.
    """
    try:
        with Image.open(path) as opened:
            return upright(opened, gray)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise_system_error(error)
        what = name if name and not isinstance(path, Path) else f"the image {path}"
        raise ValueError(f"{what} cannot be read ({error}): repair or remove it") from error


def upright(opened: Image.Image, gray: bool = False) -> Image.Image:
    """Convert an image of Pillow to color or gray, rotated upright by its EXIF orientation.

    Args:
        opened: The image.
        gray: Convert to gray instead of color.

    Raises:
        ValueError: The image is animated, has more than 8 bits per channel, or is partly
            transparent.
    """
    # Pillow cuts 16 bits of color to 8 when it loads the pixels; only the decoder's name tells.
    decoders = [str(tile[3]) for tile in getattr(opened, "tile", ()) if opened.format in DEEP]
    deep = next((name for name in decoders if ";16" in name), "")
    if deep or opened.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels ({deep or opened.mode}) have more than 8 bits: convert it to 8 bits"
        )
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format in ANIMATED:
        raise ValueError(
            f"it is an animation of {frames} frames: save the frame you want as its own file"
        )
    if opened.has_transparency_data and np.array(opened.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError(
            "it is partly transparent, so its background is undefined: give it a white or "
            "black background in an image editor"
        )
    return ImageOps.exif_transpose(opened).convert("L" if gray else "RGB")


def resize_and_crop(
    image: Image.Image, height: int, width: int, shorter: int | None = None
) -> Image.Image:
    """Resize an image (bicubic) and crop its center (height, width).

    Args:
        image: The image.
        height: The height of the crop in pixels.
        width: The width of the crop in pixels.
        shorter: The length of the shorter side after resizing, at least that of the crop; the other
            side is rounded down, as in torchvision. None resizes the image to just cover the crop.
    """
    if shorter is not None:
        short = min(image.width, image.height)
        resized = shorter * image.width // short, shorter * image.height // short
    elif image.width * height <= image.height * width:
        resized = width, image.height * width // image.width
    else:
        resized = image.width * height // image.height, height
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def png(image: Tensor, enlarge: int = 1) -> bytes:
    """Encode an image (C, H, W) as a PNG file; values are clamped to [0, 1]."""
    pixels = (image.detach().clamp(0, 1) * 255).round().byte().cpu()
    pixels = pixels.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2)
    array = pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, image: Tensor) -> None:
    """Save an image (C, H, W) as a PNG file atomically."""
    write_bytes(path, png(image))


def grid(path: Path, rows: Sequence[Tensor], height: int = 64) -> None:
    """Save rows of images, each (B, C, H, W), as one PNG file; small images are enlarged."""
    enlarge = max(1, height // rows[0].shape[2])
    padded = [torch.nn.functional.pad(row, (0, 1, 0, 1), value=1.0) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in padded]
    write_bytes(path, png(torch.cat(lines, dim=1), enlarge))
