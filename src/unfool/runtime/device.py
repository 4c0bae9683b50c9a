"""The machine that does the work: its device, and the versions of what runs on it."""

import os
import platform
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn import functional as F

from unfool.errors import SpecError


def pick_device(name: str) -> str:
    """The device of that name, made ready; `"auto"` is the GPU where there is one.

    `"cuda"` and `"auto"` are, under torchrun, the GPU of this process.

    Convolutions and products are computed in full float32, not in TF32.

    Raises:
        SpecError: There is no such device here, or it has no float64.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name == "auto" or (name == "cuda" and torch.cuda.is_available()):
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    if name.partition(":")[0] == "mps":
        raise SpecError(f"device: {name!r} does not support float64, which unfool needs: use cpu")
    try:
        float(torch.zeros(1, device=name))  # a meta device has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"device: {name!r} is not available on this machine: use cpu") from error
    return name


@lru_cache
def bfloat16_costs(device: str) -> float:
    """How many times as long a convolution takes in bfloat16 as in float32 here, by trial.

    Without instructions for it, as on many CPUs, tens of times.
    """
    seconds = {kind: _convolve(device, kind) for kind in (torch.bfloat16, torch.float32)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


@torch.inference_mode()
def _convolve(device: str, kind: torch.dtype) -> float:
    """The seconds of a convolution, the least of three after one to warm up."""
    x = torch.ones(8, 64, 32, 32, device=device, dtype=kind)
    weight = torch.ones(64, 64, 3, 3, device=device, dtype=kind)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        float(F.conv2d(x, weight)[0, 0, 0, 0])  # waits for the device
        took.append(time.perf_counter() - began)
    return min(took[1:])


def versions() -> dict[str, str]:
    """What made a result: the versions of this package, Python and the libraries."""
    found = {"python": platform.python_version()}
    for name in ("unfool", "torch", "diffusers", "numpy", "transformers", "peft", "torchsde"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
