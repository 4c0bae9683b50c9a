"""Every answer of a run as a table: a row for each image, condition and draw; as CSV and Parquet."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unfool.results.run_folder import Run
from unfool.runtime.optional import require


def answers(run: Run) -> list[dict[str, Any]]:
    """Every answer of an evaluation: a row for each image, condition and draw.

    Returns:
        Tables with `index` (the place in the data set), `label`, `condition`, `draw`, `answer` (a
        class) and `correct`. The condition `robust` repeats, for each image, the attack that counts.

    Raises:
        RuntimeError: A file of the run is damaged, or it is no evaluation.
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
    """Rows as a CSV file in UTF-8; what a row holds within a name is a column `name.inner` (`flat`).

    A value that a row lacks is empty. Commas and quotes are as in RFC 4180.
    """
    rows = [dict(flat(record)) for record in records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a row, those within others under names with dots."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def to_parquet(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as a Parquet file, with the columns of `Result.to_dataframe()`.

    Raises:
        ValueError: pandas or pyarrow is not installed.
    """
    pandas = require("pandas", "parquet")
    require("pyarrow", "parquet")
    buffer = io.BytesIO()
    pandas.DataFrame.from_records(list(records)).to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()
