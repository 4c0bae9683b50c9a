"""Write a report into a folder: pages, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfool.report.document import Document
from unfool.report.render_html import to_html
from unfool.report.render_markdown import to_markdown
from unfool.results.export.records import to_csv
from unfool.runtime.files import npz_bytes, write_if_other

if TYPE_CHECKING:
    import numpy as np

Records = Sequence[Mapping[str, Any]]


def write_document(
    folder: Path,
    name: str,
    document: Document,
    numbers: Mapping[str, Any],
    records: Records = (),
    arrays: "Mapping[str, np.ndarray] | None" = None,
    images: Records = (),
) -> None:
    """Write `NAME.md`, `NAME.html`, `NAME.json` and the figures of a report into a folder.

    Each file is written whole or not at all, unless it holds the same already, and `NAME.json` last.

    Args:
        folder: Where to.
        name: What the files are called.
        document: The report.
        numbers: What `NAME.json` holds.
        records: Of these numbers, the rows of `NAME.csv`; there is none without rows.
        arrays: What `NAME.npz` holds; there is none if they are not given.
        images: What became of each image: `images.json` and `images.csv`; none without rows.

    Raises:
        OSError: The folder cannot be written.
    """
    made: dict[str, bytes] = {f"{name}.csv": to_csv(records)} if records else {}
    if images:
        made |= {"images.json": _json(list(images)), "images.csv": to_csv(images)}
    if arrays is not None:
        made[f"{name}.npz"] = npz_bytes(arrays)
    made[f"{name}.md"] = to_markdown(document).encode()
    beside = [f"{name}.json", *made]
    made[f"{name}.html"] = to_html(document, beside).encode()
    for figure in document.figures:
        write_if_other(folder / figure.file, figure.drawing.png)
    for file, content in made.items():
        write_if_other(folder / file, content)
    write_if_other(folder / f"{name}.json", _json(numbers))


def _json(numbers: Any) -> bytes:
    return (json.dumps(numbers, indent=1) + "\n").encode()
