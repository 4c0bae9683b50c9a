"""The common part of all results: the run folder, counts, costs, and tables."""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from unfool.api.data_frame import to_frame
from unfool.report.render_html import to_fragment
from unfool.report.render_terminal import plain_text
from unfool.results.report_json import CertificationSummary, Summary
from unfool.results.run_folder import Run, merge

S = TypeVar("S", Summary, CertificationSummary)


class RunResult(Generic[S]):
    """The result of a run, finished or not. Printing it gives the tables that the command prints.

    Args:
        run: The run.
        summary: The contents of `report.json`.
        home: The temporary folder of the run, if it has one; it is deleted together with the result.
    """

    _report: ClassVar[Any]  # the module of `unfool.report` for this kind of run

    def __init__(self, run: Run, summary: S, home: "TemporaryDirectory[str] | None") -> None:
        self.run, self._summary, self._home = run, summary, home

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open the result in a run folder, finished or not.

        Raises:
            RuntimeError: There is no run, no image is done yet, or the run is of another kind.
        """
        return cls(Run.open(Path(folder)))  # pyright: ignore[reportCallIssue]

    @property
    def folder(self) -> Path | None:
        """The run folder, or None if it is temporary."""
        return None if self._home else self.run.folder

    @property
    def n(self) -> int:
        """The number of finished images."""
        return self._summary["n"]

    @property
    def requested(self) -> int:
        """The number of images requested."""
        return self._summary["requested"]

    @property
    def cost(self) -> dict[str, float]:
        """Network calls (`nfe_forward`, ...), seconds, and memory."""
        return cast(dict[str, float], dict(self._summary["cost"]))

    def to_dict(self) -> S:
        """Return a copy of the contents of `report.json`."""
        return deepcopy(self._summary)

    def to_records(self) -> list[dict[str, Any]]:
        """Return the rows of the table as dictionaries."""
        raise NotImplementedError

    def to_dataframe(self) -> Any:
        """Return the rows of `to_records` as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed.
        """
        return to_frame(self.to_records())

    def write_report(self, folder: str | Path | None = None) -> Path:
        """Write the report (`report.html`, `.md`, `.json`, and figures) beside the run.

        Args:
            folder: The folder, by default the run's own. `open` reads it again.

        Returns:
            The folder.

        Raises:
            ValueError: The run's folder is temporary, and `folder` is None.
            RuntimeError: The folder holds another run.
        """
        run = _run_in(self.run, self._home is not None, folder)
        self._report.write_report(run)
        return run.folder

    def __str__(self) -> str:
        return plain_text(self._report.brief(self._summary))

    def _repr_html_(self) -> str:
        return to_fragment(self._report.brief(self._summary))


def _run_in(run: Run, temporary: bool, folder: str | Path | None) -> Run:
    """Return the run itself, or a copy of it in `folder`.

    Raises:
        ValueError: The run's folder is temporary, and `folder` is None.
        RuntimeError: The folder holds another run.
    """
    if folder is None and temporary:
        raise ValueError(
            "the run is in a temporary folder, which is deleted later: name a folder for the report"
        )
    if folder is None or Path(folder).resolve() == run.folder.resolve():
        return run
    return merge([run.folder], Path(folder))


def folder_for(
    out: str | Path | None,
) -> tuple[Path, "TemporaryDirectory[str] | None"]:
    """Return the folder for a run, and the temporary folder to keep alive if `out` is None."""
    if out is not None:
        return Path(out), None
    home: TemporaryDirectory[str] = TemporaryDirectory(prefix="unfool-")
    return Path(home.name), home
