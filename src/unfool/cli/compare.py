"""The command `compare`, and the bounds on results that it and `evaluate` check."""

from pathlib import Path
from typing import Annotated, Any

import typer

Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Require that the whole 95 % confidence interval meets the bound."
    ),
]
Junit = Annotated[
    Path | None, typer.Option(help="Write a JUnit XML file with one test case per bound.")
]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The run folder of the baseline.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The run folder to compare with it.")],
    min_robust: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if the robust accuracy per draw of B is below this share."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if clean or robust accuracy falls by more than this."),
    ] = None,
    junit: Junit = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the report into this folder.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Compare two runs of `evaluate` image by image, on the same images and draws."""
    from unfool.report import comparison
    from unfool.report.render_terminal import print_document
    from unfool.results import compare as comparing
    from unfool.results.gates import gates
    from unfool.results.run_folder import Run
    from unfool.runtime.files import write_bytes
    from unfool.runtime.provenance import command_line

    result = comparing.compare(Run.open(a), Run.open(b))
    bounds = gates(result, min_robust, max_drop, strict)
    if junit is not None:
        write_bytes(junit, comparison.junit(bounds))
    if out is not None:
        comparison.write_report(out, result, bounds, command_line())
    print_document(comparison.brief(result, bounds), page=out and out / "compare.html")
    if not all(gate.ok for gate in bounds):
        raise typer.Exit(1)


def check_gate(
    min_robust: float | None, strict: bool, junit: Path | None, attacked: bool, shards: int
) -> None:
    """Refuse, before the evaluation runs, a bound that cannot be checked.

    Raises:
        ValueError: The bound is not a share, nothing is attacked, or the run is a shard; or there
            is no bound, and `--strict` or `--junit` needs one.
    """
    from unfool.results.gates import check_bound

    if min_robust is None:
        for option, is_given in (("--strict", strict), ("--junit", junit is not None)):
            if is_given:
                raise ValueError(f"{option} needs a bound: add --min-robust")
        return
    check_bound("--min-robust", min_robust)
    if not attacked:
        raise ValueError("--min-robust needs a spec with attacks: leave it out, or add attacks")
    if shards > 1:
        raise ValueError(
            "--min-robust needs a whole run, and this is a shard: merge the shards, and use "
            "`unfool compare`"
        )


def hold_gate(run: Any, min_robust: float, strict: bool, junit: Path | None = None) -> None:
    """Print, and write to a JUnit file, whether a run meets a bound; exit with 1 if it does not."""
    from unfool.report import comparison
    from unfool.report.comparison import describe_gate
    from unfool.results.gates import gate_of_run
    from unfool.results.summary import summarize_run
    from unfool.runtime.files import write_bytes

    gate = gate_of_run(summarize_run(run), min_robust, strict)
    if junit is not None:
        write_bytes(junit, comparison.junit([gate], "evaluate", ""))
    typer.echo(f"{'pass' if gate.ok else 'FAIL'}: {gate.name}: {describe_gate(gate, '')}")
    if not gate.ok:
        raise typer.Exit(1)
