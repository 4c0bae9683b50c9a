"""A sweep from Python: one evaluation for every combination of some values."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unfool import spec as specs
from unfool.api.data_frame import to_frame
from unfool.api.result import READINGS, Result
from unfool.api.run_result import folder_for
from unfool.evaluation import sweep as sweeps
from unfool.report import sweep as sweep_report
from unfool.report.render_html import to_fragment
from unfool.report.render_terminal import plain_text
from unfool.results.report_json import Summary, share_entry
from unfool.results.run_folder import merge
from unfool.results.sweep.cell import Cell


class SweepResult(list[tuple[dict[str, str], Result]]):
    """The results of a sweep: a list of (values, result). Printing it gives the command's table.

    Args:
        cells: The finished combinations, with their results.
        failed: The values of each combination that cannot be run, and the reason.
        home: The temporary folder of the runs, if they have one; it is deleted together with this
            object.
    """

    def __init__(
        self,
        cells: Sequence[tuple[Cell, Result]],
        failed: Sequence[str] = (),
        home: "TemporaryDirectory[str] | None" = None,
    ) -> None:
        super().__init__((cell.values, result) for cell, result in cells)
        self.failed, self._cells, self._home = list(failed), list(cells), home

    def to_records(self) -> list[dict[str, Any]]:
        """Return a row for each combination, condition, and reading.

        Returns:
            Rows with the swept paths, `condition`, `reading` (`per_draw`, `majority`, or `all_draws`),
            `accuracy`, `low`, and `high`.
        """
        return [
            {**values, "condition": name, "reading": reading}
            | share_entry(getattr(condition, reading))
            for values, result in self
            for name, condition in _conditions(result).items()
            for reading in READINGS
        ]

    def to_dataframe(self) -> Any:
        """Return the rows of `to_records` as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed.
        """
        return to_frame(self.to_records())

    def write_report(self, folder: str | Path) -> Path:
        """Write `sweep.html`, `.md`, `.json`, and `.png` into a folder, together with the runs.

        Returns:
            The folder.
        """
        target = Path(folder)
        for cell, result in self._cells:
            cell_folder = sweeps.run_folder_of(target, cell)
            if cell_folder.resolve() != result.run.folder.resolve():
                merge([result.run.folder], cell_folder)
        total = len(self) + len(self.failed)
        sweep_report.write_report(target, self._done(), total, "unfool.sweep(...)", self.failed)
        return target

    def _done(self) -> list[tuple[Cell, Summary]]:
        return [(cell, result.to_dict()) for cell, result in self._cells]

    def __str__(self) -> str:
        return plain_text(sweep_report.brief(self._done(), self.failed))

    def __repr__(self) -> str:
        return f"<SweepResult: {len(self)} of {len(self) + len(self.failed)} combinations>"

    def _repr_html_(self) -> str:
        return to_fragment(sweep_report.brief(self._done(), self.failed))


def sweep(
    spec: str | Path | dict[str, Any],
    changes: Sequence[str] = (),
    *,
    data: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Evaluate every combination of the values in a spec's section `sweep`.

    Args:
        spec: A YAML file, the name of a shipped spec, or a table.
        changes: `path.to.key=value`, as `--set` takes them.
        data: The folder with the data sets.
        out: The folder of the sweep, which continues where it stopped; a temporary one by default.
        quiet: Show no progress.

    Raises:
        ValueError: The spec is wrong, or no combination can be run; the message says why.
        RuntimeError: The folder holds another run.
    """
    cells = sweeps.check(specs.load(spec, changes), data)
    folder, home = folder_for(out)
    done: list[tuple[Cell, Result]] = []
    failed: list[str] = []
    for cell, run in sweeps.run(cells, folder, quiet):
        if isinstance(run, ValueError):
            failed.append(", ".join(f"{k} {v}" for k, v in cell.values.items()) + f": {run}")
        else:
            done.append((cell, Result(run, home)))
    return SweepResult(done, failed, home)


def _conditions(result: Result) -> dict[str, Any]:
    conditions = {"clean": result.clean, "random": result.random, **result.attacks}
    return {name: condition for name, condition in conditions.items() if condition} | {
        "robust": result.robust
    }
