"""Every answer of a run as a table: a row for each image, condition and draw; as CSV and Parquet."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from unfool.results.run_folder import Run
from unfool.runtime.optional import require

COLUMNS = ("index", "label", "condition", "draw", "answer", "correct")


def answers(run: Run) -> list[dict[str, Any]]:
    """Every answer of an evaluation: a row for each image, condition and draw.

    Returns:
        Tables with `index` (the place in the data set), `label`, `condition`, `draw`, `answer` (a
        class) and `correct`. The condition `robust` repeats, for each image, the attack that counts.

    Raises:
        RuntimeError: A file of the run is damaged, or it is no evaluation.
    """
    return [
        dict(
            zip(
                COLUMNS,
                (outcome.index, outcome.label, name, draw, answer, answer == outcome.label),
                strict=True,
            )
        )
        for outcome in run.outcomes()
        for name, condition in {
            **outcome.conditions,
            "robust": outcome.conditions[outcome.chosen],
        }.items()
        for draw, answer in enumerate(condition.draws)
    ]


def to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as CSV in UTF-8, with a line of heads; commas and quotes as in RFC 4180.

    Args:
        records: Tables with the same keys, such as `answers` returns.
    """
    text = io.StringIO(newline="")
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return text.getvalue().encode()


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
