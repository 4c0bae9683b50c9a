"""Read the rows of the table of claims: what papers claim, and what runs measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from unfool.results.attack_roles import EXACT_VIEWS, TRANSFER, view_name
from unfool.results.report_json import (
    AttackSummary,
    CleanReadings,
    CostEntry,
    DoubtEntry,
    KnownNoise,
    Readings,
    ShareEntry,
)
from unfool.results.report_json import Row as AttackRow
from unfool.results.run_folder import Run
from unfool.results.spec import AttackEntry, EvaluationSpec
from unfool.results.summary import summarize_run
from unfool.runtime.validate import read_json

Kind = Literal["transfer", "bpda", "exact", "dw-box", "square", "unbounded"]


class Claim(BaseModel):
    """A claim of a paper. Accuracies are in percent."""

    model_config = ConfigDict(extra="forbid")
    robust: float = Field(ge=0, le=100)
    clean: float | None = Field(None, ge=0, le=100)
    attack: str
    like: Kind | None
    threat: str
    network: str
    images: int | None = Field(None, ge=1)
    source: str


class Entry(BaseModel):
    """A row of bench/claims.yaml."""

    model_config = ConfigDict(extra="forbid")
    title: str
    differs: str
    note: str = ""
    claims: list[Claim] = []


class Measured(TypedDict):
    """What the page needs of a run; a file of bench/claims-rows. The keys are those of its report.json.

    Attributes:
        images: A hash of the images and labels.
        weights: A hash of the weights.
    """

    images: str
    weights: str
    spec: EvaluationSpec
    n: int
    clean: CleanReadings
    robust: Readings
    attacks: list[AttackSummary]
    unbounded: list[AttackRow]
    known_noise: list[KnownNoise]
    doubts: list[DoubtEntry]
    cost: CostEntry


@dataclass(frozen=True)
class Row:
    """A defense, with its claims and the results of its run.

    Attributes:
        name: Name of its entry and of its run folder.
        entry: The claims.
        run: The results of its run; None if it was not run.
    """

    name: str
    entry: Entry
    run: Measured | None

    @property
    def measured(self) -> dict[Kind, ShareEntry]:
        """The accuracy per draw for each kind of attack; the lowest if there are several of a kind."""
        return measured(self.run) if self.run else {}

    @property
    def first(self) -> Claim | None:
        """The claim with which our result is compared; None if there is none."""
        return next(iter(self.entry.claims), None)

    @property
    def alike(self) -> ShareEntry | None:
        """Our accuracy under the kind of attack of the first claim; None if there is none."""
        return self.measured.get(self.first.like) if self.first and self.first.like else None


def read_claims(path: Path) -> dict[str, Entry]:
    """The entries of a file of claims, by name."""
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
        return {name: Entry.model_validate(entry) for name, entry in entries.items()}
    except (OSError, yaml.YAMLError, ValidationError, AttributeError) as error:
        raise SystemExit(f"{path} is no file of claims: {error}") from error


def read_rows(folders: Sequence[Path], entries: Mapping[str, Entry], kept: Path) -> list[Row]:
    """Make a row for each entry, in the order of the file, with its run if there is one.

    Args:
        folders: Folders of runs, named like their entries.
        entries: The claims.
        kept: The folder with rows of earlier calls; a run in `folders` replaces its row.

    Exits if a folder is not a run, has no entry, or differs from the others in images, threat or seed.
    """
    runs: dict[str, Measured] = {}
    for folder in folders:
        name = folder.resolve().name
        if name not in entries:
            raise SystemExit(f"{folder}: there is no row {name!r}; add one to the file of claims")
        try:
            runs[name] = read_run(folder)
        except RuntimeError as error:
            raise SystemExit(str(error)) from error
    for name in entries:
        path = kept / f"{name}.json"
        if name not in runs and path.exists():
            runs[name] = _read_kept(path)
    names = [name for name in entries if name in runs]
    for name in names[1:]:
        if _settings(runs[name]) != _settings(runs[names[0]]):
            raise SystemExit(
                f"{name} has other images, another threat, or another seed than {names[0]}: "
                "run all rows with the same"
            )
    return [Row(name, entry, runs.get(name)) for name, entry in entries.items()]


def _read_kept(path: Path) -> Measured:
    """Read a row that an earlier call kept."""
    try:
        return read_json(Measured, path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}: restore the file, or give the run folder of its row") from error


def read_run(folder: Path) -> Measured:
    """Read what the page needs of a run folder.

    Raises:
        RuntimeError: The folder is not a run, or has no results yet.
    """
    run = Run.open(folder)
    summary: Any = summarize_run(run)
    origin: Any = {key: run.manifest.get(key, "") for key in ("images", "weights")}
    return Measured(
        **{key: origin[key] if key in origin else summary[key] for key in Measured.__annotations__}
    )


def _settings(run: Measured) -> list[Any]:
    """The settings that all rows must share."""
    options = run["spec"]["evaluation"]
    shared = [options.get(key) for key in ("images", "seed", "subset_seed")]
    return [run["images"], run["spec"]["threat"], *shared]


def measured(run: Measured) -> dict[Kind, ShareEntry]:
    """The accuracy per draw of a run for each kind of attack; the lowest if several are of a kind."""
    rows = [*run["attacks"], *run["unbounded"], *run["known_noise"]]
    shares = {row["name"]: row["robust"]["per_draw"] for row in rows}
    lowest: dict[Kind, ShareEntry] = {}
    for attack in run["spec"]["attacks"]:
        kind, share = kind_of(attack), shares.get(attack["label"])
        if kind and share and (kind not in lowest or share["accuracy"] < lowest[kind]["accuracy"]):
            lowest[kind] = share
    return lowest


def kind_of(attack: AttackEntry) -> Kind | None:
    """The kind of an attack, which is its column; None if it belongs to no kind."""
    if "knows" in attack:
        return "dw-box" if attack["knows"] == "both" else None
    if attack["name"] in TRANSFER or view_name(attack) == "classifier-only":
        return "transfer"
    if attack["name"] == "square":
        return "square"
    if attack["name"] in ("stadv", "lf"):
        return "unbounded"
    if view_name(attack) == "bpda":
        return "bpda"
    gradient = attack["name"] in ("pgd", "fgsm", "apgd", "autoattack")
    return "exact" if gradient and view_name(attack) in EXACT_VIEWS else None
