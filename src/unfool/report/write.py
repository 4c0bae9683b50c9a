"""Write a report into a folder: pages, figures, and numbers."""

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
    """Write `NAME.md`, `NAME.html`, `NAME.json`, and the figures of a report into a folder.

    Each file is written atomically, and only if its contents change. `NAME.json` is written last.

    Args:
        folder: The output folder.
        name: The name of the files.
        document: The report.
        numbers: The contents of `NAME.json`.
        records: The rows of `NAME.csv`; without rows, the file is not written.
        arrays: The contents of `NAME.npz`; without them, the file is not written.
        images: The rows of `images.json` and `images.csv`, likewise.

    Raises:
        OSError: The folder cannot be written.
    """
    contents: dict[str, bytes] = {f"{name}.csv": to_csv(records)} if records else {}
    if images:
        contents |= {"images.json": _json(list(images)), "images.csv": to_csv(images)}
    if arrays is not None:
        contents[f"{name}.npz"] = npz_bytes(arrays)
    contents[f"{name}.md"] = to_markdown(document).encode()
    linked_files = [f"{name}.json", *contents]
    contents[f"{name}.html"] = to_html(document, linked_files).encode()
    for figure in document.figures:
        write_if_other(folder / figure.file, figure.drawing.png)
    for file, content in contents.items():
        write_if_other(folder / file, content)
    write_if_other(folder / f"{name}.json", _json(numbers))


def _json(numbers: Any) -> bytes:
    return (json.dumps(numbers, indent=1) + "\n").encode()
