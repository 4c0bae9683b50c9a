"""One combination of the values of a sweep."""

from dataclasses import dataclass

from unfool.results.spec import EvaluationSpec


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        values: What each swept path is here, in the reader's words.
        spec: The checked evaluation spec.
    """

    values: dict[str, str]
    spec: EvaluationSpec

    @property
    def name(self) -> str:
        """The values with their paths, in words."""
        return ", ".join(f"{path} {value}" for path, value in self.values.items())
