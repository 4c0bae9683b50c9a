"""Files in the layouts of published checkpoints, made from a rule, and what the originals answer."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HOME = Path(__file__).parents[1] / "fixtures" / "checkpoints"


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1), spread evenly, that follow from a name (splitmix64)."""
    with np.errstate(over="ignore"):
        start = np.uint64(zlib.crc32(name.encode())) * np.uint64(0xD1342543DE82EF95)
        bits = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits += start
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        bits ^= bits >> np.uint64(31)
    return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of that name: tables of unit gain, scales around 1, shifts around 0."""
    values = numbers(name, shape)
    if len(shape) >= 2:
        values = values * math.sqrt(3 / math.prod(shape[1:]))
    elif len(shape) == 0:
        values = 0.5 + 0.25 * values
    else:
        values = 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
    return torch.from_numpy(np.asarray(values)).float()


def fixture(name: str) -> dict[str, Any]:
    """What is known of a published layout."""
    return json.loads((HOME / f"{name}.json").read_text("utf-8"))


def state_of(known: dict[str, Any], seed: str | None = None) -> dict[str, Tensor]:
    """The weights of a layout by their published names; of another `seed`, other ones."""
    prefix = known.get("seed_prefix", "") if seed is None else seed
    return {n: weight(prefix + n, tuple(shape)) for n, shape in known["weights"].items()}
