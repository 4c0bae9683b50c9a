"""One combination of the values of a sweep."""

from dataclasses import dataclass

from unfool.results.spec import EvaluationSpec


@dataclass(frozen=True)
class Cell:
    """One combination of the values of a sweep.

    Attributes:
        values: The value of each swept path, in words.
        spec: The checked evaluation spec.
    """

    values: dict[str, str]
    spec: EvaluationSpec

    @property
    def name(self) -> str:
        """The swept paths with their values, in words."""
        return ", ".join(f"{path} {value}" for path, value in self.values.items())
