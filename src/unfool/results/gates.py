"""Bounds that a run or a comparison must satisfy, for a CI system: pass or fail."""

from dataclasses import dataclass

from unfool.results.compare import Comparison
from unfool.results.report_json import Summary
from unfool.statistics import Mean

SLACK = 1e-9  # rounding must not make 50 % - 48 % exceed 2 %


@dataclass(frozen=True)
class Gate:
    """A bound on a measured value, and whether it holds.

    Attributes:
        name: `min-robust` or `max-drop`.
        condition: The condition to which the bound applies.
        bound: The smallest allowed accuracy (`min-robust`), or the largest allowed drop from A to B
            (`max-drop`).
        measured: The measured value, with its interval.
        strict: Whether the bound is compared with the worse end of the interval, not with
            `measured.mean`.
    """

    name: str
    condition: str
    bound: float
    measured: Mean
    strict: bool = False

    @property
    def ok(self) -> bool:
        """Whether the bound holds."""
        worse = self.measured.low if self.name == "min-robust" else self.measured.high
        return self._satisfies(worse if self.strict else self.measured.mean)

    @property
    def decided(self) -> bool:
        """Whether the result is the same over the whole interval."""
        return self._satisfies(self.measured.low) == self._satisfies(self.measured.high) == self.ok

    def _satisfies(self, value: float) -> bool:
        if self.name == "min-robust":
            return value >= self.bound - SLACK
        return value <= self.bound + SLACK


def gates(
    comparison: Comparison, min_robust: float | None, max_drop: float | None, strict: bool = False
) -> list[Gate]:
    """Check the requested bounds against a comparison.

    Args:
        comparison: The comparison.
        min_robust: The smallest allowed robust accuracy per draw of B.
        max_drop: The largest allowed drop in accuracy from A to B, clean and robust.
        strict: Compare the bounds with the worse ends of the intervals.

    Raises:
        ValueError: A bound is not a share, there is no robust accuracy, a run is not finished (an
            easy first half could pass), or a drop is between runs under different attacks (a weaker
            attack could pass).
    """
    if (min_robust, max_drop) != (None, None) and comparison.n < comparison.requested:
        raise ValueError(
            f"a bound needs finished runs, and these have {comparison.n} of {comparison.requested} "
            "images in common: run their evaluations to the end, or compare without a bound"
        )
    for name, bound in (("--min-robust", min_robust), ("--max-drop", max_drop)):
        if bound is not None:
            check_bound(name, bound)
    attacks = sorted(path for path in comparison.differs if path.startswith("attacks"))
    if max_drop is not None and attacks and any(row.name == "robust" for row in comparison.rows):
        raise ValueError(
            f"--max-drop needs runs under the same attacks, and these differ in {', '.join(attacks)}: "
            "run one of them again with the attacks of the other, or compare without --max-drop"
        )
    rows, results = {row.name: row for row in comparison.rows}, []
    if min_robust is not None:
        if "robust" not in rows:
            raise ValueError("--min-robust needs runs with attacks: leave it out, or add attacks")
        results.append(Gate("min-robust", "robust", min_robust, Mean(*rows["robust"].b), strict))
    if max_drop is not None:
        for name in ("clean", "robust"):
            if name in rows:
                mean, low, high = rows[name].change
                results.append(Gate("max-drop", name, max_drop, Mean(-mean, -high, -low), strict))
    return results


def gate_of_run(summary: Summary, min_robust: float, strict: bool = False) -> Gate:
    """Check a bound on the robust accuracy per draw of one run.

    Raises:
        ValueError: The bound is not a share, the run is not finished, or it has no attacks.
    """
    check_bound("--min-robust", min_robust)
    if summary["n"] < summary["requested"]:
        raise ValueError(
            f"a bound needs a finished run, and this one has {summary['n']} of {summary['requested']} "
            "images: run the evaluation to the end"
        )
    if not summary["attacks"]:
        raise ValueError("--min-robust needs a run with attacks: leave it out, or add attacks")
    share = summary["robust"]["per_draw"]
    measured = Mean(share["accuracy"], share["low"], share["high"])
    return Gate("min-robust", "robust", min_robust, measured, strict)


def check_bound(name: str, bound: float) -> None:
    """Refuse a bound that is not a share.

    Raises:
        ValueError: The bound is not between 0 and 1.
    """
    if not 0 <= bound <= 1:
        raise ValueError(f"{name} must be a share from 0 to 1, such as 0.05, not {bound:g}")
