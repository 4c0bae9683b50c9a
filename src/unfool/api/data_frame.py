"""Conversion of records to a pandas DataFrame, if pandas is installed."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def to_frame(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return a `pandas.DataFrame` with a row for each record.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "to_dataframe() needs pandas: run `pip install pandas`, or call to_records() for the "
            "same rows"
        ) from error
    return pandas.DataFrame.from_records(list(records))
