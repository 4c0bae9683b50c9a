"""The pictures that a run kept, as one table."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfool.results.attack_roles import roles
from unfool.results.run_folder import Run

SHARED = ("times",)


@dataclass(frozen=True)
class Gallery:
    """Pictures, and what the model made of them.

    Attributes:
        arrays: As in `run/examples`: one row per picture, by index; `times` is shared.
        classes: The names of the classes.
        chosen: Of each picture, the condition that counts as its attack.
        sizes: Of each picture, the norm of that attack's change.
        changed: What that made of it: `attacked`; or `corrupted`, where the run has no attack.
    """

    arrays: dict[str, np.ndarray]
    classes: Sequence[str]
    chosen: Sequence[str]
    sizes: Sequence[float]
    changed: str = "attacked"

    @classmethod
    def of(cls, run: Run) -> "Gallery | None":
        """The pictures of `run`; None if it kept none.

        Raises:
            RuntimeError: A file of them is damaged.
        """
        found = {outcome.index: outcome for outcome in run.outcomes()}
        try:
            blocks = [block for block in run.examples() if len(block["index"])]
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            folder = run.folder / "examples"
            raise RuntimeError(f"{folder} holds a damaged file ({error}); delete it") from error
        if not blocks:
            return None
        indices = np.concatenate([block["index"] for block in blocks])
        once = [i for i in np.unique(indices, return_index=True)[1] if int(indices[i]) in found]
        if not once:
            return None
        keys = [key for key in blocks[0] if all(key in block for block in blocks)]
        arrays = {
            key: blocks[0][key]
            if key in SHARED
            else np.concatenate([block[key] for block in blocks])[once]
            for key in keys
        }
        kept = [found[int(index)] for index in arrays["index"]]
        sizes = [outcome.conditions[outcome.chosen].size for outcome in kept]
        attacks, _, corruptions, _ = roles(run.spec["attacks"])
        return cls(
            arrays,
            run.manifest["classes"],
            [outcome.chosen for outcome in kept],
            sizes,
            "corrupted" if corruptions and not attacks else "attacked",
        )

    def __len__(self) -> int:
        return len(self.arrays["index"])

    def name(self, label: int) -> str:
        """The name of a class, cut where it is long."""
        known = 0 <= label < len(self.classes)
        name = self.classes[label] if known else f"class {label}"
        return name if len(name) <= 14 else f"{name[:13]}…"
