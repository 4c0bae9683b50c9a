"""Check an evaluation spec: every section and option, before anything heavy is loaded."""

from collections.abc import Mapping
from typing import Any, cast

from typing_extensions import TypedDict

from unfool import spec as specs
from unfool.defenses.aggregate import By
from unfool.errors import SpecError
from unfool.ranges import Count
from unfool.results.spec import (
    AttackEntry,
    DefenseSpec,
    EvaluationSection,
    EvaluationSpec,
    MachineSection,
    ModelSpec,
    Paths,
    ThreatSection,
)
from unfool.runtime.validate import truncated_repr
from unfool.spec import Part, menu
from unfool.spec.tables import without
from unfool.threat import Knowledge

SECTIONS = (
    "data",
    "classifier",
    "denoiser",
    "purifier",
    "paths",
    "threat",
    "attacks",
    "evaluation",
    "machine",
)
ATTACK_FLAGS = ("bounded", "adversarial")  # attributes that an attack may set to False
# Views that use the classifier and the purifier separately.
DEFENSE_VIEWS = ("adjoint", "bpda", "classifier-only", "surrogate", "surrogate-same-noise")
RESERVED = ("clean", "random", "robust")  # rows of a report that are not attacks
EVALUATION: EvaluationSection = {
    "images": None,
    "subset_seed": 0,
    "seed": 0,
    "draws": 8,
    "examples": 8,
    "skip_broken": False,
    "lpips": False,
    "curtail": False,
}
MACHINE: MachineSection = {
    "device": "auto",
    "batch_size": 256,
    "images_per_block": 32,
    "execution": "plain",
    "engine": "local",
    "cluster": None,
}

PATHS = {"by": "softmax"}


class PathsSection(TypedDict):
    """The section `paths`: several purifications of an image, classified together.

    Attributes:
        count: The number of purifications.
        by: How they are combined into one answer: by the mean of the logits, the mean of the
            softmax, or votes.
    """

    count: Count
    by: By


class AttackOptions(TypedDict):
    """The section `attacks`: a list of attacks, each with options of its own and these.

    Attributes:
        name: An attack of the menu, or `module:attribute`.
        view: The version of the model that the attack works on (`unfool menu view`).
        label: The name of the attack in the report, different for each attack.
        knows: The noise of the defense that the attacker knows: `forward`, `reverse`, `both`, or
            `semi-128` or `semi-128-steps` with any number; null for none.
    """

    name: str
    view: str | Part
    label: str
    knows: str | None


# Sections that `unfool menu` describes although they are not parts, with their defaults.
OPTION_SECTIONS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "evaluation": (EvaluationSection, EVALUATION),
    "machine": (MachineSection, MACHINE),
    "paths": (PathsSection, PATHS),
    "threat": (ThreatSection, {}),
    "attacks": (
        AttackOptions,
        {"view": "exact", "label": "the name and the view, and the noise it knows", "knows": None},
    ),
}


def check(spec: Mapping[str, Any], folder: str | None = None) -> EvaluationSpec:
    """Check an evaluation spec and fill in every option.

    Args:
        spec: What `spec.load` read.
        folder: The folder that data sets are read from.

    Raises:
        SpecError: The spec is wrong.
    """
    if spec.get("sweep") is not None:
        raise SpecError(
            "this spec has a sweep: run it by `unfool sweep`, or add `--set sweep=null` to "
            "evaluate only the settings outside the sweep"
        )
    spec = without(spec, "sweep")
    if "training" in spec:
        raise SpecError("this is a training spec: run it by `unfool train`, not `unfool evaluate`")
    if "certification" in spec:
        raise SpecError("this is a certification spec: run it by `unfool certify`")
    for key in spec:
        if key not in SECTIONS:
            near = menu.hint(key, SECTIONS)
            raise SpecError(f"an evaluation spec has no {key!r}; {near}")
    for key in ("data", "classifier", "threat", "attacks"):
        if key not in spec:
            raise SpecError(f"an evaluation spec needs a section {key!r}")
    model = check_model(spec)
    return {
        "data": specs.check_data(spec.get("data"), folder),
        **model,
        "threat": _check_threat(spec.get("threat")),
        "attacks": _check_attacks(spec.get("attacks"), defended="purifier" in model),
        "evaluation": specs.check_section(
            "evaluation", spec.get("evaluation", {}), EvaluationSection, EVALUATION
        ),
        "machine": check_machine(spec.get("machine", {})),
    }


def _check_threat(section: Any) -> ThreatSection:
    threat = specs.check_section("threat", section, ThreatSection)
    if threat["norm"] in ("linf", "l0") and threat["eps"] > 1:
        units = {
            "linf": "in units of [0, 1] pixels (such as 8/255)",
            "l0": "as a share of the pixels",
        }
        norm = threat["norm"]
        raise SpecError(
            f"threat.eps of {norm} must be at most 1, {units[norm]}, not {threat['eps']}"
        )
    return threat


def _check_attacks(attacks: Any, defended: bool) -> list[AttackEntry]:
    if not isinstance(attacks, list):
        raise SpecError(
            "attacks must be a list of attacks, each with a name, and optionally a view and a "
            f"label, not {truncated_repr(attacks)}"
        )
    checked: list[AttackEntry] = []
    for position, attack in enumerate(attacks):
        row = _check_attack(attack, f"attacks.{position}", defended)
        if row["label"] in RESERVED:
            raise SpecError(
                f"the label {row['label']!r} is reserved for a row of the report: give the attack "
                "another `label`"
            )
        if row["label"] in {c["label"] for c in checked}:
            raise SpecError(
                f"two attacks have the label {row['label']!r}: give one of them another `label`"
            )
        checked.append(row)
    return checked


def _check_attack(attack: Any, where: str, defended: bool) -> AttackEntry:
    """Check an attack at the path `where` of the spec."""
    table: dict[str, Any] = dict(specs.part("attack", attack))
    view, label = _check_view(table.pop("view", "exact"), where), table.pop("label", None)
    knows = _check_knows(table.pop("knows", None), where)
    for key in ATTACK_FLAGS:
        table.pop(key, None)  # present in a checked spec; set again below from the attack itself
    if label is not None and not (isinstance(label, str) and label and label.isprintable()):
        raise SpecError(f"{where}.label must be printable text, not {truncated_repr(label)}")
    view_name = specs.part("view", view)["name"]
    if view_name in DEFENSE_VIEWS and not defended:
        raise SpecError(f"the view {view_name!r} needs a purifier: leave it out, or add a purifier")
    part = specs.check("attack", table, where)
    default_label = f"{part['name'].rpartition(':')[2]}-{view_name}" + (
        f"-{knows}" if knows else ""
    )
    row: dict[str, Any] = {**part, "view": view, "label": label or default_label}
    row |= {"knows": knows} if knows else {}
    attack_part = menu.find("attack", part["name"])
    row |= {key: False for key in ATTACK_FLAGS if not getattr(attack_part, key, True)}
    return cast(AttackEntry, row)


def _check_knows(word: Any, where: str) -> str | None:
    if word is None:
        return None
    try:
        return Knowledge(str(word)).word
    except ValueError as error:
        raise SpecError(f"{where}.{error}") from error


def _check_view(view: Any, where: str) -> Any:
    """Return a view as its bare name, or as a table if it has options."""
    if not isinstance(view, str | dict):
        raise SpecError(
            f"{where}.view must be a word, or a table with a name, not {truncated_repr(view)}"
        )
    table = specs.part("view", view)
    if len(table) == 1 and not menu.is_callable_part("view", menu.find("view", table["name"])):
        return table["name"]  # a user's own class, which takes only the model
    checked = specs.check("view", table, f"{where}.view")
    plain = len(checked) == 1 or checked == {"name": "no-elimination", "draws": None}
    return checked["name"] if plain else checked


def check_model(spec: Mapping[str, Any]) -> ModelSpec:
    """Check the parts of a spec that make the model: classifier, denoiser, purifier, and paths.

    Raises:
        SpecError: A part is wrong, or the classifier is missing.
    """
    if "classifier" not in spec:
        raise SpecError("the spec needs a section 'classifier'")
    checked: ModelSpec = {
        "classifier": specs.check("classifier", spec.get("classifier")),
        **check_purifier(spec),
    }
    if spec.get("paths") is not None:
        if "purifier" not in checked:
            raise SpecError(
                "paths are several purifications of one image, and there is no purifier: add one, "
                "or leave paths out"
            )
        paths = specs.check_section("paths", spec.get("paths"), PathsSection, PATHS)
        checked["paths"] = cast(Paths, paths)
    return checked


def check_purifier(spec: Mapping[str, Any]) -> DefenseSpec:
    """Check the denoiser and the purifier of a spec, if it has them.

    Raises:
        SpecError: A part is wrong, or the purifier lacks its denoiser.
    """
    checked: DefenseSpec = {}
    if spec.get("denoiser") is not None:
        checked["denoiser"] = specs.check("denoiser", spec.get("denoiser"))
    if spec.get("purifier") is not None:
        checked["purifier"] = specs.check("purifier", spec.get("purifier"))
        needs = specs.argument_names("purifier", checked["purifier"])
        if "denoiser" in needs and "denoiser" not in checked:
            name = checked["purifier"]["name"]
            raise SpecError(
                f"the purifier {name} needs a denoiser: add a section denoiser to the spec"
            )
    return checked


def check_machine(section: Any) -> MachineSection:
    """Check the section `machine` and fill it in.

    Raises:
        SpecError: An option is unknown or does not fit, or a cluster is named without the engine
            Ray.
    """
    machine = specs.check_section("machine", section, MachineSection, MACHINE)
    if machine.get("cluster") is not None and machine["engine"] != "ray":
        raise SpecError(
            "machine.cluster is an address of Ray, and the engine is not Ray: add --set "
            "machine.engine=ray, or leave the cluster out by --set machine.cluster=null"
        )
    return machine


def refuse_ray(machine: MachineSection, what: str) -> None:
    """Refuse the engine Ray of a checked section `machine` for `what`, which cannot run on it.

    Raises:
        SpecError: The engine is Ray.
    """
    if machine["engine"] == "ray":
        raise SpecError(
            f"machine.engine: {what} does not run on Ray, only `unfool evaluate` and `unfool "
            "sweep` do: use --set machine.engine=local --set machine.cluster=null"
        )
