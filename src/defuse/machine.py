"""The machine that does the work: its device, and the versions of what runs on it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from defuse.menu import SpecError


def pick_device(name: str) -> str:
    """The device of that name, made ready; `"auto"` is the GPU where there is one.

    Convolutions and products are computed in full float32, not in TF32.

    Raises:
        SpecError: There is no such device here.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device: {name!r} cannot be used here; try cpu") from error
    return name


def versions() -> dict[str, str]:
    """What made a result: the versions of this package, Python and the libraries."""
    found = {"python": platform.python_version()}
    for name in ("defuse", "torch", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
