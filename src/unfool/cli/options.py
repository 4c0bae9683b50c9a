"""Options and helpers that the commands share."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from unfool import __version__
from unfool.runtime.downloads import allow_downloads

Spec = Annotated[str, typer.Argument(help="A shipped spec (see `unfool menu`) or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH.TO.KEY=VALUE",
        help="Override a setting of the spec; may be repeated.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", envvar="UNFOOL_DATA", help="The folder with the data sets."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The output folder; by default one in runs/.")
]
Device = Annotated[
    str, typer.Option(help="The device, such as cpu or cuda; auto takes the GPU if there is one.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        help=(
            "Do only the images i, i + n, ...; written i/n. The default is RANK/WORLD_SIZE, if they "
            "are set."
        )
    ),
]
ImageFiles = Annotated[
    list[Path], typer.Argument(help="PNG, JPEG, or npz files, or folders of them.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Largest number of images in one call of the model.")
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        callback=allow_downloads,
        help="Download published weights and data sets that are missing.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the expected cost, and do not run.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Defend an image classifier with a diffusion model, and measure how robust it is."""
    if version:
        typer.echo(f"unfool {__version__}")
        raise typer.Exit()
    help_if_alone(context)


def help_if_alone(context: typer.Context) -> None:
    """Print the help of a group of commands that was called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def shard_of(text: str | None) -> tuple[int, int]:
    """Return (i, n), the shard i of n that `--shard` or the environment names; (0, 1) by default.

    Raises:
        SpecError: The text is not i/n with i < n, or only one of RANK and WORLD_SIZE is set.
    """
    from unfool.errors import SpecError

    ranks = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if text is None and ranks == (None, None):
        return 0, 1
    if text is None and None in ranks:
        raise SpecError("RANK and WORLD_SIZE must both be set, or neither; or use --shard i/n")
    source, text = (
        ("--shard", text) if text is not None else ("RANK/WORLD_SIZE", "/".join(map(str, ranks)))
    )
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise SpecError(f"{source} must be i/n with i from 0 to n - 1, not {text!r}")
    return int(index), int(count)


def checked_spec(
    check: Callable[[Any, str | None], Any],
    spec: str,
    changes: list[str] | None,
    data: str | None,
    out: Path | None,
    suffix: str = "",
) -> tuple[Any, Path]:
    """Read and check a spec; return it and the run folder (`out`, or one named by its identity)."""
    from unfool import spec as specs

    loaded = specs.load(spec, changes or [])
    specs.refuse_unread_folder(loaded, data)
    checked = check(loaded, data)
    _fetch_missing(checked)  # first, because the identity is a hash of file contents
    return checked, out or Path("runs") / f"{Path(spec).stem}-{specs.identity(checked)}{suffix}"


def _fetch_missing(value: Any) -> None:
    """Download the published files that a checked spec names, if the user asked for it."""
    from unfool.runtime.downloads import downloads_allowed
    from unfool.runtime.published_files import find_file

    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _fetch_missing(inner)
    if isinstance(value, dict) and isinstance(value.get("weights"), str):
        download = value.get("download") is True
        if download or downloads_allowed():
            find_file(Path(value["weights"]), download)


def expand_home(argument: str) -> str:
    """Expand a leading `~` in an argument, which shells do not do after `=` or in quotes."""
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("--") and value.startswith("~"):
        return f"{flag}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def sentence_of(error: Exception) -> str:
    """Return one sentence on an error: what happened, and what to do next."""
    if isinstance(error, OSError) and error.strerror:
        unnamed = " (writing to standard output)" if error.errno == errno.ENOSPC else ""
        where = f": {error.filename}" if error.filename else unnamed
        return (
            f"{error.strerror.lower()}{where}; the results saved so far are intact, so fix the "
            "cause and run the same command again"
        )
    from unfool.runtime.memory import lack_of_memory

    if lack := lack_of_memory(error):
        return f"{lack}: lower machine.batch_size, or choose smaller models or images in the spec"
    return " ".join(str(error).split()) or type(error).__name__


def wrong_option(error: Any) -> str:
    """Return the message of a command-line error; for an invalid value, what it must be."""
    from pydantic import ValidationError

    from unfool.runtime.validate import explain

    cause, option = error.__cause__, getattr(error, "param", None)
    if not isinstance(cause, ValidationError) or option is None:
        return error.format_message()
    return explain(cause, cause.errors()[0]["input"], f"{option.opts[0]}.")
