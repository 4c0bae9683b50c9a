"""MNIST (LeCun et al., 1998), or any data set in the same four idx files, compressed or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from unfool.data.arrays import Arrays
from unfool.data.download import Split, check_split, fetch_file, find_files
from unfool.runtime.downloads import allowed

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

_SUBFOLDERS = (".", "mnist", "MNIST/raw")
_CLASSES = tuple("0123456789")


def mnist(folder: Path, split: Split = "test", download: bool = False) -> Arrays:
    """MNIST: 60,000 train or 10,000 test images (1, 28, 28) of ten digits.

    Args:
        folder: The folder with the idx files (t10k-images-idx3-ubyte ..., with or without .gz),
            directly or in `mnist` or `MNIST/raw`.
        split: `"train"` or `"test"`.
        download: Fetch the files (11 MB) into `folder/mnist` if some are missing.

    Raises:
        FileNotFoundError: Files are missing, and `download` is false or failed.
        ValueError: A file is damaged or has the wrong format.
    """
    check_split(split)
    folder, start = Path(folder), {"train": "train", "test": "t10k"}[split]
    images, labels = f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"
    sets = [(images + a, labels + b) for a in ("", ".gz") for b in ("", ".gz")]
    try:
        files = find_files("MNIST", folder, _SUBFOLDERS, sets)
    except FileNotFoundError:
        if not (download or allowed()):
            raise
        for name in (f"{images}.gz", f"{labels}.gz"):
            fetch_file(URL + name, MD5[name], folder / "mnist" / name)
        files = find_files("MNIST", folder, ("mnist",), sets)
    x, y = _idx(files[0], 3), _idx(files[1], 1).astype(np.int64)
    try:
        return Arrays(torch.from_numpy(x[:, None]), torch.from_numpy(y), _CLASSES)
    except ValueError as error:
        raise ValueError(
            f"{files[0]} and {files[1].name} do not belong together ({error}): fetch both again"
        ) from error


def _idx(file: Path, rank: int) -> np.ndarray:
    """Read an array of bytes from an idx file: magic number (0x800 + rank), sizes, then values."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) cannot be unpacked ({error}): it is truncated "
            "or damaged; fetch it again"
        ) from error
    magic, head = 0x800 + rank, 4 + 4 * rank
    if raw[:4] != struct.pack(">i", magic):
        raise ValueError(
            f"{file} does not begin with the magic number {magic} but with the bytes "
            f"{raw[:4].hex(' ') or '(none)'}: it is another kind of file than its name says; fetch "
            "it again"
        )
    sizes = struct.unpack(f">{rank}I", raw[4:head]) if len(raw) >= head else ()
    expected = head + (math.prod(sizes) if sizes else 0)
    if len(raw) != expected:
        raise ValueError(
            f"{file} has {len(raw)} bytes (unpacked) instead of {expected}: it is truncated or "
            "damaged; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(sizes).copy()
