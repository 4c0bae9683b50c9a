"""Write a report into a folder: pages, figures and numbers."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfool.report.document import Document
from unfool.report.render_html import to_html
from unfool.report.render_markdown import to_markdown
from unfool.runtime.files import write_if_other

if TYPE_CHECKING:
    import numpy as np


def write_document(
    folder: Path,
    name: str,
    document: Document,
    numbers: Mapping[str, Any],
    arrays: "Mapping[str, np.ndarray] | None" = None,
) -> None:
    """Write `NAME.md`, `NAME.html`, `NAME.json` and the figures of a report into a folder.

    Each file is written whole or not at all, unless it holds the same already, and `NAME.json` last.

    Args:
        folder: Where to.
        name: What the files are called.
        document: The report.
        numbers: What `NAME.json` holds.
        arrays: What `NAME.npz` holds; there is none if they are not given.

    Raises:
        OSError: The folder cannot be written.
    """
    for figure in document.figures:
        write_if_other(folder / figure.file, figure.png)
    if arrays is not None:
        write_if_other(folder / f"{name}.npz", _npz(arrays))
    write_if_other(folder / f"{name}.md", to_markdown(document).encode())
    write_if_other(folder / f"{name}.html", to_html(document).encode())
    write_if_other(folder / f"{name}.json", (json.dumps(numbers, indent=1) + "\n").encode())


def _npz(arrays: "Mapping[str, np.ndarray]") -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
