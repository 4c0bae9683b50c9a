"""Checks of the example images in a run folder (`examples/*.npz`), which figures show."""

from collections.abc import Mapping, Sequence

import numpy as np

# Arrays in each file; and those that figures need together with an array of some models only.
REQUIRED = ("label", "clean", "attacked", "clean_answer", "attacked_answer")
REQUIRED_WITH = {"times": ("clean_sure",), "clean_fooled": ("clean_surest", "attacked_bare")}


def find_problem_in_examples(block: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Return what is wrong with the arrays of an example file, in words; "" if nothing is.

    Args:
        block: The arrays by name, a row for each image; `times` is shared.
        names: The names of the arrays that were read; empty for all.
    """
    count = block["index"].shape if "index" in block else ()
    if len(count) != 1:
        return "it holds no list of indices"
    needed = [
        *REQUIRED,
        *(name for key in REQUIRED_WITH if key in block for name in REQUIRED_WITH[key]),
    ]
    for name in () if names else needed:
        if name not in block:
            return f"it has no array {name!r}"
    for name, array in block.items():
        partner = f"attacked_{name.removeprefix('clean_')}"
        if name.startswith("clean_") and partner not in block:
            return f"it has the array {name!r} without {partner!r}"
        if name != "times" and array.shape[:1] != count:
            return (
                f"the array {name!r} has the shape {array.shape}, and there are {count[0]} images"
            )
        if array.dtype.kind not in "iufb" or not np.isfinite(array).all():
            return f"the array {name!r} holds NaN or infinity"
    return ""
