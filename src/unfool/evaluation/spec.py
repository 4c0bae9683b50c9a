"""Check an evaluation spec: every section and option, before anything heavy is loaded."""

from typing import Any, Literal

from unfool import spec as specs
from unfool.defenses.aggregate import By
from unfool.diffusion.execution import Execution
from unfool.errors import SpecError
from unfool.ranges import Count, CountFromZero, NotNegative
from unfool.spec import Table, menu
from unfool.threat import Knowledge, Norm

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
ATTACK_FLAGS = ("bounded", "adversarial")  # what an attack says of itself
DEFENSE_VIEWS = (
    "adjoint",
    "bpda",
    "classifier-only",
    "surrogate",
    "surrogate-same-noise",
)  # views that take a defense apart
RESERVED = ("clean", "random", "robust")  # rows of a report that are no attack's
EVALUATION: dict[str, tuple[Any, Any]] = {
    "images": (Count | None, None),  # pyright: ignore[reportOperatorIssue]
    "subset_seed": (int, 0),
    "seed": (int, 0),
    "draws": (Count, 8),
    "examples": (CountFromZero, 8),
    "skip_broken": (bool, False),
    "lpips": (bool, False),
}
MACHINE: dict[str, tuple[Any, Any]] = {
    "device": (str, "auto"),
    "batch_size": (Count | Literal["auto"], 256),
    "images_per_block": (Count, 32),
    "execution": (Execution, "plain"),
    "engine": (Literal["local", "ray"], "local"),
    "cluster": (str | None, None),
}
THREAT: dict[str, tuple[Any, Any]] = {"norm": (Norm, ...), "eps": (NotNegative, ...)}
PATHS: dict[str, tuple[Any, Any]] = {"count": (Count, ...), "by": (By, "softmax")}


def check(spec: Table, folder: str | None = None) -> Table:
    """An evaluation spec with every option checked and filled in.

    Args:
        spec: What `spec.load` read.
        folder: Where data sets are read from.

    Raises:
        SpecError: What is wrong with it.
    """
    if spec.get("sweep") is not None:
        raise SpecError(
            "this spec has a sweep: run it by `unfool sweep`; or, for its values outside of the "
            "sweep alone, by `unfool evaluate` with `--set sweep=null`"
        )
    spec = {key: value for key, value in spec.items() if key != "sweep"}
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
            raise SpecError(f"an evaluation spec needs {key!r}")
    checked = {"data": specs.check_data(spec["data"], folder)} | check_model(spec)
    threat = specs.check_section("threat", spec["threat"], THREAT)
    if threat["norm"] in ("linf", "l0") and threat["eps"] > 1:
        units = {"linf": "in units of [0, 1] pixels (8/255, say)", "l0": "the share of places"}
        norm = threat["norm"]
        raise SpecError(f"threat.eps of {norm} is at most 1, {units[norm]}, not {threat['eps']}")
    options = specs.check_section("evaluation", spec.get("evaluation", {}), EVALUATION)
    machine = check_machine(spec.get("machine", {}))
    return checked | {
        "threat": threat,
        "attacks": _check_attacks(spec["attacks"], defended="purifier" in checked),
        "evaluation": options,
        "machine": machine,
    }


def _check_attacks(attacks: Any, defended: bool) -> list[Table]:
    if not isinstance(attacks, list):
        raise SpecError("attacks must be a list; each has a name, and may have a view and a label")
    checked: list[Table] = []
    for attack in attacks:
        table = dict(specs.part("attack", attack))
        view, label = _check_view(table.pop("view", "exact")), table.pop("label", None)
        knows = _check_knows(table.pop("knows", None))
        for key in ATTACK_FLAGS:
            table.pop(key, None)  # of a checked spec; what is named says it
        if not isinstance(label or "", str):
            raise SpecError(f"attack.label must be a word, not {label!r}")
        seen = specs.part("view", view)["name"]
        if seen in DEFENSE_VIEWS and not defended:
            raise SpecError(f"the view {seen!r} needs a purifier: leave it out, or add a purifier")
        row = specs.check("attack", table)
        said = f"{row['name'].rpartition(':')[2]}-{seen}" + (f"-{knows}" if knows else "")
        row |= {"view": view, "label": label or said} | ({"knows": knows} if knows else {})
        found = menu.find("attack", row["name"])
        row |= {key: False for key in ATTACK_FLAGS if not getattr(found, key, True)}
        if row["label"] in RESERVED:
            raise SpecError(
                f"{row['label']!r} is a row of its own: give the attack another `label`"
            )
        if row["label"] in {c["label"] for c in checked}:
            raise SpecError(f"two attacks are called {row['label']!r}: give one another `label`")
        checked.append(row)
    return checked


def _check_knows(word: Any) -> str | None:
    if word is None:
        return None
    try:
        return Knowledge(str(word)).word
    except ValueError as error:
        raise SpecError(f"attack.{error}") from error


def _check_view(view: Any) -> Any:
    """A view as its bare name; or with its options, if it takes any, as a table."""
    if not isinstance(view, str | dict):
        raise SpecError(f"attack.view must be a word, or a table with a name, not {view!r}")
    table = specs.part("view", view)
    if len(table) == 1 and not menu.is_callable_part("view", menu.find("view", table["name"])):
        return table["name"]  # a class of one's own, made from the model alone
    checked = specs.check("view", table)
    plain = len(checked) == 1 or checked == {"name": "no-elimination", "draws": None}
    return checked["name"] if plain else checked


def check_model(spec: Table) -> Table:
    """The parts of a spec that make the model: classifier, and denoiser, purifier, paths if any.

    Raises:
        SpecError: What is wrong with them.
    """
    if "classifier" not in spec:
        raise SpecError("the spec needs 'classifier'")
    checked = {"classifier": specs.check("classifier", spec["classifier"])} | check_purifier(spec)
    if spec.get("paths") is not None:
        if "purifier" not in checked:
            raise SpecError(
                "paths are purifications of one image: add a purifier, or leave them out"
            )
        checked["paths"] = specs.check_section("paths", spec["paths"], PATHS)
    return checked


def check_purifier(spec: Table) -> Table:
    """The denoiser and the purifier of a spec, if it has them.

    Raises:
        SpecError: What is wrong with them.
    """
    checked: Table = {}
    if spec.get("denoiser") is not None:
        checked["denoiser"] = specs.check("denoiser", spec["denoiser"])
    if spec.get("purifier") is not None:
        checked["purifier"] = specs.check("purifier", spec["purifier"])
        needs = specs.argument_names("purifier", checked["purifier"])
        if "denoiser" in needs and "denoiser" not in checked:
            name = checked["purifier"]["name"]
            raise SpecError(f"the purifier {name} needs a denoiser: add that part to the spec")
    return checked


def check_machine(section: Any) -> Table:
    """The section `machine`, checked and filled in.

    Raises:
        SpecError: An option is not known or does not fit, or a cluster is named that nobody asks.
    """
    machine = specs.check_section("machine", section, MACHINE)
    if machine["cluster"] is not None and machine["engine"] != "ray":
        raise SpecError(
            "machine.cluster is an address of Ray: add machine.engine=ray, or leave the cluster out "
            "(--set machine.cluster=null)"
        )
    return machine


def refuse_ray(machine: Table, what: str) -> None:
    """Let `what` begin only where it obeys the engine of a checked section `machine`.

    Raises:
        SpecError: The engine is Ray.
    """
    if machine["engine"] == "ray":
        raise SpecError(
            f"machine.engine: {what} is done by this process alone; Ray does `unfool evaluate` and "
            "`unfool sweep`: use --set machine.engine=local --set machine.cluster=null"
        )
