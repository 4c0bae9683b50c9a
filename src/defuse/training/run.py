"""A training spec, from its text to a folder with weights, a card, a log and pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from defuse import spec as specs
from defuse.data import fetch
from defuse.data.pictures import grid
from defuse.diffusion.denoise import Network
from defuse.diffusion.reverse import Ancestral, reverse, strided
from defuse.diffusion.schedule import chain_length
from defuse.machine import bfloat16_pays, pick_device
from defuse.menu import MENU, SpecError
from defuse.models import card, lora
from defuse.models.classifiers import Plain
from defuse.noise import Noise, seed_torch
from defuse.protocols import Dataset
from defuse.spec import Table
from defuse.statistics import wilson
from defuse.training.adversaries import Adversaries, adversaries
from defuse.training.fit import check_fit, check_guide, check_objective
from defuse.training.memory import check_memory
from defuse.training.objectives import denoising_loss
from defuse.training.processes import Processes, together
from defuse.training.train import train
from defuse.training.truth import TruthMaximization

OPTIONS: dict[str, tuple[Any, Any]] = {
    "steps": (int, ...),
    "batch": (int, 64),
    "rate": (float, 2e-4),
    "warmup": (int, 100),
    "weight_decay": (float, 0.0),
    "bias_rate": (float, 1.0),
    "betas": (list[float], [0.9, 0.999]),
    "average": (float, 0.999),
    "average_power": (float | None, None),
    "dropout": (float | None, None),
    "clip": (float, 1.0),
    "flip": (bool, False),
    "crop": (int, 0),
    "seed": (int, 0),
    "optimizer": (str, "adamw"),
    "precision": (str, "float32"),
    "decay": (str, "cosine"),
    "keep": (list[int], []),
    "accumulate": (int, 1),
    "lora": (dict | None, None),
    "half": (bool, False),
    "start": (str | None, None),
}
MACHINE: dict[str, tuple[Any, Any]] = {
    "device": (str, "auto"),
    "save_every": (int, 500),
    "channels_last": (bool, False),
    "compile": (bool, False),
}
LORA: dict[str, tuple[Any, Any]] = {
    "rank": (int, 4),
    "alpha": (float | None, None),
    "layers": (str | list[str] | None, None),
    "dropout": (float, 0.0),
}
CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
    "decay": ("cosine", "none"),
}
LATER = (
    "decay",
    "keep",
    "lora",
    "bias_rate",
    "betas",
    "average_power",
    "dropout",
    "accumulate",
    "start",
)  # left out at their defaults, as before there were such things
SECTIONS = ("data", "test", "denoiser", "classifier", "objective", "training", "machine")


def check(spec: Table, folder: str | None = None) -> Table:
    """A training spec with every option checked and filled in.

    Raises:
        SpecError: What is wrong with it.
    """
    if "attacks" in spec:
        raise SpecError(
            "this is an evaluation spec: run it by `defuse evaluate`, not `defuse train`"
        )
    for key in spec:
        if key not in SECTIONS:
            raise SpecError(f"a training spec has no {key!r}; it has: {', '.join(SECTIONS)}")
    kind = _kind(spec)
    for key in ("data", "objective", "training"):
        if key not in spec:
            raise SpecError(f"a training spec needs {key!r}")
    checked: Table = {"data": specs.check_data(spec["data"], folder)}
    if "test" in spec:
        checked["test"] = specs.check_data(spec["test"], folder)
    options = specs.fields("training", spec["training"], OPTIONS)
    machine = specs.fields("machine", spec.get("machine", {}), MACHINE)
    for name in ("steps", "batch", "rate", "bias_rate", "clip", "save_every", "accumulate"):
        if not (options | machine)[name] > 0:
            raise SpecError(f"{name} must be above 0, not {(options | machine)[name]}")
    for name in ("warmup", "crop", "weight_decay"):
        if options[name] < 0:
            raise SpecError(f"{name} must be 0 or more, not {options[name]}")
    for name, words in CHOICES.items():
        if options[name] not in words:
            raise SpecError(f"{name} is {' or '.join(words)}, not {options[name]!r}")
    if not 0 <= options["average"] < 1:
        raise SpecError(f"average must be from 0 to below 1, not {options['average']}")
    if (power := options["average_power"]) is not None and not 0 < power <= 1:
        raise SpecError(f"training.average_power must be above 0 and at most 1, not {power}")
    if (dropped := options["dropout"]) is not None and not 0 <= dropped < 1:
        raise SpecError(f"training.dropout must be from 0 to below 1, not {dropped}")
    betas = options["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise SpecError(f"training.betas are two numbers from 0 to below 1, not {betas}")
    if options["optimizer"] != "adamw" and betas != OPTIONS["betas"][1]:
        raise SpecError("training.betas are AdamW's: leave them out, or the optimizer")
    if wrong := [step for step in options["keep"] if not 0 < step <= options["steps"]]:
        raise SpecError(f"training.keep holds steps from 1 to {options['steps']}, not {wrong[0]}")
    part = specs.check(kind, spec[kind])
    if options["start"] is not None:
        _check_start(options["start"], kind, part)
    if kind == "denoiser":
        _check_precision(part, options["lora"])
    if options["lora"] is not None:
        options["lora"] = _check_lora(options, kind, part)
    for name in LATER:
        if options[name] == OPTIONS[name][1]:
            del options[name]
    objective = specs.check("objective", _with_source(spec["objective"], spec.get("denoiser")))
    check_objective(kind, objective["name"])
    return checked | {
        kind: part,
        "objective": objective,
        "training": options,
        "machine": machine,
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
    kind, options = _kind(spec), dict(spec["training"])
    half, seed, adapter = options.pop("half"), options["seed"], options.pop("lora", None)
    start, dropped = options.pop("start", None), options.pop("dropout", None)
    if options["precision"] == "bfloat16" and not processes.agreed(bfloat16_pays(device)):
        options["precision"] = "float32"
        if not quiet:
            print("bfloat16 is slower than float32 here: training in float32", file=sys.stderr)
    data: Dataset = specs.build("data", spec["data"])
    seed_torch(seed, "weights")
    model: nn.Module = specs.build(kind, spec[kind])
    check_fit(kind, spec[kind], model.eval(), data)
    if start is not None:
        new = card.begin(model, start)
        if new and not quiet:
            print(f"{start} has no weights for: {', '.join(new)}; they are new", file=sys.stderr)
    if dropped is not None:
        _drop(getattr(model, "network", model), dropped)
    objective = specs.build("objective", spec["objective"])
    check_guide(objective, data)
    model.to(device).train().requires_grad_(False)
    if adapter is not None:
        seed_torch(seed, "lora")
        lora.add(model, **adapter)
        model.to(device)
    else:
        denoising = getattr(model, "network", model) if kind == "denoiser" else model
        denoising.requires_grad_(True)  # of a latent denoiser, not the autoencoder
    fresh = start is None and spec[kind]["name"] != "trained"
    if fresh and isinstance(model, Plain) and (prepare := getattr(model.network, "prepare", None)):
        x, _ = fetch(data, range(min(5000, len(data))))  # for what is fitted, and not learned
        prepare((x.to(device) - model.mean) / model.std)
    at_once = options["batch"] // processes.count // options.get("accumulate", 1)
    check_memory(model, objective, data, at_once, device, options["precision"] == "bfloat16")
    facts: Table = {"data": spec["data"] | {"images": len(data)}}
    if isinstance(objective, TruthMaximization):
        home = folder.parent / "adversaries"
        for turn in (True, False):  # the first makes them, the others find them
            if processes.first == turn:
                data = adversaries(data, objective, spec["objective"], home, device, quiet)
            processes.agreed(None)
        facts["adversaries"] = cast(Adversaries, data).facts()
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
            network, began = card.network_of(spec[kind])
            card.save(folder, kind, network, trained, half, **began, **facts, **more)

    trained = train(
        model,
        objective,
        data,
        folder,
        **options,
        kept=lambda step, mean: save(folder / "steps" / str(step), mean, step=step),
        **spec["machine"] | {"device": device},
        asked=specs.identity(spec),
        quiet=quiet,
        processes=processes,
    )
    if not processes.first:
        processes.agreed(None)  # until all is written
        return folder
    test = specs.build("data", spec["test"]) if "test" in spec else None
    save(folder, trained)
    loaded = (
        card.load_denoiser(str(folder)) if kind == "denoiser" else card.load_classifier(str(folder))
    )
    if test is not None:
        metrics = _measure(loaded.to(device), test, getattr(objective, "t_max", 1.0))
        save(folder, trained, metrics=metrics)
    if isinstance(loaded, Network):
        _draw(loaded, test or data, folder, getattr(objective, "t_max", 1.0))
    processes.agreed(None)
    return folder


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


def _check_lora(options: Table, kind: str, part: Table) -> Table:
    """What `training.lora` asks, checked."""
    if kind != "denoiser" or part["name"] == "unet" or part.get("weights", "") is None:
        raise SpecError(
            "training.lora fine-tunes a denoiser that is trained: name one, as denoiser: {name: "
            "trained, weights: ...}"
        )
    if options["half"]:
        raise SpecError("training.half would round away what LoRA learns: leave it out")
    asked = specs.fields("training.lora", options["lora"], LORA)
    if not 0 <= asked["dropout"] < 1:
        raise SpecError(f"training.lora.dropout must be from 0 to below 1, not {asked['dropout']}")
    # left out at its default, as before there was such a thing
    return {key: value for key, value in asked.items() if (key, value) != ("dropout", 0)}


def _check_precision(part: Table, lora: Table | None) -> None:
    """Whether the weights that are trained can hold what they learn."""
    try:
        precision = card.network_of(part)[0].get("precision", "float32")
    except ValueError:
        return  # there is no such card, which is told when it is built
    if precision != "float32" and (lora is None or part["name"] == "trained"):
        raise SpecError(
            f"the denoiser's weights are in {precision}, which would round away what they learn: give it "
            "precision: float32, or train a new adapter beside them by training.lora"
        )


def _check_start(start: str, kind: str, part: Table) -> None:
    """Whether what `training.start` names can be begun with."""
    if part["name"] == "trained":
        raise SpecError(f"{kind} {part['weights']} is trained: leave out training.start")
    try:
        began = card.read_card(start)[1]["kind"]
    except ValueError as error:
        raise SpecError(f"training.start: {error}") from error
    if began != kind:
        raise SpecError(f"training.start names a {began}; name a {kind}")


def _drop(model: nn.Module, share: float) -> None:
    """Let all dropout of a model drop this share (ADDT's release forces 0.1)."""
    found = [part for part in model.modules() if isinstance(part, nn.Dropout)]
    if not found:
        raise SpecError("training.dropout: this network has no dropout; leave it out")
    for part in found:
        part.p = share


def _with_source(objective: Any, denoiser: Any) -> Table:
    """An objective whose source may be a trained model, or the diffusion classifier of the denoiser."""
    table = dict(specs.part("objective", objective))
    source = table.get("source")
    if isinstance(source, str) and ":" not in source and source not in MENU["classifier"]:
        source = {"name": "trained", "weights": source}
    if source is not None:
        source = specs.part("classifier", source)
        if source["name"] == "diffusion" and denoiser is not None:
            source = {"denoiser": denoiser} | source
        table["source"] = source
    return table


def _kind(spec: Table) -> str:
    kinds = [kind for kind in ("denoiser", "classifier") if kind in spec]
    if len(kinds) != 1:
        raise SpecError("a training spec trains one thing: give it a denoiser or a classifier")
    return kinds[0]


@torch.inference_mode()
def _measure(model: Any, test: Dataset, t_max: float) -> Table:
    """What the card says of the model on images it was not trained on (at most 2,000)."""
    size, device = min(len(test), 2000), next(model.parameters()).device
    blocks = [range(i, min(i + 250, size)) for i in range(0, size, 250)]
    if not isinstance(model, Network):
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
def _draw(model: Network, data: Dataset, folder: Path, t_max: float) -> None:
    """Pictures: clean, noised and denoised images; and images drawn from noise where it can."""
    device = next(model.parameters()).device
    x, y = (part.to(device) for part in fetch(data, range(min(16, len(data)))))
    noise, t = _noise(range(len(x))), torch.tensor(t_max / 2 if t_max < 1 else 0.15)
    z = model.perturb(model.encode(x), t, noise)
    rows: list[Tensor] = [x, model.decode(z), model.decode(model(z, t, y))]
    grid(folder / "denoised.png", rows)
    if t_max == 1:
        start = noise.fold("sample").normal(z)
        back = noise.fold("reverse")
        chain = chain_length(model.schedule)
        drawn = reverse(
            model, start, strided(1, min(100, chain), chain), back, step=Ancestral(), label=y
        )
        grid(folder / "samples.png", [model.decode(drawn)])


def _noise(indices: Sequence[int]) -> Noise:
    return Noise.of(0, indices).fold("measure")
