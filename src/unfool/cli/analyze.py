"""The commands `unfool analyze ...`. They parse and print, as those of `cli`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unfool.cli.options import Data, Device, Out, Quiet, Set, Spec, command_line, help_if_alone

analyze = typer.Typer(invoke_without_command=True)
Images = Annotated[int, typer.Option(help="How many of the images that the spec evaluates.")]
Loss = Annotated[str, typer.Option(help="margin, ce or dlr.")]
Steps = Annotated[int, typer.Option(help="Of PGD, from the image itself.")]
StepSize = Annotated[float, typer.Option(help="Of PGD, in units of eps.")]
Eot = Annotated[int, typer.Option(help="Draws per step of the attack with EOT.")]
CompareWith = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH.TO.KEY=VALUE", help="Changes that make a second model."),
]
Held = Annotated[int, typer.Option(help="Fresh draws behind a loss.")]


@analyze.callback()
def start(context: typer.Context) -> None:
    """Look into a defense."""
    help_if_alone(context)


@analyze.command()
def gradients(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Annotated[
        int, typer.Option(help="How many of the images that the spec evaluates.")
    ] = 8,
    draws: Annotated[int, typer.Option(help="Of the defense's noise, per image.")] = 4,
    loss: Annotated[str, typer.Option(help="margin, ce or dlr.")] = "margin",
    coarse: Annotated[
        int | None, typer.Option(help="Steps of the surrogates; their own choice if not given.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare exact, adjoint, surrogate and BPDA gradients, and finite differences."""
    from unfool.analysis.gradients import compare
    from unfool.analysis.setup import load_inputs
    from unfool.report.analyses import write_gradients
    from unfool.report.render_terminal import print_document

    seen = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"loss": loss, "draws": draws}
    found = compare(seen.model, seen.x, seen.y, seen.noise, coarse=coarse, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-gradients"
    words = options | {"images": images, "coarse": coarse}
    command = command_line("analyze gradients", spec, changes, **words)
    about = {"command": command, "spec": seen.spec}
    document = write_gradients(folder, found, about | options | {"indices": seen.indices})
    print_document(document, page=folder / "gradients.html")


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
    from unfool.analysis.setup import load_inputs
    from unfool.analysis.trajectories import trajectories as follow
    from unfool.report.analyses import write_trajectories
    from unfool.report.render_terminal import print_document

    seen = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "step_size": step_size, "eot": eot, "runs": runs}
    options |= {"draws": draws, "loss": loss}
    found = follow(seen.model, seen.x, seen.y, seen.threat, seen.noise, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-trajectories"
    command = command_line("analyze trajectories", spec, changes, images=images, **options)
    about = {"command": command, "spec": seen.spec}
    document = write_trajectories(folder, found, about | options | {"indices": seen.indices})
    print_document(document, page=folder / "trajectories.html")


@analyze.command()
def landscape(
    spec: Spec,
    changes: Set = None,
    compare_with: CompareWith = None,
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
    from unfool.analysis.landscape import landscape as look_around
    from unfool.analysis.setup import load_inputs
    from unfool.report.analyses import write_landscapes
    from unfool.report.render_terminal import print_document

    found = {}
    options: Any = {
        "steps": steps,
        "step_size": step_size,
        "eot": eot,
        "draws": draws,
        "grid": grid,
    }
    options |= {"loss": loss, "clip": clip}
    models: dict[str, list[str]] = {"the model": []} | (
        {"beside": compare_with} if compare_with else {}
    )
    wanted = {name: [*(changes or []), *other] for name, other in models.items()}
    every = {
        n: load_inputs(spec, own, data, None, device, image=image) for n, own in wanted.items()
    }
    for name, seen in every.items():
        at = (seen.model, seen.x, seen.y, seen.threat, seen.noise)
        found[name] = look_around(*at, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-landscape"
    command = command_line("analyze landscape", spec, changes, compare_with, image=image, **options)
    about = {"command": command, "specs": {name: seen.spec for name, seen in every.items()}}
    document = write_landscapes(folder, found, about | options | {"image": image})
    print_document(document, page=folder / "landscape.html")


@analyze.command()
def purification(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 32,
    steps: Annotated[int, typer.Option(help="Of PGD, exact gradient.")] = 20,
    eot: Eot = 8,
    draws: Annotated[int, typer.Option(help="Of the defense's noise, per image.")] = 4,
    loss: Loss = "margin",
    lpips: Annotated[bool, typer.Option(help="Measure LPIPS, where unfool[lpips] is.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure how near purified pictures are to the clean ones, beside noise alone."""
    from unfool.analysis.purification import purification as look_at
    from unfool.analysis.setup import load_inputs
    from unfool.report.analyses import write_purification
    from unfool.report.render_terminal import print_document

    seen = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "eot": eot, "draws": draws, "loss": loss}
    at = (seen.model, seen.x, seen.y, seen.threat, seen.noise)
    found = look_at(*at, perceptual=lpips, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-purification"
    options |= {"images": images, "lpips": lpips}
    command = command_line("analyze purification", spec, changes, **options)
    about = {"command": command, "spec": seen.spec}
    document = write_purification(folder, found, about | options | {"indices": seen.indices})
    print_document(document, page=folder / "purification.html")


@analyze.command()
def samples(
    spec: Spec,
    changes: Set = None,
    compare_with: CompareWith = None,
    data: Data = None,
    out: Out = None,
    images: Annotated[int, typer.Option(help="Real ones of the spec, half for each side.")] = 400,
    steps: Annotated[int, typer.Option(help="From noise to a picture (DDPM).")] = 50,
    sets: Annotated[int, typer.Option(help="Repetitions behind an interval.")] = 3,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare generated pictures with real ones, before and after fine-tuning."""
    from unfool.analysis.samples import samples as generate
    from unfool.analysis.setup import load_inputs, whole_chain
    from unfool.report.analyses import write_samples
    from unfool.report.render_terminal import print_document

    wanted = [*(changes or []), f"evaluation.images={images}"]
    seen = load_inputs(spec, wanted, data, images, device)
    models: dict[str, list[str]] = {"the model": []} | (
        {"beside": compare_with} if compare_with else {}
    )
    told = {n: load_inputs(spec, [*wanted, *c], data, 2, device).spec for n, c in models.items()}
    denoisers = {name: whole_chain(table, seen.x.device) for name, table in told.items()}
    inner: Any = seen.model.model
    classifier = getattr(inner, "classifier", inner)
    options: Any = {"steps": steps, "sets": sets}
    at = (denoisers, classifier, seen.x, seen.y, seen.noise)
    found = generate(*at, rows=seen.model.batch_size, quiet=quiet, **options)
    folder = out or Path("runs") / f"{Path(spec).stem}-samples"
    command = command_line("analyze samples", spec, changes, compare_with, images=images, **options)
    about = {"command": command, "specs": told} | options
    document = write_samples(folder, found, about | {"indices": seen.indices})
    print_document(document, page=folder / "samples.html")
