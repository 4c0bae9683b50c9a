"""A training spec, checked, with every option filled in."""

from typing import Annotated, Any, Literal

from pydantic import Field

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.models import card
from unfool.ranges import Count, CountFromZero, NotNegative, Positive, ShareAboveZero, ShareBelowOne
from unfool.spec import Table
from unfool.spec.menu import MENU
from unfool.training.compatibility import check_objective

OPTIONS: dict[str, tuple[Any, Any]] = {
    "steps": (Count, ...),
    "batch_size": (Count, 64),
    "learning_rate": (Positive, 2e-4),
    "warmup": (CountFromZero, 100),
    "weight_decay": (NotNegative, 0.0),
    "bias_lr_factor": (Positive, 1.0),
    "muon_lr_factor": (Positive, 20.0),
    "betas": (list[float], [0.9, 0.999]),
    "ema_decay": (ShareBelowOne, 0.999),
    "ema_power": (ShareAboveZero | None, None),  # pyright: ignore[reportOperatorIssue]
    "ema_gamma": (NotNegative | None, None),  # pyright: ignore[reportOperatorIssue]
    "dropout": (ShareBelowOne | None, None),  # pyright: ignore[reportOperatorIssue]
    "grad_clip": (Annotated[float, Field(gt=0)], 1.0),
    "flip": (bool, False),
    "crop": (CountFromZero, 0),
    "seed": (int, 0),
    "optimizer": (Literal["adamw", "sgd", "muon"], "adamw"),
    "precision": (Literal["float32", "bfloat16"], "float32"),
    "lr_schedule": (Literal["cosine", "linear", "none"], "cosine"),
    "decay_from": (int | None, None),
    "grow": (dict | None, None),
    "save_steps": (list[int], []),
    "accumulate": (Count, 1),
    "lora": (dict | None, None),
    "save_half": (bool, False),
    "init_from": (str | None, None),
}
MACHINE: dict[str, tuple[Any, Any]] = {
    "device": (str, "auto"),
    "save_every": (Count, 500),
    "channels_last": (bool, False),
    "compile": (bool, False),
}
LORA: dict[str, tuple[Any, Any]] = {
    "rank": (int, 4),
    "alpha": (float | None, None),
    "layers": (str | list[str] | None, None),
    "dropout": (ShareBelowOne, 0.0),
}
GROW: dict[str, tuple[Any, Any]] = {"at": (CountFromZero, ...), "batch_size": (Count, ...)}
LATER = (
    "lr_schedule",
    "decay_from",
    "grow",
    "save_steps",
    "lora",
    "bias_lr_factor",
    "muon_lr_factor",
    "betas",
    "ema_power",
    "ema_gamma",
    "dropout",
    "accumulate",
    "init_from",
)  # left out at their defaults, as before there were such things
MEANING = ("predicts", "schedule", "time", "patch", "mean", "std")  # what weights are learned for
SECTIONS = ("data", "test", "denoiser", "classifier", "objective", "training", "machine")


def check(spec: Table, folder: str | None = None) -> Table:
    """A training spec with every option checked and filled in.

    Raises:
        SpecError: What is wrong with it.
    """
    if "attacks" in spec:
        raise SpecError(
            "this is an evaluation spec: run it by `unfool evaluate`, not `unfool train`"
        )
    for key in spec:
        if key not in SECTIONS:
            raise SpecError(f"a training spec has no {key!r}; it has: {', '.join(SECTIONS)}")
    kind = kind_of(spec)
    for key in ("data", "objective", "training"):
        if key not in spec:
            raise SpecError(f"a training spec needs {key!r}")
    checked: Table = {"data": specs.check_data(spec["data"], folder)}
    if "test" in spec:
        checked["test"] = specs.check_data(spec["test"], folder)
    options = specs.check_section("training", spec["training"], OPTIONS)
    machine = specs.check_section("machine", spec.get("machine", {}), MACHINE)
    if options["ema_gamma"] is not None and options["ema_power"] is not None:
        raise SpecError("training.ema_gamma stands alone: leave out ema_power")
    betas = options["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise SpecError(f"training.betas are two numbers from 0 to below 1, not {betas}")
    if options["optimizer"] == "sgd" and betas != OPTIONS["betas"][1]:
        raise SpecError("training.betas are AdamW's: leave them out, or the optimizer")
    if options["optimizer"] != "muon" and options["muon_lr_factor"] != OPTIONS["muon_lr_factor"][1]:
        raise SpecError("training.muon_lr_factor is Muon's: set optimizer: muon, or leave it out")
    _check_plan(options)
    if wrong := [step for step in options["save_steps"] if not 0 < step <= options["steps"]]:
        raise SpecError(
            f"training.save_steps holds steps from 1 to {options['steps']}, not {wrong[0]}"
        )
    part = specs.check(kind, spec[kind])
    if options["init_from"] is not None:
        _check_start(options["init_from"], kind, part)
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


def kind_of(spec: Table) -> str:
    """`"denoiser"` or `"classifier"`: what a spec trains.

    Raises:
        SpecError: It trains neither, or both.
    """
    kinds = [kind for kind in ("denoiser", "classifier") if kind in spec]
    if len(kinds) != 1:
        raise SpecError("a training spec trains one thing: give it a denoiser or a classifier")
    return kinds[0]


def _check_plan(options: Table) -> None:
    """Whether the steps at which rate and batch change can be, with `grow` filled in."""
    steps, begins = options["steps"], options["decay_from"]
    if begins is not None and options["lr_schedule"] != "linear":
        raise SpecError("training.decay_from is of lr_schedule: linear: set that, or leave it out")
    if begins is not None and not options["warmup"] <= begins < steps:
        raise SpecError(
            f"training.decay_from must be from warmup, {options['warmup']}, to below steps, {steps}, "
            f"not {begins}"
        )
    if options["grow"] is not None:
        options["grow"] = specs.check_section("training.grow", options["grow"], GROW)


def _check_lora(options: Table, kind: str, part: Table) -> Table:
    """What `training.lora` asks, checked."""
    if kind != "denoiser" or part["name"] == "unet" or part.get("weights", "") is None:
        raise SpecError(
            "training.lora fine-tunes a denoiser that is trained: name one, as denoiser: {name: "
            "trained, weights: ...}"
        )
    if options["save_half"]:
        raise SpecError("training.save_half would round away what LoRA learns: leave it out")
    asked = specs.check_section("training.lora", options["lora"], LORA)
    # left out at its default, as before there was such a thing
    return {key: value for key, value in asked.items() if (key, value) != ("dropout", 0)}


def _check_precision(part: Table, lora: Table | None) -> None:
    """Whether the weights that are trained can hold what they learn."""
    try:
        precision = card.network_of("denoiser", part)[0].get("precision", "float32")
    except ValueError:
        return  # there is no such card, which is told when it is built
    if precision != "float32" and (lora is None or part["name"] == "trained"):
        raise SpecError(
            f"the denoiser's weights are in {precision}, which would round away what they learn: give it "
            "precision: float32, or train a new adapter beside them by training.lora"
        )


def _check_start(start: str, kind: str, part: Table) -> None:
    """Whether what `training.init_from` names can be begun with."""
    if part["name"] == "trained":
        raise SpecError(f"{kind} {part['weights']} is trained: leave out training.init_from")
    try:
        told = card.read_card(start)[1]
    except ValueError as error:
        raise SpecError(f"training.init_from: {error}") from error
    if told["kind"] != kind:
        raise SpecError(f"training.init_from names a {told['kind']}; name a {kind}")
    began = card.network_of(kind, told["part"])[0]
    for key in MEANING:
        if key in began and key in part and _listed(began[key]) != _listed(part[key]):
            raise SpecError(
                f"training.init_from: the {key} of {start} is {began[key]}, and that of the {kind} "
                f"{part[key]}: weights of the one mean nothing to the other"
            )


def _listed(value: Any) -> Any:
    """A tuple, as defaults are, as the list that a card says."""
    return list(value) if isinstance(value, tuple) else value


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
