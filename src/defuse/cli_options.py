"""What the commands share: their options, and how a command is told."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Spec = Annotated[str, typer.Argument(help="A shipped spec (see `defuse menu`) or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH.TO.KEY=VALUE", help="Change the spec; may be repeated."),
]
Data = Annotated[
    str | None,
    typer.Option("--data", envvar="DEFUSE_DATA", help="The folder that data sets are read from."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The folder for what is made.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto is the GPU where there is one.")]
Shard = Annotated[
    str | None,
    typer.Option(help="i/n: do the images i, i + n, ... only; else RANK and WORLD_SIZE count."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def command_line(
    name: str,
    given: str | Sequence[str],
    changes: list[str] | None,
    beside: list[str] | None = None,
    **options: Any,
) -> str:
    """What made a result, to be written beside it."""
    words = [*name.split(), *([given] if isinstance(given, str) else given)]
    for flag, values in (("--set", changes), ("--beside", beside)):
        words += [word for value in values or [] for word in (flag, value)]
    for key, value in options.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(["defuse", *words])
