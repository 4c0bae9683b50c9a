"""The result of an evaluation, finished or not: numbers with intervals, doubts, and every answer."""

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unfool.api.run_result import RunResult
from unfool.report import evaluation
from unfool.results.doubts.doubt import Doubt
from unfool.results.export.records import answers
from unfool.results.export.write import export as write_export
from unfool.results.report_json import Readings, Summary, share_from_entry
from unfool.results.run_folder import Run
from unfool.results.summary import Judged, summarize_run
from unfool.statistics import percent

READINGS = ("per_draw", "majority", "all_draws")


class Result(RunResult[Summary]):
    """The result of an evaluation. Printing it gives the table that the command prints.

    Each condition is a `Judged` with three accuracies: `per_draw`, `majority`, and `all_draws`. Each
    is a `Share` in [0, 1] with `value` and the 95 % confidence interval from `low` to `high`.
    `undefended` is the accuracy of the classifier without its defense, or None.

    Args:
        run: The run.
        home: The temporary folder of the run, if it has one; it is deleted together with the
            result.

    Raises:
        RuntimeError: The run has no results yet, or is not an evaluation.
    """

    _report = evaluation

    def __init__(self, run: Run, home: "TemporaryDirectory[str] | None" = None) -> None:
        if run.kind == "certification":
            raise RuntimeError(
                f"{run.folder} holds a certification, not an evaluation: open it with "
                "unfool.CertifyResult.open(folder)"
            )
        super().__init__(run, summarize_run(run), home)

    @cached_property
    def clean(self) -> Judged:
        """Accuracies on the clean images."""
        return judged("clean", self._summary["clean"])

    @cached_property
    def random(self) -> Judged | None:
        """Accuracies under random noise of the threat's size; None if there was no attack."""
        return judged("random", self._summary["random"]) if "random" in self._summary else None

    @cached_property
    def robust(self) -> Judged:
        """Accuracies under the attack that did best on the attacker's own draws, for each image."""
        return judged("robust", self._summary["robust"])

    @cached_property
    def attacks(self) -> dict[str, Judged]:
        """Attack name to accuracies: attacks that count first, then the others and the corruptions."""
        keys = ("attacks", "known_noise", "unbounded", "corruptions")
        rows = [row for key in keys for row in self._summary.get(key, ())]
        return {row["name"]: judged(row["name"], row["robust"]) for row in rows}

    @cached_property
    def doubts(self) -> list[Doubt]:
        """Reasons not to believe the numbers, the red ones first; docs/doubts.md explains each."""
        entries = [Doubt(**doubt) for doubt in self._summary["doubts"]]
        return sorted(entries, key=lambda doubt: doubt.severity != "red")

    def to_records(self) -> list[dict[str, Any]]:
        """Return every answer, with a row for each image, condition, and draw.

        Returns:
            Rows with `index` (the position in the data set), `label`, `condition`, `draw`, `answer` (a
            class), and `correct`. The condition `robust` repeats, for each image, the attack that
            counts.
        """
        return answers(self.run)

    def export(
        self, to: str, folder: str | Path, model: str | None = None, by: str | None = None
    ) -> list[Path]:
        """Write the result in another format, like `unfool export`.

        Args:
            to: The format: `csv`, `parquet`, `eee` (Every Eval Ever), `robustbench`, or `badge`.
            folder: The output folder.
            model: The model as `OWNER/NAME`; `eee` needs it.
            by: The organization that ran the evaluation, for `eee`.

        Returns:
            The files written.

        Raises:
            ValueError: The format is unknown, or a library or a name is missing.
            RuntimeError: The run is not finished, and the format needs a finished one.
        """
        return write_export(self.run, to, Path(folder), model, by)

    def __repr__(self) -> str:
        text = f"clean {percent(self.clean.per_draw.value)}"
        if self._summary["attacks"]:
            text += f", robust {percent(self.robust.per_draw.value)}"
        counts = f"{_count(self.n, 'image')}, {_count(len(self.doubts), 'doubt')}"
        return f"<Result: {text} per draw; {counts}>"


def load_run(folder: str | Path) -> Result:
    """Load the result in a run folder of `unfool evaluate`, finished or not.

    Raises:
        RuntimeError: There is no run, it has no results yet, or it is not an evaluation.
    """
    return Result.open(folder)


def judged(name: str, readings: Readings) -> Judged:
    """Convert a condition's `readings` in a summary to a `Judged`."""
    shares = {key: share_from_entry(readings[key]) for key in READINGS}
    bare = readings.get("undefended")
    return Judged(
        name,
        **shares,
        k=readings["k"],
        draws=readings.get("draws", readings["k"]),
        undefended=share_from_entry(bare) if bare else None,
    )


def run_of(source: "Result | Run | str | Path") -> Run:
    """Return the run of a result, or the run in a folder."""
    if isinstance(source, Result):
        return source.run
    return source if isinstance(source, Run) else Run.open(Path(source))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
