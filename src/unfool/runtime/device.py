"""The device that computes, and the versions of the libraries."""

import os
import platform
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn import functional as F

from unfool.errors import SpecError


def pick_device(name: str) -> str:
    """Return the device of this name, ready for use; `"auto"` is a GPU if there is one.

    Under torchrun, `"cuda"` and `"auto"` are the GPU of this process.

    It also turns off TF32, so that convolutions and matrix products use full float32.

    Raises:
        SpecError: The device is not available, or does not support float64.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name == "auto" or (name == "cuda" and torch.cuda.is_available()):
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    if name.partition(":")[0] == "mps":
        raise SpecError(f"device: {name!r} does not support float64, which unfool needs: use cpu")
    try:
        float(torch.zeros(1, device=name))  # fails on a meta device, which stores no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"device: {name!r} is not available on this machine: use cpu") from error
    return name


@lru_cache
def bfloat16_costs(device: str) -> float:
    """Measure how many times as long a convolution takes in bfloat16 as in float32 on a device.

    Without hardware support, as on many CPUs, it takes tens of times as long.
    """
    seconds = {kind: _convolve(device, kind) for kind in (torch.bfloat16, torch.float32)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


@torch.inference_mode()
def _convolve(device: str, kind: torch.dtype) -> float:
    """Measure the seconds of a convolution: the least of three, after one to warm up."""
    x = torch.ones(8, 64, 32, 32, device=device, dtype=kind)
    weight = torch.ones(64, 64, 3, 3, device=device, dtype=kind)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        float(F.conv2d(x, weight)[0, 0, 0, 0])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that are installed."""
    installed = {"python": platform.python_version()}
    for name in ("unfool", "torch", "diffusers", "numpy", "transformers", "peft", "torchsde"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
