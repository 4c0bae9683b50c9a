"""The result of an evaluation, finished or not: numbers with intervals, doubts, and every answer."""

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unfool.api.run_result import RunResult
from unfool.report import evaluation
from unfool.report.formatting import percent
from unfool.results.doubts.doubt import Doubt
from unfool.results.export.records import answers
from unfool.results.export.write import export as write_export
from unfool.results.report_json import Readings, Summary
from unfool.results.run_folder import Run
from unfool.results.summary import Judged, summarize_run
from unfool.statistics import Share

READINGS = ("per_draw", "majority", "all_draws")


class Result(RunResult[Summary]):
    """What an evaluation found. Printing it gives the table that the command prints.

    Each condition is a `Judged`: how often the model is right `per_draw`, by `majority` and on
    `all_draws`, each a `Share` with `value`, `low` and `high`, the 95 % interval; and `undefended`,
    how often the classifier without its defense is, or None.

    Args:
        run: The run.
        home: The temporary folder that the run lies in, if it does; it goes when the result does.

    Raises:
        RuntimeError: The run has no outcomes yet, or is no evaluation.
    """

    _report = evaluation

    def __init__(self, run: Run, home: "TemporaryDirectory[str] | None" = None) -> None:
        if run.kind == "certification":
            raise RuntimeError(
                f"{run.folder} holds a certification: open it by unfool.CertifyResult.open(folder)"
            )
        super().__init__(run, summarize_run(run), home)

    @cached_property
    def clean(self) -> Judged:
        """On the images as they are."""
        return judged("clean", self._summary["clean"])

    @cached_property
    def random(self) -> Judged | None:
        """Under random noise of the threat's size; None if there was no attack."""
        return judged("random", self._summary["random"]) if "random" in self._summary else None

    @cached_property
    def robust(self) -> Judged:
        """Under the attack that counts, which the attacker chose for each image by draws of their own."""
        return judged("robust", self._summary["robust"])

    @cached_property
    def attacks(self) -> dict[str, Judged]:
        """Under each attack, by name: those that count first, then the others and the corruptions."""
        keys = ("attacks", "known_noise", "unbounded", "corruptions")
        rows = [row for key in keys for row in self._summary.get(key, ())]
        return {row["name"]: judged(row["name"], row["robust"]) for row in rows}

    @cached_property
    def doubts(self) -> list[Doubt]:
        """Reasons not to believe the numbers, the red ones first; docs/doubts.md explains each."""
        found = [Doubt(**doubt) for doubt in self._summary["doubts"]]
        return sorted(found, key=lambda doubt: doubt.severity != "red")

    def to_records(self) -> list[dict[str, Any]]:
        """Every answer: a row for each image, condition and draw.

        Returns:
            Tables with `index` (the place in the data set), `label`, `condition`, `draw`, `answer` (a
            class) and `correct`. The condition `robust` repeats, for each image, the attack that
            counts.
        """
        return answers(self.run)

    def export(
        self, to: str, folder: str | Path, model: str | None = None, by: str | None = None
    ) -> list[Path]:
        """Write the result in the format of others, as `unfool export` does.

        Args:
            to: `csv`, `parquet`, `eee` (Every Eval Ever), `robustbench`, or `badge`.
            folder: Where to.
            model: `OWNER/NAME` of the model; `eee` needs it.
            by: Who ran it, for `eee`.

        Returns:
            The files.

        Raises:
            ValueError: There is no such format, or a library or a name is missing.
            RuntimeError: The run must be finished first.
        """
        return write_export(self.run, to, Path(folder), model, by)

    def __repr__(self) -> str:
        said = f"clean {percent(self.clean.per_draw.value)}"
        if self._summary["attacks"]:
            said += f", robust {percent(self.robust.per_draw.value)}"
        counts = f"{_count(self.n, 'image')}, {_count(len(self.doubts), 'doubt')}"
        return f"<Result: {said} per draw; {counts}>"


def load_run(folder: str | Path) -> Result:
    """The result that a run folder of `unfool evaluate` holds, finished or not.

    Raises:
        RuntimeError: There is no run, no outcome yet, or it is no evaluation.
    """
    return Result.open(folder)


def judged(name: str, readings: Readings) -> Judged:
    """The condition that a summary's `readings` tell of."""
    shares = {key: Share(**readings[key]) for key in READINGS}
    bare = readings.get("undefended")
    return Judged(
        name,
        **shares,
        k=readings["k"],
        draws=readings.get("draws", readings["k"]),
        undefended=Share(**bare) if bare else None,
    )


def run_of(given: "Result | Run | str | Path") -> Run:
    """The run of a result, or in a folder."""
    if isinstance(given, Result):
        return given.run
    return given if isinstance(given, Run) else Run.open(Path(given))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
