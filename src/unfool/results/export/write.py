"""Writes a run in another format: `unfool export`."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfool.results.export import every_eval_ever, robustbench
from unfool.results.export.badge import badge
from unfool.results.export.records import answers, to_csv, to_parquet
from unfool.results.run_folder import Run
from unfool.runtime.files import write_bytes

FORMATS = ("csv", "parquet", "eee", "robustbench", "badge")


def export(
    run: Run, to: str, out: Path, model: str | None = None, by: str | None = None
) -> list[Path]:
    """Write a run in another format.

    Args:
        run: An evaluation. Unless it is written as `csv` or `parquet`, it must be finished.
        to: One of `FORMATS`.
        out: The folder to write to.
        model: The name of the model; `eee` needs it, as `OWNER/NAME`.
        by: The organization that ran it, for `eee`.

    Returns:
        The files that were written.

    Raises:
        ValueError: The format is unknown or does not fit the run, or a library or a name is
            missing.
        RuntimeError: The run is not an evaluation, has no outcomes, or must be finished first.
    """
    written = []
    for name, content in _files(run, to, model, by).items():
        write_bytes(out / name, content)
        written.append(out / name)
    return written


def _files(run: Run, to: str, model: str | None, by: str | None) -> dict[str, bytes]:
    match to:
        case "csv":
            return {"answers.csv": to_csv(_some_answers(run))}
        case "parquet":
            return {"answers.parquet": to_parquet(_some_answers(run))}
        case "eee":
            if model is None:
                raise ValueError("Every Eval Ever lists models by name: add --model OWNER/NAME")
            record = every_eval_ever.record(run, model, time.time(), by)
            path = f"{record.folder}/{record.name}"
            return {f"{path}.json": _json(record.log), f"{path}_samples.jsonl": record.lines}
        case "robustbench":
            return {"robustbench.json": _json(robustbench.model_info(run, model))}
        case "badge":
            image = badge(run)
            return {"badge.svg": image.to_svg().encode(), "badge.json": _json(image.to_shields())}
        case _:
            raise ValueError(f"there is no format {to!r}: choose from {', '.join(FORMATS)}")


def _some_answers(run: Run) -> list[dict[str, Any]]:
    rows = answers(run)
    if not rows:
        raise RuntimeError(f"{run.folder} has no results yet: run the evaluation first")
    return rows


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
