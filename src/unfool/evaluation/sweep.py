"""Sweeps: one evaluation for each combination of some values, each in a run of its own.

A sweep is an evaluation spec with a section `sweep`, which lists paths of the spec and the values
they take. Finished work is not repeated: each run has its own folder, named by the identity of its
spec.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.evaluation.forecast import Forecast, forecast
from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run
from unfool.results.sweep.cell import Cell
from unfool.spec.tables import without


def check(spec: Mapping[str, Any], folder: str | None = None) -> list[Cell]:
    """Check a sweep and return all combinations of its values.

    Args:
        spec: What `spec.load` read: an evaluation spec with a section `sweep`.
        folder: The folder that data sets are read from.

    Raises:
        SpecError: The spec is wrong.
    """
    axes = spec.get("sweep")
    if not isinstance(axes, dict) or not axes:
        raise SpecError(
            "a sweep needs a section `sweep` of paths and lists of values, such as "
            "`sweep: {purifier.t: [0.05, 0.1]}`; run other specs by `unfool evaluate`"
        )
    paths = list(axes)
    for place, (path, values) in enumerate(axes.items()):
        if path == "evaluation.images":
            raise SpecError(
                "sweep: evaluation.images cannot be swept, because a finished run is extended when "
                "it gets more images: run the sweep once for each number of images"
            )
        if path.partition(".")[0] == "machine":
            raise SpecError(
                f"sweep: {path} cannot be swept, because it changes only the speed, so all its values "
                "would be one run: run `unfool evaluate` once for each value, with another --out"
            )
        if hidden := [part for part in paths[:place] if part.startswith(f"{path}.")]:
            raise SpecError(
                f"sweep: the values of {path} would replace those of {hidden[0]} before them: write "
                f"{path} first, or leave one out"
            )
        if not isinstance(values, list) or not values:
            raise SpecError(f"sweep: {path} needs a list of values, not {values!r}")
        names = [name_of(value) for value in values]
        if len(set(names)) < len(names):
            raise SpecError(
                f"sweep: two values of {path} have the same name ({', '.join(names)}): leave one "
                "out, or change one"
            )
    plain = without(spec, "sweep")
    cells = []
    for chosen in product(*axes.values()):
        changes = [f"{path}={_yaml(value)}" for path, value in zip(axes, chosen, strict=True)]
        values = {path: name_of(value) for path, value in zip(axes, chosen, strict=True)}
        try:
            changed = specs.load(plain, changes)
        except SpecError as error:
            raise SpecError(str(error).replace("--set ", "sweep: ", 1)) from error
        cells.append(Cell(values, evaluation.check(changed, folder)))
    return cells


def run(
    cells: Sequence[Cell], folder: Path, quiet: bool = False
) -> Iterator[tuple[Cell, Run | ValueError]]:
    """Evaluate each cell in turn, from where `folder` left off.

    Args:
        cells: What `check` returned.
        folder: Holds a run folder for each cell.
        quiet: Show no progress.

    Yields:
        Each cell with its run, as soon as it is done, or with the reason why it cannot be run (such
        as 50 steps on a stretch of 25).

    Raises:
        ValueError: No cell can be run; the reason of the last one.
        RuntimeError: A folder holds another run, an attack exceeded the threat, or logits are not
            finite.
    """
    refused = 0
    for cell in cells:
        try:
            done = evaluation.run(cell.spec, run_folder_of(folder, cell), quiet=quiet)
        except ValueError as error:  # a part does not fit, or an attack does not fit the model
            refused += 1
            if refused == len(cells):
                raise
            done = error
        yield cell, done


def forecasts(cells: Sequence[Cell], folder: Path) -> Iterator[tuple[Cell, Forecast | ValueError]]:
    """Yield what the remaining images of each cell will cost, or why the cell cannot be run.

    Args:
        cells: What `check` returned.
        folder: The folder in which the sweep runs, or will run.
    """
    for cell in cells:
        try:
            result: Forecast | ValueError = forecast(cell.spec)
        except ValueError as error:  # as in `run`
            result = error
        else:
            path = run_folder_of(folder, cell)
            done = len(Run.open(path).lines()) if (path / "run.json").is_file() else 0
            result = replace(result, images=max(result.images - done, 0))
        yield cell, result


def cells_with_outcomes(cells: Sequence[Cell], folder: Path) -> list[tuple[Cell, Summary]]:
    """Return the cells that have outcomes, with the summaries of their runs, finished or not."""
    runs = [(cell, run_folder_of(folder, cell)) for cell in cells]
    return [
        (cell, summarize_run(run))
        for cell, path in runs
        if (path / "run.json").is_file() and (run := Run.open(path)).outcomes()
    ]


def run_folder_of(folder: Path, cell: Cell) -> Path:
    """The run folder of a cell."""
    return folder / "cells" / specs.identity(cell.spec)


def name_of(value: Any) -> str:
    """The name of a swept value for readers; for a part its `label`, or its name and weights."""
    if isinstance(value, dict) and "label" in value:
        return str(value["label"])
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, dict):
        return "/".join(map(name_of, value)) if isinstance(value, list) else str(value)
    named = [str(value.get("name", ""))]
    if "weights" in value:
        named = [*(n for n in named if n != "trained"), Path(str(value["weights"])).stem]
    return " ".join(named).strip() or _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: v for key, v in value.items() if key != "label"}
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
