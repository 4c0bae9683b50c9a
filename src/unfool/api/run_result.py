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
        summary: What `report.json` holds of it.
        home: The temporary folder that the run lies in, if it does; it goes when the result does.
    """

    _report: ClassVar[Any]  # the module of `report` for runs of this kind

    def __init__(self, run: Run, summary: S, home: "TemporaryDirectory[str] | None") -> None:
        self.run, self._summary, self._home = run, summary, home

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The result that a run folder holds so far.

        Raises:
            RuntimeError: There is no run, no image is done yet, or it is a run of another kind.
        """
        return cls(Run.open(Path(folder)))  # pyright: ignore[reportCallIssue]

    @property
    def folder(self) -> Path | None:
        """The run folder; None if it is a temporary one."""
        return None if self._home else self.run.folder

    @property
    def n(self) -> int:
        """How many images are done."""
        return self._summary["n"]

    @property
    def of(self) -> int:
        """How many were asked for."""
        return self._summary["of"]

    @property
    def cost(self) -> dict[str, float]:
        """Network calls (`nfe_forward`, ...), seconds and memory."""
        return cast(dict[str, float], dict(self._summary["cost"]))

    def to_dict(self) -> S:
        """What `report.json` holds."""
        return deepcopy(self._summary)

    def to_records(self) -> list[dict[str, Any]]:
        """The rows of the table, each a dictionary."""
        raise NotImplementedError

    def to_dataframe(self) -> Any:
        """The rows of `to_records` as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed.
        """
        return to_frame(self.to_records())

    def write_report(self, folder: str | Path | None = None) -> Path:
        """Write the report (`report.html`, `.md`, `.json` and figures), and keep the run beside it.

        Args:
            folder: Where to; the run's own folder by default. `open` reads it again.

        Returns:
            The folder.

        Raises:
            ValueError: The run's folder is a temporary one, and no other is named.
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
    """A run where it is; or a copy of it in `folder`.

    Raises:
        ValueError: It is in a temporary folder, and no other is named.
        RuntimeError: The folder holds another run.
    """
    if folder is None and temporary:
        raise ValueError(
            "the run is in a temporary folder, which is deleted later: name a folder for the report"
        )
    if folder is None or Path(folder).resolve() == run.folder.resolve():
        return run
    return merge([run.folder], Path(folder))


def place_for(
    out: str | Path | None,
) -> tuple[Path, "TemporaryDirectory[str] | None"]:
    """The folder for a run, and, if none is named, the temporary one that holds it."""
    if out is not None:
        return Path(out), None
    home: TemporaryDirectory[str] = TemporaryDirectory(prefix="unfool-")
    return Path(home.name), home
