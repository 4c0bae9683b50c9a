"""Run a training spec: produce a folder with weights, a model card, a log and sample images."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from unfool import spec as specs
from unfool.compatibility import check_objective_models, check_test, check_trainable
from unfool.data import fetch
from unfool.data.image_files import grid
from unfool.defenses.purified_classifier import predict
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.reverse import Ancestral, reverse, strided
from unfool.diffusion.schedule import chain_length, first_time
from unfool.errors import SpecError
from unfool.models import card, lora
from unfool.models.card import Metrics
from unfool.models.classifiers import NormalizedClassifier
from unfool.models.weights_hash import weights_hash
from unfool.noise import Noise, seed_torch
from unfool.protocols import Dataset
from unfool.runtime.device import bfloat16_costs, pick_device
from unfool.runtime.memory import lack_of_memory
from unfool.spec import Part
from unfool.statistics import percent_interval, wilson
from unfool.training import checkpoint
from unfool.training.adversarial_images import make_adversarial_images
from unfool.training.distributed import Processes, together
from unfool.training.memory_forecast import check_memory, check_weights
from unfool.training.objectives.denoising import denoising_loss
from unfool.training.objectives.purified_copies import PurifiedCopies, with_purified_copies
from unfool.training.objectives.truth_maximization import TruthMaximization
from unfool.training.spec import TrainingSection, TrainingSpec, kind_of, loop_options
from unfool.training.train import train

MEASURED_AT_ONCE = 250  # test images in one call, or as many as in training if these are fewer
# objectives whose images are made before training, by the name of the folder that caches them
PRECOMPUTED: dict[str, tuple[type, Callable[..., Dataset]]] = {
    "adversaries": (TruthMaximization, make_adversarial_images),
    "purified": (PurifiedCopies, with_purified_copies),
}


def run(spec: TrainingSpec, folder: Path, quiet: bool = False, command: str = "") -> Path:
    """Train the model of a checked `spec`, resuming from the checkpoint in `folder` if there is one.

    Args:
        spec: What `check` returned.
        folder: Folder for all output.
        quiet: Show no progress.
        command: The command that reproduces this model, for the card.

    Returns:
        The folder, with weights and card, the checkpoint, the log, and for a denoiser sample images.

    Raises:
        SpecError: A part refuses its options.
        RuntimeError: The folder holds another training run, the loss is NaN or infinite, or memory
            ran out.
        ValueError: The batch cannot be split evenly over the processes.
    """
    device = pick_device(spec["machine"]["device"])
    with together(device) as processes:
        job = Job(spec, folder, device, processes, quiet or not processes.first, command)
        try:
            return _run(job)
        except (RuntimeError, MemoryError) as error:
            if lack := lack_of_memory(error):
                raise RuntimeError(
                    f"{lack}: lower training.batch_size, or raise training.accumulate; the last "
                    f"good checkpoint is {checkpoint.last(folder)}"
                ) from error
            raise


@dataclass(frozen=True)
class Job:
    """A training run in progress: its spec, folder, device and processes.

    Attributes:
        spec: What `check` returned.
        folder: Folder for all output.
        device: Device to train on.
        processes: The processes that share each batch.
        quiet: Show no progress.
        command: The command to write on the card.
    """

    spec: TrainingSpec
    folder: Path
    device: str
    processes: Processes
    quiet: bool
    command: str

    @property
    def kind(self) -> Literal["denoiser", "classifier"]:
        """The kind of model that is trained: `"denoiser"` or `"classifier"`."""
        return kind_of(self.spec)

    @property
    def part(self) -> Part:
        """The part of the spec that is trained."""
        return specs.part(self.kind, self.spec.get(self.kind))

    @property
    def section(self) -> TrainingSection:
        """The section `training` of the spec."""
        return TrainingSection(**self.spec["training"])

    def save(self, folder: Path, trained: nn.Module, facts: Mapping[str, Any], **more: Any) -> None:
        """Save the trained model with its card; with LoRA, save the adapter alone."""
        if self.section.lora is not None:
            card.save_adapter(folder, self.part, trained, **facts, **more)
        else:
            network, origin = card.network_of(self.kind, self.part)
            half = self.section.save_half
            card.save(folder, self.kind, network, trained, half, **origin, **facts, **more)


def _run(job: Job) -> Path:
    spec, folder, processes, device = job.spec, job.folder, job.processes, job.device
    data: Dataset = specs.build("data", spec["data"])
    test: Dataset | None = specs.build("data", spec["test"]) if "test" in spec else None
    model = _model(job, data, test)
    objective = build_objective(spec["objective"])
    check_objective_models(objective, data)
    fixed = weights_hash(objective)
    _enable_gradients(job, model)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    identity = checkpoint.run_identity(spec, data, fixed + weights_hash(frozen))
    options = loop_options(job.section, precision=_choose_precision(job, identity))
    _fit_to_data(job, model, data)
    largest_batch = max(options.batch_size, (options.grow or {}).get("batch_size", 0))
    parts, half = processes.count * options.accumulate, options.precision == "bfloat16"
    check_memory(model, objective, data, largest_batch, parts, device, half)
    images = len(data)
    data, image_facts = _precompute_images(job, objective, data)
    facts = _facts(job, images, image_facts, options.precision)
    trained = train(
        model,
        objective,
        data,
        folder,
        options,
        on_save=lambda step, mean: job.save(folder / "steps" / str(step), mean, facts, step=step),
        **{**spec["machine"], "device": device},
        identity=identity,
        quiet=job.quiet,
        processes=processes,
    )
    if processes.first:
        at_once = min(MEASURED_AT_ONCE, largest_batch // parts)  # which fits into memory
        _finish(job, trained, facts, test, data, getattr(objective, "t_max", 1.0), at_once)
    processes.broadcast(None)  # wait until everything is written
    return folder


def _choose_precision(job: Job, identity: Mapping[str, str]) -> str:
    """Prepare the folder, and return the precision in which all processes train."""
    if job.processes.first:
        checkpoint.prepare(job.folder)
    job.processes.broadcast(None)  # wait until the folder exists
    saved_precision = (checkpoint.read(job.folder, identity) or {}).get("precision")
    if job.section.precision != "bfloat16":
        return job.section.precision
    return job.processes.broadcast(_precision(job.device, saved_precision, job.quiet))


def _model(job: Job, data: Dataset, test: Dataset | None) -> nn.Module:
    """Build the model to train, with its initial weights, and check it against the data."""
    kind, part = job.kind, job.part
    start, dropout = job.section.init_from, job.section.dropout
    if not part.get("weights"):
        check_weights(lambda: specs.build(kind, part), job.device)
    seed_torch(job.section.seed, "weights")
    model: nn.Module = specs.build(kind, part)
    check_trainable(kind, part, model.eval(), data)
    if test is not None:
        check_test(kind, part, model, data, test)
    if start is not None:
        missing = card.initialize_from(model, start)
        if missing and not job.quiet:
            print(
                f"unfool: {start} has no weights for {', '.join(missing)}, which start at random",
                file=sys.stderr,
            )
    if dropout is not None:
        set_dropout(getattr(model, "network", model), dropout)
    return model


def _enable_gradients(job: Job, model: nn.Module) -> None:
    """Require gradients of the weights to train: all weights, or those of a new LoRA adapter."""
    model.to(job.device).train().requires_grad_(False)
    if job.section.lora is not None:
        seed_torch(job.section.seed, "lora")
        lora.add(model, **job.section.lora)
        model.to(job.device)
    else:
        trained = getattr(model, "network", model) if job.kind == "denoiser" else model
        trained.requires_grad_(True)  # but not the autoencoder of a latent denoiser


def _fit_to_data(job: Job, model: nn.Module, data: Dataset) -> None:
    """Fit the parts of a new network that are fitted to data once, before training."""
    has_weights = job.section.init_from is not None or job.part.get("weights")
    if has_weights or job.part["name"] == "trained" or not isinstance(model, NormalizedClassifier):
        return
    if prepare := getattr(model.network, "prepare", None):
        x, _ = fetch(data, range(min(5000, len(data))))
        prepare((x.to(job.device) - model.mean) / model.std)


def _precompute_images(job: Job, objective: Any, data: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """Return the training data, after making images if the objective needs that, and facts on them."""
    facts: dict[str, Any] = {}
    for name, (kind, make) in PRECOMPUTED.items():
        if isinstance(objective, kind):
            folder, part = job.folder.parent / name, job.spec["objective"]
            for is_first in (True, False):  # the first process makes them; the others read them
                if job.processes.first == is_first:
                    data = make(data, objective, part, folder, job.device, job.quiet)
                job.processes.broadcast(None)
            facts[name] = cast(Any, data).facts()
    return data, facts


def _facts(job: Job, images: int, image_facts: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The facts about the training run for the card, without the folder of the data."""
    facts: dict[str, Any] = {
        "data": {**job.spec["data"], "images": images},
        **image_facts,
        "objective": job.spec["objective"],
        "training": {**job.spec["training"], "precision": precision},
        "command": job.command,
    }
    for fact in facts.values():
        if isinstance(fact, dict):
            fact.pop("folder", None)
    return facts


def _finish(
    job: Job,
    trained: nn.Module,
    facts: Mapping[str, Any],
    test: Dataset | None,
    data: Dataset,
    t_max: float,
    at_once: int,
) -> None:
    """Save the model, read it back, measure it, and save sample images."""
    folder = job.folder
    job.save(folder, trained, facts)
    load = card.trained_denoiser if job.kind == "denoiser" else card.trained_classifier
    loaded = load(str(folder), trust=True)  # the spec named its code
    if test is not None:
        metrics = _measure(loaded.to(job.device), test, t_max, at_once)
        job.save(folder, trained, facts, metrics=metrics)
    if isinstance(loaded, NetworkDenoiser):
        _draw(loaded, test or data, folder, t_max)


def build_objective(part: Part) -> Any:
    """Build an objective, including a purifier and its denoiser if it names one."""
    options: dict[str, Any] = dict(part)
    built = {}
    if isinstance(options.get("purifier"), dict):
        if "classifier" in specs.argument_names("purifier", options["purifier"]):
            name = options["purifier"]["name"]
            raise SpecError(
                f"objective.purifier: {name} uses a classifier: choose a purifier that does not"
            )
        built["denoiser"] = specs.build("denoiser", options.pop("denoiser"))
    return specs.build("objective", cast(Part, options), **built)


def result(folder: Path) -> str:
    """Describe the result of a training run and how to use it, in a few lines."""
    facts = card.read_card(str(folder))[1]
    metrics = facts.get("metrics")
    trust = ", trust: true" if any(specs.modules_named(facts["part"])) else ""
    lines = [f"use it by: {facts['kind']}: {{name: trained, weights: {folder}{trust}}}"]
    if metrics is not None and "accuracy" in metrics:
        accuracy = percent_interval(metrics["accuracy"], *metrics["interval"])
        lines.insert(0, f"right on {accuracy} of {metrics['test_images']} test images")
    elif metrics is not None:
        losses = metrics["denoising_loss"].items()
        lines = [*(f"denoising loss at t = {t}: {loss}" for t, loss in losses), *lines]
    return "\n".join(lines)


def _precision(device: str, saved_precision: str | None, quiet: bool) -> str:
    """Choose bfloat16 if it is faster; a resumed run keeps its precision, for the same bits.

    A run begun in bfloat16 still changes to float32 on a machine where bfloat16 is 4 times slower.
    """
    relative_cost = bfloat16_costs(device)
    if saved_precision != "float32" and relative_cost < (4 if saved_precision else 1):
        return "bfloat16"
    if not quiet:
        reason = "bfloat16 is slower here" if relative_cost >= 1 else "as it began"
        print(f"training in float32: {reason}", file=sys.stderr)
    return "float32"


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the rate of all dropout layers of a model (ADDT's release forces 0.1)."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    if not layers:
        raise SpecError("training.dropout: this network has no dropout: leave the option out")
    for layer in layers:
        layer.p = rate


@torch.inference_mode()
def _measure(model: Any, test: Dataset, t_max: float, at_once: int) -> Metrics:
    """Measure the model for its card, on at most 2,000 test images, `at_once` in one call."""
    size, device = min(len(test), 2000), next(model.parameters()).device
    blocks = [range(i, min(i + at_once, size)) for i in range(0, size, at_once)]
    if not isinstance(model, NetworkDenoiser):
        hits = 0
        for block in blocks:
            x, y = (tensor.to(device) for tensor in fetch(test, block))
            hits += int((predict(model, x, _noise(block)) == y).sum())
        accuracy = wilson(hits, size)
        return {
            "test_images": size,
            "accuracy": accuracy.value,
            "interval": [accuracy.low, accuracy.high],
        }
    losses: dict[str, float] = {}
    for t in (t_max * torch.arange(1, 9) / 8).tolist():
        total = 0.0
        for block in blocks:
            x, y = (tensor.to(device) for tensor in fetch(test, block))
            z = model.encode(x)
            time = torch.tensor(t).clamp(min=first_time(model.schedule))
            loss = denoising_loss(model, z, time, y, _noise(block).normal(z))
            total += float(loss.sum())
        losses[f"{t:.3f}"] = round(total / size, 5)
    return {"test_images": size, "denoising_loss": losses}


@torch.inference_mode()
def _draw(model: NetworkDenoiser, data: Dataset, folder: Path, t_max: float) -> None:
    """Save a grid of clean, noised and denoised images, and samples if training covers t = 1."""
    device = next(model.parameters()).device
    x, y = (tensor.to(device) for tensor in fetch(data, range(min(16, len(data)))))
    noise, t = _noise(range(len(x))), torch.tensor(t_max / 2 if t_max < 1 else 0.15)
    z = model.perturb(model.encode(x), t, noise)
    rows: list[Tensor] = [x, model.decode(z), model.decode(model(z, t, y))]
    if rows[1].shape != x.shape:  # a latent model decodes to its own image size
        rows[0] = nn.functional.interpolate(x, rows[1].shape[-2:], mode="nearest")
    grid(folder / "denoised.png", rows)
    if t_max == 1:
        start = noise.child("sample").normal(z)
        reverse_noise = noise.child("reverse")
        chain = chain_length(model.schedule)
        samples = reverse(
            model,
            start,
            strided(1, min(100, chain), chain),
            reverse_noise,
            step=Ancestral(),
            label=y,
        )
        grid(folder / "samples.png", [model.decode(samples)])


def _noise(indices: Sequence[int]) -> Noise:
    return Noise.of(0, indices).child("measure")
