"""The command `doctor`, which checks the installation, a spec's models, or a file of weights."""

from typing import Annotated

import typer

from unfool.cli.options import Data, Device, Download, Set


def doctor(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC|FILE",
            help="A spec whose classifier and defense to examine, or a file or folder of weights.",
        ),
    ] = None,
    changes: Set = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
) -> None:
    """Check the installation, a spec's models, or a file of weights.

    For a file, print its format, its contents, the line of a spec that loads it, and whether it
    works.
    """
    from unfool.cli import doctor as examine
    from unfool.cli.doctor_weights import weights
    from unfool.models.identify import is_weights

    findings = examine.installed()
    if spec is not None and is_weights(spec):
        findings = weights(spec, changes or [], data, device)
    elif spec is not None:
        findings += examine.model(spec, changes or [], data, device)
    for finding in findings:
        typer.echo(f"{finding.mark:6}{finding.what}")
    if any(finding.mark == "FAIL" for finding in findings):
        raise typer.Exit(1)
