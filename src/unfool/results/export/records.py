"""Every answer of a run as a CSV or Parquet table: a row for each image, condition, and draw."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unfool.results.run_folder import Run
from unfool.runtime.optional import require


def answers(run: Run) -> list[dict[str, Any]]:
    """Return every answer of an evaluation: a row for each image, condition, and draw.

    Returns:
        Rows with `index` (the place in the data set), `label`, `condition`, `draw`, `answer` (a
        class), and `correct`. The condition `robust` repeats, for each image, the attack that
        counts.

    Raises:
        RuntimeError: A file of the run is damaged, or the run is not an evaluation.
    """
    return [
        {
            "index": outcome.index,
            "label": outcome.label,
            "condition": name,
            "draw": draw,
            "answer": answer,
            "correct": answer == outcome.label,
        }
        for outcome in run.outcomes()
        for name in (*outcome.conditions, "robust")
        for draw, answer in enumerate(outcome.condition(name).draws)
    ]


def to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as a CSV file in UTF-8. A nested value becomes a column `name.inner` (`flat`).

    A missing value is an empty cell. Commas and quotes follow RFC 4180.
    """
    rows = [dict(flat(record)) for record in records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a row. Nested values get names joined by dots."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def to_parquet(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Write records as a Parquet file, with the columns of `Result.to_dataframe()`.

    Raises:
        ValueError: pandas or pyarrow is not installed.
    """
    pandas = require("pandas", "parquet")
    require("pyarrow", "parquet")
    buffer = io.BytesIO()
    pandas.DataFrame.from_records(list(records)).to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()
