"""Check a training spec and fill in every option."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.models import card
from unfool.ranges import Count, Positive, ShareBelowOne, hints
from unfool.spec import Part
from unfool.spec.menu import MENU
from unfool.training.options import GROW, TrainingOptions

TRAINED = {  # the kind of model that each built-in objective trains; a user's own may train either
    "denoising": "denoiser",
    "addt": "denoiser",
    "adversarial-bridge": "denoiser",
    "consistency": "denoiser",
    "truth-maximization": "denoiser",
    "cross-entropy": "classifier",
    "purified": "classifier",
    "pgd-at": "classifier",
    "trades": "classifier",
    "alp": "classifier",
    "awp": "classifier",
    "macer": "classifier",
}


@dataclass(frozen=True)
class TrainingSection(TrainingOptions):
    """The section `training` of a spec: the options of `train`, and how a model is set up and saved.

    Attributes:
        dropout: The rate of all dropout layers during training; None keeps the network's own rates.
        lora: The adapter to train instead of the weights: `{"rank": 4, "alpha": None, "layers": None,
            "dropout": 0}`, where every key is optional (`models.lora.add`).
        save_half: Whether the weights are saved in float16.
        init_from: The trained model (its folder, or the name of a shipped one) from whose weights
            training starts.
    """

    dropout: ShareBelowOne | None = None
    lora: Mapping[str, Any] | None = None
    save_half: bool = False
    init_from: str | None = None


class LoraSection(TypedDict):
    """The section `training.lora`: the adapter that is trained instead of the weights.

    Attributes:
        rank: The rank of each layer's adapter.
        alpha: The adapter is scaled by alpha / rank; null takes alpha = rank.
        layers: The layers that get an adapter, by their names or a pattern; null takes the
            attention layers.
        dropout: The dropout rate of the adapter in training.
    """

    rank: Count
    alpha: Positive | None
    layers: str | list[str] | None
    dropout: ShareBelowOne


class TrainingMachine(TypedDict):
    """The section `machine` of a training spec: options that affect the speed but no result.

    Attributes:
        device: The device to train on: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        save_every: Steps between checkpoints.
        channels_last: Whether images are stored with their channels last.
        compile: Whether the network is compiled by torch.compile.
    """

    device: str
    save_every: Count
    channels_last: bool
    compile: bool


class TrainingSpec(TypedDict):
    """A checked spec that trains a denoiser or a classifier.

    Attributes:
        data: The training images.
        test: Images for the metrics on the model card.
        denoiser: The denoiser, if one is trained.
        classifier: The classifier, if one is trained.
        objective: The loss.
        training: The fields of `TrainingSection` as JSON values.
        machine: Options that affect the speed but no result.
    """

    data: Part
    test: NotRequired[Part]
    denoiser: NotRequired[Part]
    classifier: NotRequired[Part]
    objective: Part
    training: Mapping[str, Any]
    machine: TrainingMachine


MACHINE: TrainingMachine = {
    "device": "auto",
    "save_every": 500,
    "channels_last": False,
    "compile": False,
}
LORA: LoraSection = {"rank": 4, "alpha": None, "layers": None, "dropout": 0.0}
TRAINING = {f.name: f.default for f in fields(TrainingSection) if f.default is not MISSING}
# the sections that `unfool menu` shows for training: each with its type and its defaults
OPTION_SECTIONS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "training": (TrainingSection, TRAINING),
    "training.lora": (LoraSection, LORA),
    "machine": (TrainingMachine, MACHINE),
}
# options that trained weights depend on, so a model and its `init_from` must agree in them
MUST_MATCH = ("predicts", "schedule", "time", "patch", "mean", "std")
SECTIONS = ("data", "test", "denoiser", "classifier", "objective", "training", "machine")


def check(spec: Mapping[str, Any], folder: str | None = None) -> TrainingSpec:
    """Check every option of a training spec and fill in the defaults.

    Raises:
        SpecError: The spec is invalid; the message says why.
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
            raise SpecError(f"a training spec needs a section {key!r}")
    data = specs.check_data(spec.get("data"), folder)
    test = {"test": specs.check_data(spec.get("test"), folder)} if "test" in spec else {}
    options = _check_options(spec.get("training"))
    machine = specs.check_section("machine", spec.get("machine", {}), TrainingMachine, MACHINE)
    part = specs.check(kind, spec.get(kind))
    if options["init_from"] is not None:
        _check_start(options["init_from"], kind, part)
    if kind == "denoiser":
        _check_precision(part, options["lora"])
    if options["lora"] is not None:
        options["lora"] = _check_lora(options, kind, part)
    objective = specs.check("objective", _with_source(spec.get("objective"), spec.get("denoiser")))
    _check_objective(kind, objective["name"])
    checked: dict[str, Any] = {"data": data, **test, kind: part, "objective": objective}
    return cast(TrainingSpec, checked | {"training": options, "machine": machine})


def kind_of(spec: Mapping[str, Any]) -> Literal["denoiser", "classifier"]:
    """Return the kind of model that a spec trains: `"denoiser"` or `"classifier"`.

    Raises:
        SpecError: The spec trains neither, or both.
    """
    if ("denoiser" in spec) == ("classifier" in spec):
        raise SpecError(
            "a training spec trains one model: give it either a denoiser or a classifier"
        )
    return "denoiser" if "denoiser" in spec else "classifier"


def loop_options(section: TrainingSection, **changes: Any) -> TrainingOptions:
    """Return the options of `train` that a section `training` contains.

    Args:
        section: The section.
        changes: Options that override those of the section.
    """
    names = [field.name for field in fields(TrainingOptions)]
    return TrainingOptions(**{name: getattr(section, name) for name in names} | changes)


def _check_options(section: Any) -> dict[str, Any]:
    """Check the section `training` and fill in its defaults, except for those of `lora`."""
    option_fields, types = fields(TrainingSection), hints(TrainingSection)
    kinds = {field.name: types[field.name] for field in option_fields}
    options = specs.check_options("training", section, kinds, TRAINING)
    options = {name: _as_list(value) for name, value in options.items()}
    if options["grow"] is not None:
        options["grow"] = specs.check_options("training.grow", options["grow"], GROW, {})
    try:
        TrainingSection(**options)
    except ValueError as error:
        raise SpecError(f"training.{error}") from error
    return options


def _check_lora(options: Mapping[str, Any], kind: str, part: Part) -> LoraSection:
    """Check the section `training.lora` and fill in its defaults."""
    if kind != "denoiser" or part["name"] == "unet" or part.get("weights", "") is None:
        raise SpecError(
            "training.lora fine-tunes a trained denoiser: name one, as denoiser: {name: trained, "
            "weights: ...}"
        )
    if options["save_half"]:
        raise SpecError("training.save_half would round away what LoRA learns: leave it out")
    return specs.check_section("training.lora", options["lora"], LoraSection, LORA)


def _check_precision(part: Part, lora: Mapping[str, Any] | None) -> None:
    """Refuse to train weights whose precision is too low for small updates."""
    try:
        precision = card.network_of("denoiser", part)[0].get("precision", "float32")
    except ValueError:
        return  # the card does not exist; building the model reports that
    if precision != "float32" and (lora is None or part["name"] == "trained"):
        raise SpecError(
            f"the denoiser's weights are in {precision}, which would round away what they learn: "
            "set its precision: float32, or train an adapter by training.lora"
        )


def _check_start(start: str, kind: str, part: Part) -> None:
    """Check that training can start from the model that `training.init_from` names."""
    if part["name"] == "trained":
        raise SpecError(
            f"{kind} {part['weights']} is already trained: leave out training.init_from"
        )
    try:
        start_card = card.read_card(start)[1]
    except ValueError as error:
        raise SpecError(f"training.init_from: {error}") from error
    if start_card["kind"] != kind:
        raise SpecError(f"training.init_from names a {start_card['kind']}: name a {kind}")
    start_part = card.resolve_part(start_card["part"])
    for key in MUST_MATCH:
        values = start_part.get(key), part.get(key)
        if values == ("edm", "consistency"):
            continue  # the network has the same inputs, and nearly the same function to learn
        if key in start_part and key in part and _as_list(values[0]) != _as_list(values[1]):
            raise SpecError(
                f"training.init_from: the {key} of {start} is {start_part[key]}, and that of the {kind} "
                f"is {part[key]}: both must be the same, for the weights depend on it"
            )


def _as_list(value: Any) -> Any:
    """Turn a tuple, as in defaults, into a list, as in cards."""
    return list(value) if isinstance(value, tuple) else value


def _with_source(objective: Any, denoiser: Any) -> Part:
    """Complete the source of an objective: a trained model, or a diffusion classifier's denoiser."""
    table: dict[str, Any] = dict(specs.part("objective", objective))
    source = table.get("source")
    if isinstance(source, str) and ":" not in source and source not in MENU["classifier"]:
        source = {"name": "trained", "weights": source}
    if source is not None:
        source = specs.part("classifier", source)
        if source["name"] == "diffusion" and denoiser is not None:
            source = {"denoiser": denoiser, **source}
        table["source"] = source
    return cast(Part, table)


def _check_objective(kind: str, name: str) -> None:
    """Refuse an objective `name` that trains a model of another `kind`."""
    if (wanted := TRAINED.get(name, kind)) != kind:
        others = ", ".join(other for other, trained in TRAINED.items() if trained == kind)
        raise SpecError(
            f"the objective {name} trains a {wanted}, and the spec has a {kind}: name a {wanted}, or "
            f"one of {others}"
        )
