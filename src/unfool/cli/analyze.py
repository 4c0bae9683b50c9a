"""The commands `unfool analyze ...`. Like all commands, they only parse and print."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfool.cli.options import Data, Device, Out, Quiet, Set, Spec, help_if_alone

if TYPE_CHECKING:
    from unfool.report.document import Document


def _above_zero(value: float) -> float:
    """Return the value of an option if it is above 0, which `typer.Option` cannot express."""
    from unfool.ranges import Positive, violation

    if wrong := violation(Positive, value):
        raise typer.BadParameter(wrong)
    return value


def _all_above_zero(values: list[float] | None) -> list[float] | None:
    """Return the values of a repeatable option if each is above 0."""
    return [_above_zero(value) for value in values] if values else values


analyze = typer.Typer(invoke_without_command=True)
Images = Annotated[int, typer.Option(min=1, help="Analyze this many of the spec's images.")]
Loss = Annotated[str, typer.Option(help="The loss that is attacked: margin, ce, or dlr.")]
Steps = Annotated[int, typer.Option(min=1, help="PGD steps, starting at the image itself.")]
StepSize = Annotated[
    float,
    typer.Option(callback=_above_zero, help="Step size of PGD, in units of eps (above 0)."),
]
Eot = Annotated[int, typer.Option(min=1, help="Random draws per step of the attack with EOT.")]
CompareWith = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH.TO.KEY=VALUE",
        help="Change the spec to make a second model to compare with; may be repeated.",
    ),
]
Draws = Annotated[int, typer.Option(min=1, help="Draws of the defense's noise per image.")]
HeldOut = Annotated[
    int, typer.Option(min=1, help="Fresh random draws over which a loss is averaged.")
]


@analyze.callback()
def start(context: typer.Context) -> None:
    """Analyze a defense: gradients, loss landscape, purified images, and more."""
    help_if_alone(context)


@analyze.command()
def gradients(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 8,
    draws: Draws = 4,
    loss: Loss = "margin",
    coarse: Annotated[
        int | None,
        typer.Option(
            min=1, help="Purifier steps of the surrogates; each chooses its own by default."
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare exact, adjoint, surrogate, and BPDA gradients with finite differences."""
    from unfool.analysis.gradients import compare_gradients
    from unfool.analysis.inputs import load_inputs
    from unfool.report.analyses import write_gradients

    inputs = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"loss": loss, "draws": draws, "coarse": coarse}
    result = compare_gradients(
        inputs.model, inputs.x, inputs.y, inputs.noise, quiet=quiet, **options
    )
    _write(write_gradients, "gradients", spec, out, result, inputs.facts | options, device)


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
    runs: Annotated[int, typer.Option(min=1, help="White-box runs per image.")] = 6,
    draws: HeldOut = 16,
    loss: Loss = "margin",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Plot the paths of attacks with known noise (DW-box), with fresh noise, and with EOT."""
    from unfool.analysis.inputs import load_inputs
    from unfool.analysis.trajectories import trajectories as follow
    from unfool.report.analyses import write_trajectories

    inputs = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "step_size": step_size, "eot": eot, "runs": runs}
    options |= {"draws": draws, "loss": loss}
    result = follow(
        inputs.model, inputs.x, inputs.y, inputs.threat, inputs.noise, quiet=quiet, **options
    )
    _write(write_trajectories, "trajectories", spec, out, result, inputs.facts | options, device)


@analyze.command()
def landscape(
    spec: Spec,
    changes: Set = None,
    compare_with: CompareWith = None,
    data: Data = None,
    out: Out = None,
    image: Annotated[
        int, typer.Option(min=0, help="Index of the image among the spec's images, from 0.")
    ] = 0,
    steps: Steps = 20,
    step_size: StepSize = 0.25,
    eot: Eot = 10,
    draws: HeldOut = 16,
    grid: Annotated[int, typer.Option(min=1, help="Grid points along each axis.")] = 17,
    loss: Loss = "margin",
    clip: Annotated[bool, typer.Option(help="Keep images in [0, 1].")] = True,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Plot the loss around an image, with known noise (DW-box) and with fresh noise."""
    from unfool.analysis.inputs import load_inputs
    from unfool.analysis.landscape import landscape as look_around
    from unfool.report.analyses import write_landscapes

    options: Any = {"steps": steps, "step_size": step_size, "eot": eot, "draws": draws}
    options |= {"grid": grid, "loss": loss, "clip": clip}
    inputs_by_name = {
        name: load_inputs(spec, model_changes, data, None, device, position=image)
        for name, model_changes in _models(changes, compare_with).items()
    }
    results = {
        name: look_around(
            inputs.model, inputs.x, inputs.y, inputs.threat, inputs.noise, quiet=quiet, **options
        )
        for name, inputs in inputs_by_name.items()
    }
    about = {
        "specs": {name: inputs.spec for name, inputs in inputs_by_name.items()},
        "image": image,
    } | options
    _write(write_landscapes, "landscape", spec, out, results, about, device)


@analyze.command()
def purification(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 32,
    steps: Annotated[int, typer.Option(min=1, help="PGD steps, with the exact gradient.")] = 20,
    eot: Eot = 8,
    draws: Draws = 4,
    loss: Loss = "margin",
    lpips: Annotated[bool, typer.Option(help="Measure LPIPS, too (needs unfool[lpips]).")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure how close purified images are to the clean ones, compared with noise alone."""
    from unfool.analysis.inputs import load_inputs
    from unfool.analysis.purification import purification as look_at
    from unfool.report.analyses import write_purification

    inputs = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "eot": eot, "draws": draws, "loss": loss, "lpips": lpips}
    result = look_at(
        inputs.model, inputs.x, inputs.y, inputs.threat, inputs.noise, quiet=quiet, **options
    )
    _write(write_purification, "purification", spec, out, result, inputs.facts | options, device)


@analyze.command()
def compression(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC_OR_RUN", help="Specs and run folders; each names one defense."
        ),
    ],
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 16,
    draws: Draws = 2,
    size: Annotated[
        list[float] | None,
        typer.Option(
            callback=_all_above_zero,
            help=(
                "The l2 norm of the perturbations, in units of the budget; may be repeated "
                "(default: 0.25, 1, and 4)."
            ),
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of power iteration.")] = 5,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure how much purifiers contract perturbations, and compare that with runs' accuracies.

    No classifier is attacked. The measurements of each defense are saved in the output folder. To
    resume, run it again.
    """
    from unfool.analysis.compression import SIZES
    from unfool.cli.compression import measure_all
    from unfool.report.compression import write_compression

    options: dict[str, Any] = {"draws": draws, "sizes": list(size or SIZES), "steps": steps}
    name = sources[0] if len(sources) == 1 else "defenses"
    folder = out or Path("runs") / f"{Path(name).stem}-compression"
    measurements = measure_all(sources, changes or [], data, images, device, folder, options, quiet)
    about = {"specs": measurements.specs, "indices": measurements.indices} | options

    def write(target: Path, measured: Any, facts: dict[str, Any]) -> "Document":
        return write_compression(target, measured, facts, measurements.skipped)

    _write(write, "compression", name, folder, measurements.measured, about, device)


@analyze.command("critical-eps")
def critical_eps(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    out: Out = None,
    images: Images = 16,
    steps: Annotated[int, typer.Option(min=1, help="PGD steps, with the exact gradient.")] = 20,
    eot: Annotated[int, typer.Option(min=1, help="Random draws per attack step.")] = 4,
    draws: Annotated[
        int, typer.Option(min=1, help="Held-out draws that decide whether an image is broken.")
    ] = 8,
    reach: Annotated[
        float,
        typer.Option(callback=_above_zero, help="Largest budget, in units of the spec's eps."),
    ] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="Bisection steps per image.")] = 5,
    loss: Loss = "margin",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Find the smallest budget at which PGD breaks each image, by bisection."""
    from unfool.analysis.critical_eps import critical_eps as bisect
    from unfool.analysis.inputs import load_inputs
    from unfool.report.compression import write_critical_eps

    inputs = load_inputs(spec, changes or [], data, images, device)
    options: Any = {"steps": steps, "eot": eot, "draws": draws, "reach": reach}
    options |= {"rounds": rounds, "loss": loss}
    result = bisect(
        inputs.model, inputs.x, inputs.y, inputs.threat, inputs.noise, quiet=quiet, **options
    )
    _write(write_critical_eps, "critical-eps", spec, out, result, inputs.facts | options, device)


@analyze.command()
def samples(
    spec: Spec,
    changes: Set = None,
    compare_with: CompareWith = None,
    data: Data = None,
    out: Out = None,
    images: Annotated[
        int,
        typer.Option(
            min=2,
            help=(
                "Real images to take from the spec: one half is the reference, the other half is "
                "compared with it."
            ),
        ),
    ] = 400,
    steps: Annotated[
        int, typer.Option(min=1, help="Sampling steps from noise to an image (DDPM).")
    ] = 50,
    sets: Annotated[int, typer.Option(min=1, help="Repetitions for the confidence interval.")] = 3,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare generated images with real ones, before and after fine-tuning."""
    from unfool.analysis.inputs import load_generative_denoiser, load_inputs
    from unfool.analysis.samples import samples as generate
    from unfool.report.analyses import write_samples

    with_images = [*(changes or []), f"evaluation.images={images}"]
    inputs = load_inputs(spec, with_images, data, images, device)
    checked = {
        name: load_inputs(spec, model_changes, data, 2, device).spec
        for name, model_changes in _models(with_images, compare_with).items()
    }
    denoisers = {
        name: load_generative_denoiser(table, inputs.x.device) for name, table in checked.items()
    }
    inner: Any = inputs.model.model
    classifier = getattr(inner, "classifier", inner)
    options: Any = {"steps": steps, "sets": sets}
    arguments = (denoisers, classifier, inputs.x, inputs.y, inputs.noise)
    result = generate(*arguments, batch_size=inputs.model.batch_size, quiet=quiet, **options)
    about = {"specs": checked, "indices": inputs.indices} | options
    _write(write_samples, "samples", spec, out, result, about, device)


def _models(changes: list[str] | None, compare_with: list[str] | None) -> dict[str, list[str]]:
    """Return the changes to the spec for each model, by its name in the report."""
    models = {"the model": changes or []}
    return models | (
        {"the changed model": [*(changes or []), *compare_with]} if compare_with else {}
    )


def _write(
    write: "Callable[[Path, Any, dict[str, Any]], Document]",
    name: str,
    spec: str,
    out: Path | None,
    result: Any,
    facts: dict[str, Any],
    device: str,
) -> None:
    """Write a report, and print it without its figures, and the path of its page."""
    from unfool.report.render_terminal import print_document
    from unfool.runtime.device import pick_device
    from unfool.runtime.provenance import command_line, describe_made

    facts = (
        {"command": command_line()} | facts | {"environment": describe_made(pick_device(device))}
    )
    folder = out or Path("runs") / f"{Path(spec).stem}-{name}"
    print_document(write(folder, result, facts), page=folder / f"{name}.html")
