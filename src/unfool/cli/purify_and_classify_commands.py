"""The commands `unfool purify` and `unfool classify`, which apply a defense to a user's images."""

from pathlib import Path
from typing import Annotated

import typer

from unfool.cli.options import BatchSize, Data, Device, Download, ImageFiles, Set

Force = Annotated[bool, typer.Option("--force", help="Accept images far larger than the model's.")]


def purify(
    images: ImageFiles,
    spec: Annotated[str, typer.Option(help="The spec whose denoiser and purifier to use.")],
    changes: Set = None,
    out: Annotated[Path, typer.Option(help="The output folder.")] = Path("purified"),
    seed: Annotated[int, typer.Option(help="Seed of the purifier's noise.")] = 0,
    download: Download = False,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    force: Force = False,
) -> None:
    """Purify images (image files to PNG, npz to npz), and write a before-and-after sheet.

    The noise of an image depends on the seed and on its place among all images given.
    """
    from unfool.cli.purify_and_classify import purify_files

    for path in purify_files(images, spec, changes or [], out, seed, device, batch_size, force):
        typer.echo(path)


def classify(
    images: ImageFiles,
    spec: Annotated[str, typer.Option(help="The spec whose classifier and defense to use.")],
    changes: Set = None,
    votes: Annotated[
        int, typer.Option(min=1, help="Passes through the defense per image; the majority wins.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the defense's noise.")] = 0,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a sheet of the images into this folder.")
    ] = None,
    download: Download = False,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    force: Force = False,
) -> None:
    """Classify images through a defense by majority vote; --out adds a sheet."""
    from unfool.cli.purify_and_classify import classify_files

    options = {"out": out, "force": force}
    for line in classify_files(
        images, spec, changes or [], votes, seed, data, device, batch_size, **options
    ):
        typer.echo(line)
