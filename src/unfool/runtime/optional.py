"""Imports optional libraries when they are needed."""

from importlib import import_module
from typing import Any


def require(library: str, extra: str | None) -> Any:
    """Import an optional library.

    Args:
        library: Its import name.
        extra: The extra of unfool that installs it; None if it must match the installed torch.

    Raises:
        ValueError: The library is not installed, or is broken.
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        missing = error.name or library
        raise ValueError(
            f"this needs the library {missing}, which is not installed: {_advice(missing, extra)}"
        ) from error
    except (ImportError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        broken = "torchvision" if "torchvision" in message else library
        raise ValueError(
            f"the library {broken} is installed but broken ({message}): {_advice(broken, extra)}"
        ) from error


def _advice(library: str, extra: str | None) -> str:
    """Say how to install a library; torchvision, which timm imports, must match the torch."""
    if extra is not None and library != "torchvision":
        return f"pip install 'unfool[{extra}]'"
    return f"install the {library} that was built for your torch (see pytorch.org)"
