"""Weights computed from their names alone, for networks whose outputs with them are known."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN, MIX, FIRST, SECOND = (
    np.uint64(constant)
    for constant in (
        0x9E3779B97F4A7C15,
        0xD1342543DE82EF95,
        0xBF58476D1CE4E5B9,
        0x94D049BB133111EB,
    )
)


def numbers(name: str, shape: Sequence[int]) -> np.ndarray:
    """Numbers uniform over [-1, 1), float64, by SplitMix64 seeded with the CRC-32 of the name."""
    with np.errstate(over="ignore"):
        bits = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * GOLDEN
        bits += np.uint64(zlib.crc32(name.encode())) * MIX
        bits = (bits ^ (bits >> np.uint64(30))) * FIRST
        bits = (bits ^ (bits >> np.uint64(27))) * SECOND
        bits ^= bits >> np.uint64(31)
    return (2 * ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53) - 1).reshape(shape)


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """The weight of a name: kernels have unit gain, scales are near 1, and shifts near 0."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.long)
    spread = numbers(name, shape)
    if name.endswith("running_var"):
        spread = 1 + 0.5 * spread
    elif len(shape) >= 2:
        spread = spread * math.sqrt(3 / math.prod(shape[1:]))
    elif len(shape) == 1 and name.endswith("weight"):
        spread = 1 + 0.2 * spread
    elif len(shape) == 0:
        spread = 0.5 + 0.25 * spread
    else:
        spread = 0.2 * spread
    return torch.from_numpy(np.asarray(spread)).float()
