"""The command line. It only parses and prints; public functions of the package do the work."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from unfool.cli.analyze import analyze
from unfool.cli.compare import Junit, Strict, check_gate, compare, hold_gate
from unfool.cli.doctor_command import doctor
from unfool.cli.export import export, publish
from unfool.cli.menu import init, menu
from unfool.cli.options import (
    Data,
    Device,
    Download,
    DryRun,
    Out,
    Quiet,
    Set,
    Shard,
    Spec,
    checked_spec,
    expand_home,
    sentence_of,
    shard_of,
    start,
    wrong_option,
)
from unfool.cli.purify_and_classify_commands import classify, purify
from unfool.cli.serve import serve
from unfool.runtime.downloads import download_scope
from unfool.runtime.provenance import command_line, started_by

app = typer.Typer(
    name="unfool",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(analyze, name="analyze")
app.callback()(start)
# How long waiting threads spin: loop iterations in GNU's OpenMP, milliseconds in LLVM's.
WAIT_POLICY = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


@app.command()
def evaluate(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    shard: Shard = None,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    budget: Annotated[
        str | None,
        typer.Option(help="Evaluate as many images as fit into this time (2h, 30m, or 45s)."),
    ] = None,
    min_robust: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if the robust accuracy per draw is below this share."),
    ] = None,
    junit: Junit = None,
    strict: Strict = False,
) -> None:
    """Measure a defense's accuracy, clean and under attack. To resume, run it again."""
    from unfool.evaluation import run as evaluation

    part = shard_of(shard)
    suffix = f"-{budget}" if budget else ""
    checked, folder = checked_spec(evaluation.check, spec, changes, data, out, suffix)
    check_gate(min_robust, strict, junit, bool(checked["attacks"]), part[1])
    if dry_run or budget:
        from unfool.evaluation.forecast import plan

        checked, cost = plan(checked, folder, budget, part)
        _print_forecast(cost, checked, folder, part[1], budget)
        if dry_run:
            return
    run = evaluation.run(checked, folder, part, quiet)
    if run.outcomes():  # a shard may have no images
        _report(run)
    if min_robust is not None:
        hold_gate(run, min_robust, strict, junit)


@app.command()
def attack(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    form: Annotated[
        str, typer.Option("--format", help="The file format: npz or safetensors.")
    ] = "npz",
    png: Annotated[
        bool,
        typer.Option(
            help=(
                "Also write 8-bit PNG files, rounded toward the clean images, and an overview "
                "sheet."
            )
        ),
    ] = False,
    shard: Shard = None,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Save the adversarial images of an evaluation spec. To resume, run it again."""
    from unfool.evaluation import keep_attacked_images
    from unfool.evaluation import run as evaluation

    part, kind = shard_of(shard), keep_attacked_images.check_format(form)
    checked, folder = checked_spec(evaluation.check, spec, changes, data, out, "-images")
    keep_attacked_images.check(checked)
    if dry_run:
        from unfool.evaluation.forecast import forecast

        cost = forecast(checked, judged=False)
        run_spec = keep_attacked_images.identity_content(checked)
        _print_forecast(cost, run_spec, folder, part[1], judged=False)
        return
    run = keep_attacked_images.run(checked, folder, part, quiet)
    if any((folder / "outcomes").glob("*.jsonl")):  # a shard may have no images
        command = command_line()
        for path in keep_attacked_images.write_images(run, kind, png, command):
            typer.echo(path)
        if png:
            from unfool.api.sheets import write_attack_sheets

            for path in write_attack_sheets(run, command):
                typer.echo(path)


@app.command()
def sweep(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Evaluate every combination of the values in a spec's `sweep`. To resume, run it again."""
    from unfool import spec as specs
    from unfool.evaluation import sweep as sweeps
    from unfool.report import evaluation as evaluation_report
    from unfool.report.render_terminal import print_document
    from unfool.report.sweep import write_report
    from unfool.statistics import percent

    loaded = specs.load(spec, changes or [])
    specs.refuse_unread_folder(loaded, data)
    cells = sweeps.check(loaded, data)
    folder = out or Path("runs") / Path(spec).stem
    if dry_run:
        from unfool.report.forecast import in_short

        forecasts = []
        for number, (cell, forecast) in enumerate(sweeps.forecasts(cells, folder), 1):
            if isinstance(forecast, Exception):
                typer.echo(f"{number}/{len(cells)}  {cell.name}: {forecast}")
                continue
            forecasts.append(forecast)
            typer.echo(f"{number}/{len(cells)}  {cell.name}: {in_short(forecast)}")
        typer.echo(f"{len(forecasts)} runs: {in_short(*forecasts)} on this machine")
        return
    command = command_line()
    summaries = {
        sweeps.run_folder_of(folder, cell): summary
        for cell, summary in sweeps.cells_with_outcomes(cells, folder)
    }
    failed: list[str] = []
    for number, (cell, run) in enumerate(sweeps.run(cells, folder, quiet), 1):
        if isinstance(run, Exception):
            failed.append(f"{cell.name}: {run}")
            typer.echo(f"{number}/{len(cells)}  {failed[-1]}")
            continue
        summary = summaries.get(run.folder, {})
        page = run.folder / "report.html"
        if new := len(run.outcomes()) != summary.get("n") or not page.is_file():
            summary = evaluation_report.write_report(run)
        result = f"clean {percent(summary['clean']['per_draw']['accuracy'])}"
        if summary["attacks"]:
            result += f", robust {percent(summary['robust']['per_draw']['accuracy'])}"
        typer.echo(f"{number}/{len(cells)}  {cell.name}: {result}")
        if new and number < len(cells):  # to be read while the sweep runs
            write_report(folder, sweeps.cells_with_outcomes(cells, folder), len(cells), command)
    done = sweeps.cells_with_outcomes(cells, folder)
    document = write_report(folder, done, len(cells), command, failed)
    print_document(document, page=folder / "sweep.html")


@app.command()
def certify(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    shard: Shard = None,
    download: Download = False,
    quiet: Quiet = False,
) -> None:
    """Certify answers in l2 by randomized smoothing. To resume, run it again."""
    from unfool.certification import certify as certification

    part = shard_of(shard)
    checked, folder = checked_spec(certification.check, spec, changes, data, out)
    run = certification.run(checked, folder, part, quiet)
    if any((folder / "outcomes").glob("*.jsonl")):  # a shard may have no images
        _report(run)


for command in (purify, classify):
    app.command()(command)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Rebuild the report of a run, finished or not."""
    from unfool.results.run_folder import Run

    _report(Run.open(run))


@app.command()
def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(help="The run folders of the shards; all must be of the same spec."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for the merged run.")],
) -> None:
    """Merge the shards of a run into one folder, and write its report."""
    from unfool.results.run_folder import merge as merge_runs

    _report(merge_runs(runs, out))


@app.command()
def train(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    download: Download = False,
    quiet: Quiet = False,
) -> None:
    """Train a denoiser or a classifier. To resume, run it again.

    On several processes: torchrun --nproc-per-node N -m unfool train SPEC
    """
    from unfool.training import run as training
    from unfool.training.distributed import rank_and_count
    from unfool.training.spec import check

    checked, folder = checked_spec(check, spec, changes, data, out)
    training.run(checked, folder, quiet, command_line(portable=True))
    if rank_and_count().first:
        typer.echo(f"{folder}\n{training.result(folder)}")


for command in (compare, export, publish, serve, menu, init, doctor):
    app.command()(command)


@app.command()
def selftest(
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the report into this folder.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Check attacks and intervals on models with known answers (about a minute)."""
    import time

    from unfool.evaluation import selftest as known
    from unfool.report.render_terminal import print_document
    from unfool.report.selftest import brief, write_report
    from unfool.runtime.device import pick_device

    began, where = time.perf_counter(), pick_device(device)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # now, so that a failure comes before the work
    checks = known.run(where, quiet)
    if out is not None:
        took = round(time.perf_counter() - began)
        write_report(out, checks, {"device": where, "seconds": took})
    print_document(brief(checks), page=out and out / "selftest.html")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Run the command `unfool`; mistakes are reported in one sentence, with exit code 2."""
    set_wait_policy()
    # A path or label may contain characters that the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def set_wait_policy() -> None:
    """Make waiting threads sleep after a moment, unless the user has set a policy.

    By default, waiting threads of OpenMP spin for milliseconds. On a busy machine, a run then takes
    several times as much CPU time. The policy is read once, when torch is imported.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", *WAIT_POLICY}:
        os.environ.update(WAIT_POLICY)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    command: Callable[..., Any] = typer.main.get_command(app)
    arguments = [expand_home(argument) for argument in arguments]
    try:
        with download_scope(), started_by(arguments):
            code = command(args=arguments, prog_name="unfool", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer turns Ctrl-C into this code
            return _exit_with("stopped; run the same command again to continue", 130)
        return code if isinstance(code, int) else 0
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if os.environ.get("UNFOOL_DEBUG"):
            raise
        return _exit_with(sentence_of(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # an error of click: a wrong option or argument
            return _exit_with(wrong_option(error), 2)
        raise


def _exit_with(sentence: str, code: int) -> int:
    print(f"unfool: {sentence}", file=sys.stderr)
    return code


def _print_forecast(
    cost: Any,
    checked: Any,
    folder: Path,
    shards: int,
    budget: str | None = None,
    judged: bool = True,
) -> None:
    """Print the expected cost of a run, and how much of it is already done."""
    from unfool.report import forecast
    from unfool.report.render_terminal import print_document

    if cost:
        print_document(forecast.brief(cost, shards, budget, judged))
    print_document(forecast.so_far(checked, folder))


def _report(run: Any) -> None:
    """Write the report of a run of any kind, and print its summary."""
    if run.kind == "collection":
        from unfool.evaluation.keep_attacked_images import write_images

        for path in write_images(run):
            typer.echo(path)
        return
    from unfool.report import certification, evaluation
    from unfool.report.render_terminal import print_document

    if run.kind == "certification":
        brief = certification.brief(certification.write_report(run))
    else:
        brief = evaluation.brief(evaluation.write_report(run))
    print_document(brief, page=run.folder / "report.html")
