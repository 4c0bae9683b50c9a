"""The commands `defuse analyze ...`. They parse and print, as those of `cli`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from defuse.cli_options import Data, Device, Out, Quiet, Set, Spec, command_line

analyze = typer.Typer(help="Look into a defence.", no_args_is_help=True)
Images = Annotated[int, typer.Option(help="How many of the images that the spec evaluates.")]
Loss = Annotated[str, typer.Option(help="margin, ce or dlr.")]
Steps = Annotated[int, typer.Option(help="Of PGD, from the image itself.")]
StepSize = Annotated[float, typer.Option(help="Of PGD, in units of eps.")]
Eot = Annotated[int, typer.Option(help="Draws per step of the attack with EOT.")]
Held = Annotated[int, typer.Option(help="Fresh draws behind a loss.")]


@analyze.command()
def gradients(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Annotated[
        int, typer.Option(help="How many of the images that the spec evaluates.")
    ] = 8,
    draws: Annotated[int, typer.Option(help="Of the defence's noise, per image.")] = 4,
    loss: Annotated[str, typer.Option(help="margin, ce or dlr.")] = "margin",
    coarse: Annotated[
        int | None, typer.Option(help="Steps of the surrogates; their own choice if not given.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare exact, adjoint, surrogate and BPDA gradients, and finite differences."""
    from defuse.analysis.gradients import compare
    from defuse.analysis.opened import opened
    from defuse.report.gradients import write_gradients

    seen = opened(spec, changes or [], data, images, device)
    options: Any = {"loss": loss, "draws": draws}
    found = compare(seen.model, seen.x, seen.y, seen.noise, coarse=coarse, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-gradients"
    words = options | {"images": images, "coarse": coarse}
    command = command_line("analyze gradients", spec, changes, **words)
    about = {"command": command, "spec": seen.spec}
    table = write_gradients(folder, found, about | options | {"indices": seen.indices})
    typer.echo(table.replace("\\", "") + f"\n\nreport: {folder / 'gradients.html'}")


@analyze.command()
def trajectories(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 8,
    steps: Steps = 20,
    step_size: StepSize = 0.25,
    eot: Eot = 10,
    runs: Annotated[int, typer.Option(help="Of each image, in white box.")] = 6,
    draws: Held = 16,
    loss: Loss = "margin",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Follow attacks with the noise known (DW-box), with fresh noise, and with EOT."""
    from defuse.analysis.opened import opened
    from defuse.analysis.trajectories import trajectories as follow
    from defuse.report.trajectories import write_trajectories

    seen = opened(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "step_size": step_size, "eot": eot, "runs": runs}
    options |= {"draws": draws, "loss": loss}
    found = follow(seen.model, seen.x, seen.y, seen.threat, seen.noise, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-trajectories"
    command = command_line("analyze trajectories", spec, changes, images=images, **options)
    about = {"command": command, "spec": seen.spec}
    table = write_trajectories(folder, found, about | options | {"indices": seen.indices})
    typer.echo(table.replace("\\", "") + f"\n\nreport: {folder / 'trajectories.html'}")


@analyze.command()
def landscape(
    spec: Spec,
    changes: Set = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH.TO.KEY=VALUE", help="Changes that make a second model to draw."),
    ] = None,
    data: Data = None,
    out: Out = None,
    image: Annotated[int, typer.Option(min=0, help="Which image of the spec, from 0.")] = 0,
    steps: Steps = 20,
    step_size: StepSize = 0.25,
    eot: Eot = 10,
    draws: Held = 16,
    grid: Annotated[int, typer.Option(help="Points along each axis.")] = 17,
    loss: Loss = "margin",
    clip: Annotated[bool, typer.Option(help="Keep images in [0, 1].")] = True,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw the loss around an image, with the noise known and with fresh noise."""
    from defuse.analysis.landscape import landscape as look_around
    from defuse.analysis.opened import opened
    from defuse.report.trajectories import write_landscapes

    found, told = {}, {}
    options: Any = {
        "steps": steps,
        "step_size": step_size,
        "eot": eot,
        "draws": draws,
        "grid": grid,
    }
    options |= {"loss": loss, "clip": clip}
    models: dict[str, list[str]] = {"the model": []} | ({"beside": beside} if beside else {})
    for name, other in models.items():
        seen = opened(spec, [*(changes or []), *other], data, max(2, image + 1), device)
        x, y, noise = seen.x[[image]], seen.y[[image]], seen.noise.take([image])
        told[name] = seen.spec
        found[name] = look_around(seen.model, x, y, seen.threat, noise, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-landscape"
    command = command_line("analyze landscape", spec, changes, beside, image=image, **options)
    about = {"command": command, "specs": told}
    write_landscapes(folder, found, about | options | {"image": image})
    typer.echo(f"report: {folder / 'landscape.html'}")
