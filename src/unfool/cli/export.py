"""The commands `export` and `publish`, which make results and models usable elsewhere."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run of `evaluate`.")],
    to: Annotated[str, typer.Option(help="The format: csv, parquet, eee, robustbench, or badge.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The output folder; by default that of the run.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model as OWNER/NAME (eee requires it).")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="The organization that ran the evaluation (for eee).")
    ] = None,
) -> None:
    """Convert a run to another format, in its own folder or in --out.

    csv and parquet: every answer (image x condition x draw). eee: records of Every Eval Ever, with
    the instance-level file. robustbench: the model-info JSON. badge: SVG, and JSON for shields.io.
    """
    from unfool.results.export.write import export as write
    from unfool.results.run_folder import Run

    for path in write(Run.open(run), to, out or run, model, by):
        typer.echo(path)


def publish(
    folder: Annotated[str, typer.Argument(help="A model folder with a card, or a shipped model.")],
    repo: Annotated[
        str | None, typer.Option(help="The repository on the Hugging Face hub, as OWNER/NAME.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="The license of the weights, such as apache-2.0 (default: the card's)."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run", help="A finished run whose results the model card reports; may be repeated."
        ),
    ] = None,
    push: Annotated[
        bool,
        typer.Option("--push", help="Upload. Without --push, only list what would be uploaded."),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
) -> None:
    """Publish a trained model and its card on the Hugging Face hub; a dry run without --push."""
    from unfool.report.formatting import memory
    from unfool.results.export import publish as publishing
    from unfool.results.run_folder import Run

    upload = publishing.prepare(folder, repo, license, [Run.open(path) for path in run or []])
    if push:
        typer.echo(publishing.push(upload, private))
        return
    typer.echo(upload.readme)
    typer.echo(f"would be uploaded to {upload.repository}:")
    for name, size in upload.sizes.items():
        typer.echo(f"  {name:36}{memory(size) if size >= 2**20 else f'{size:,} bytes'}")
    typer.echo("nothing was uploaded; add --push to upload")
