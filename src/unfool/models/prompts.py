"""Prompts of each class for a latent model, from a table or from templates."""

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

COLUMNS = ("prompt", "classname", "classidx")


def read_prompts(source: str, templates: Sequence[str] = ()) -> list[list[str]]:
    """Read one or more prompts for each class.

    A table is a CSV file with the columns `prompt`, `classname` and `classidx`, as in the release
    of the Diffusion Classifier (Li et al., 2023). A class may have several rows.

    Args:
        source: The name of a shipped table (`cifar10` is the release's), or a CSV file.
        templates: Texts that contain `{class}`, used instead of the column `prompt`.

    Raises:
        ValueError: There is no such table, it cannot be read, or a class has no prompt.
    """
    for template in templates:
        if "{class}" not in template:
            raise ValueError(
                f"a template must contain {{class}}, which the class name replaces; {template!r} "
                "does not"
            )
    prompts: dict[int, list[str]] = {}
    for number, row in enumerate(_rows(source), 2):
        try:
            label = int(row["classidx"])
        except (TypeError, ValueError):
            label = -1
        texts = [t.replace("{class}", row["classname"] or "") for t in templates] or [row["prompt"]]
        if label < 0 or not row["classname"] or not row["prompt"]:
            raise ValueError(
                f"line {number} of the prompts {source} needs a prompt, a class name and a class "
                "number from 0"
            )
        class_prompts = prompts.setdefault(label, [])
        class_prompts.extend(text for text in texts if text not in class_prompts)
    missing = [k for k in range(max(prompts, default=0) + 1) if k not in prompts]
    if missing:
        raise ValueError(
            f"the prompts {source} have none for class {missing[0]}: give every class number from "
            "0 up at least one row"
        )
    return [prompts[k] for k in range(len(prompts))]


def _rows(source: str) -> list[dict[str, str]]:
    shipped = resources.files("unfool.prompts")
    path = Path(source) if Path(source).is_file() else shipped.joinpath(f"{source}.csv")
    if not path.is_file():
        names = sorted(f.name[:-4] for f in shipped.iterdir() if f.name.endswith(".csv"))
        raise ValueError(
            f"there is no file {source!r} of prompts, and no shipped one of that name (there are: "
            f"{', '.join(names)})"
        )
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the prompts {source} cannot be read: {error}") from error
    reader = csv.DictReader(lines, skipinitialspace=True)
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(
            f"the prompts {source} must be a CSV file with the columns {', '.join(COLUMNS)}"
        )
    return list(reader)
