"""A comparison of two results."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from unfool.api.result import Result, run_of
from unfool.report import comparison
from unfool.report.render_html import to_fragment
from unfool.report.render_terminal import plain_text
from unfool.results import compare as comparing
from unfool.results.run_folder import Run


class Comparison(comparing.Comparison):
    """Two runs, compared image by image. Printing it gives the table that the command prints."""

    def __str__(self) -> str:
        return plain_text(comparison.brief(self))

    def __repr__(self) -> str:
        changes = {row.name: row.change.mean for row in self.rows}
        name = "robust" if "robust" in changes else "clean"
        points = 100 * changes[name]
        return f"<Comparison: {name} {points:+.1f} points from A to B; {self.n} images>"

    def _repr_html_(self) -> str:
        return to_fragment(comparison.brief(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dictionary: its fields in `compare.json`, and `images`."""
        return asdict(self) | {"rows": [comparison.named(row) for row in self.rows]}

    def write_report(self, folder: str | Path) -> Path:
        """Write `compare.html`, `.md`, `.json`, and `.png` into a folder, and return the folder."""
        comparison.write_report(Path(folder), self, (), "unfool.compare(a, b)")
        return Path(folder)


def compare(a: Result | Run | str | Path, b: Result | Run | str | Path) -> Comparison:
    """Compare run B with run A, on the images that both have finished.

    Args:
        a: The baseline, a result or a run folder.
        b: The result or run folder to compare with it.

    Raises:
        RuntimeError: They cannot be compared, because their images, threats, seeds, or numbers of
            draws differ.
    """
    compared = comparing.compare(run_of(a), run_of(b))
    return Comparison(**{field.name: getattr(compared, field.name) for field in fields(compared)})
