"""A training spec, from its text to a folder with weights, a card, a log and pictures."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unfool import spec as specs
from unfool.data import fetch
from unfool.data.image_files import grid
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.reverse import Ancestral, reverse, strided
from unfool.diffusion.schedule import chain_length
from unfool.errors import SpecError
from unfool.models import card, lora
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch
from unfool.protocols import Dataset
from unfool.runtime.device import bfloat16_costs, pick_device
from unfool.spec import Table
from unfool.statistics import wilson
from unfool.training import checkpoint
from unfool.training.adversarial_images import make_adversarial_images
from unfool.training.compatibility import check_fit, check_guide, check_test
from unfool.training.distributed import Processes, together
from unfool.training.memory_forecast import check_memory, check_weights
from unfool.training.objectives import denoising_loss
from unfool.training.purified import PurifiedCopies, beside
from unfool.training.spec import kind_of
from unfool.training.train import train
from unfool.training.truth_maximization import TruthMaximization

# objectives whose images are made before the training, and kept in a folder of this name
MADE: dict[str, tuple[type, Callable[..., Dataset]]] = {
    "adversaries": (TruthMaximization, make_adversarial_images),
    "purified": (PurifiedCopies, beside),
}


def run(spec: Table, folder: Path, quiet: bool = False, command: str = "") -> Path:
    """Train what a checked `spec` asks, from where `folder` left off.

    Args:
        spec: What `check` returned.
        folder: Where everything goes.
        quiet: Show no progress.
        command: What to write on the card: how to make this again.

    Returns:
        The folder: weights and card, the checkpoint, the log, and pictures for a denoiser.

    Raises:
        SpecError: A part refuses its options.
        RuntimeError: The folder holds another training, or the loss is not a number.
        ValueError: The batch cannot be split evenly over the processes.
    """
    device = pick_device(spec["machine"]["device"])
    with together(device) as processes:
        return _run(spec, folder, device, processes, quiet or not processes.first, command)


def _run(
    spec: Table, folder: Path, device: str, processes: Processes, quiet: bool, command: str
) -> Path:
    kind, options = kind_of(spec), dict(spec["training"])
    half, seed, adapter = options.pop("save_half"), options["seed"], options.pop("lora", None)
    start, dropped = options.pop("init_from", None), options.pop("dropout", None)
    data: Dataset = specs.build("data", spec["data"])
    test: Dataset | None = specs.build("data", spec["test"]) if "test" in spec else None
    asked = checkpoint.question(spec, data)
    if processes.first:
        checkpoint.prepare(folder)
    processes.agreed(None)  # until the folder is there
    before = (checkpoint.read(folder, asked) or {}).get("precision")
    if options["precision"] == "bfloat16":
        options["precision"] = processes.agreed(_precision(device, before, quiet))
    if not spec[kind].get("weights"):
        check_weights(lambda: specs.build(kind, spec[kind]), device)
    seed_torch(seed, "weights")
    model: nn.Module = specs.build(kind, spec[kind])
    check_fit(kind, spec[kind], model.eval(), data)
    if test is not None:
        check_test(kind, spec[kind], model, data, test)
    if start is not None:
        new = card.begin(model, start)
        if new and not quiet:
            print(f"{start} has no weights for: {', '.join(new)}; they are new", file=sys.stderr)
    if dropped is not None:
        _drop(getattr(model, "network", model), dropped)
    objective = _objective(spec["objective"])
    check_guide(objective, data)
    model.to(device).train().requires_grad_(False)
    if adapter is not None:
        seed_torch(seed, "lora")
        lora.add(model, **adapter)
        model.to(device)
    else:
        denoising = getattr(model, "network", model) if kind == "denoiser" else model
        denoising.requires_grad_(True)  # of a latent denoiser, not the autoencoder
    fresh = start is None and spec[kind]["name"] != "trained" and not spec[kind].get("weights")
    if (
        fresh
        and isinstance(model, NormalizedClassifier)
        and (prepare := getattr(model.network, "prepare", None))
    ):
        x, _ = fetch(data, range(min(5000, len(data))))  # for what is fitted, and not learned
        prepare((x.to(device) - model.mean) / model.std)
    parts = processes.count * options.get("accumulate", 1)
    half_products = options["precision"] == "bfloat16"
    most = max(options["batch_size"], (options.get("grow") or {}).get("batch_size", 0))
    check_memory(model, objective, data, most, parts, device, half_products)
    facts: Table = {"data": spec["data"] | {"images": len(data)}}
    for word, (made, make) in MADE.items():
        if isinstance(objective, made):
            for turn in (True, False):  # the first makes them, the others find them
                if processes.first == turn:
                    home = folder.parent / word
                    data = make(data, objective, spec["objective"], home, device, quiet)
                processes.agreed(None)
            facts[word] = cast(Any, data).facts()
    facts |= {
        "objective": spec["objective"],
        "training": spec["training"] | {"precision": options["precision"]},
        "command": command,
    }
    for fact in facts.values():
        if isinstance(fact, dict):
            fact.pop("folder", None)

    def save(folder: Path, trained: nn.Module, **more: Any) -> None:
        if adapter is not None:
            card.save_adapter(folder, spec[kind], trained, **facts, **more)
        else:
            network, began = card.network_of(kind, spec[kind])
            card.save(folder, kind, network, trained, half, **began, **facts, **more)

    trained = train(
        model,
        objective,
        data,
        folder,
        **options,
        kept=lambda step, mean: save(folder / "steps" / str(step), mean, step=step),
        **spec["machine"] | {"device": device},
        asked=asked,
        quiet=quiet,
        processes=processes,
    )
    if not processes.first:
        processes.agreed(None)  # until all is written
        return folder
    save(folder, trained)
    loaded = (
        card.load_denoiser(str(folder)) if kind == "denoiser" else card.load_classifier(str(folder))
    )
    if test is not None:
        metrics = _measure(loaded.to(device), test, getattr(objective, "t_max", 1.0))
        save(folder, trained, metrics=metrics)
    if isinstance(loaded, NetworkDenoiser):
        _draw(loaded, test or data, folder, getattr(objective, "t_max", 1.0))
    processes.agreed(None)
    return folder


def _objective(part: Table) -> Any:
    """An objective, and with it a purifier whose denoiser it names."""
    rest, given = dict(part), {}
    if isinstance(rest.get("purifier"), dict):
        if "classifier" in specs.argument_names("purifier", rest["purifier"]):
            name = rest["purifier"]["name"]
            raise SpecError(
                f"objective.purifier: {name} goes by a classifier; name one that does not"
            )
        given["denoiser"] = specs.build("denoiser", rest.pop("denoiser"))
    return specs.build("objective", rest, **given)


def result(folder: Path) -> str:
    """What came of a training, and how to use it, in a few lines."""
    told = card.read_card(str(folder))[1]
    metrics = told.get("metrics", {})
    lines = [f"use it by: {told['kind']}: {{name: trained, weights: {folder}}}"]
    if "accuracy" in metrics:
        low, high = metrics["interval"]
        share = f"{metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
        lines.insert(0, f"right on {share} of {metrics['test_images']} test images")
    for t, loss in metrics.get("denoising_loss", {}).items():
        lines.insert(-1, f"denoising loss at t = {t}: {loss}")
    return "\n".join(lines)


def _precision(device: str, before: str | None, quiet: bool) -> str:
    """bfloat16 where it pays; a training that was begun goes on as it was, to the same bits.

    But not in bfloat16 on another machine that lacks it.
    """
    costs = bfloat16_costs(device)
    if before != "float32" and costs < (4 if before else 1):
        return "bfloat16"
    if not quiet:
        why = "bfloat16 is slower here" if costs >= 1 else "as it began"
        print(f"training in float32: {why}", file=sys.stderr)
    return "float32"


def _drop(model: nn.Module, share: float) -> None:
    """Let all dropout of a model drop this share (ADDT's release forces 0.1)."""
    found = [part for part in model.modules() if isinstance(part, nn.Dropout)]
    if not found:
        raise SpecError("training.dropout: this network has no dropout; leave it out")
    for part in found:
        part.p = share


@torch.inference_mode()
def _measure(model: Any, test: Dataset, t_max: float) -> Table:
    """What the card says of the model on images it was not trained on (at most 2,000)."""
    size, device = min(len(test), 2000), next(model.parameters()).device
    blocks = [range(i, min(i + 250, size)) for i in range(0, size, 250)]
    if not isinstance(model, NetworkDenoiser):
        hits = 0
        for block in blocks:
            x, y = (part.to(device) for part in fetch(test, block))
            hits += int((model(x, _noise(block)).argmax(1) == y).sum())
        share = wilson(hits, size)
        return {
            "test_images": size,
            "accuracy": share.accuracy,
            "interval": [share.low, share.high],
        }
    losses: dict[str, float] = {}
    for t in (t_max * torch.arange(1, 9) / 8).tolist():
        total = 0.0
        for block in blocks:
            x, y = (part.to(device) for part in fetch(test, block))
            z = model.encode(x)
            loss = denoising_loss(model, z, torch.tensor(t), y, _noise(block).normal(z))
            total += float(loss.sum())
        losses[f"{t:.3f}"] = round(total / size, 5)
    return {"test_images": size, "denoising_loss": losses}


@torch.inference_mode()
def _draw(model: NetworkDenoiser, data: Dataset, folder: Path, t_max: float) -> None:
    """Pictures: clean, noised and denoised images; and images drawn from noise where it can."""
    device = next(model.parameters()).device
    x, y = (part.to(device) for part in fetch(data, range(min(16, len(data)))))
    noise, t = _noise(range(len(x))), torch.tensor(t_max / 2 if t_max < 1 else 0.15)
    z = model.perturb(model.encode(x), t, noise)
    rows: list[Tensor] = [x, model.decode(z), model.decode(model(z, t, y))]
    grid(folder / "denoised.png", rows)
    if t_max == 1:
        start = noise.child("sample").normal(z)
        back = noise.child("reverse")
        chain = chain_length(model.schedule)
        drawn = reverse(
            model, start, strided(1, min(100, chain), chain), back, step=Ancestral(), label=y
        )
        grid(folder / "samples.png", [model.decode(drawn)])


def _noise(indices: Sequence[int]) -> Noise:
    return Noise.of(0, indices).child("measure")
