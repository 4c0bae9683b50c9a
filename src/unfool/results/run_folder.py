"""Runs on disk. A run is a folder: what was asked (`run.json`), and what came of each image.

Outcomes are written a block of images at a time, whole or not at all, each block to a file of its
own. So processes share a folder without locks, a kill loses one block, and to resume is to run the
same command again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from unfool.runtime.files import npz_bytes, write_bytes
from unfool.spec import NOT_IN_IDENTITY

VERSION = 1
FORECAST = "forecast.json"
SAME = {  # what runs that share a folder have in common
    "identity": "of another spec",
    "indices": "of another number of images, or of others of the data set",
    "images": "of other images (the data set's contents differ)",
    "code": "by other code (a module that the spec names has changed)",
}
MEASURED = (
    "seconds",
    "cost",
    "made_by",
    "probe",
    "quality",
    "loss_curves",
)  # in what the same image may differ


class HasIndex(Protocol):
    """What became of one image, in whatever kind of run: a dataclass that JSON can hold."""

    @property
    def index(self) -> int:
        """The image's place in the data set."""
        ...


Kept = TypeVar("Kept", bound=HasIndex)


class OutcomeStore(Protocol):
    """Where outcomes go: a run on disk, or what is carried to one."""

    def outcomes(self) -> list["Outcome"]:
        """Those that are there."""
        ...

    def add(self, outcomes: Sequence[Any], examples: Mapping[str, np.ndarray]) -> None:
        """Keep those of a block, and the pictures of those that are shown."""
        ...


@dataclass(frozen=True)
class Condition:
    """What became of one image under one condition: clean, random noise, or an attack.

    Attributes:
        draws: The class the model chose at each held-out draw of its noise.
        undefended: The class that the classifier without its defense chose; None if there is no defense.
        size: The norm of the perturbation, in the threat's norm.
        attacker_error_rate: The share of wrong answers on the attacker's own draws, by which they choose.
        same_image_as: The earlier condition whose image this is, if that one had left the attack
            nothing to do (`evaluation.skip_broken`); empty if it is the attack's own.
    """

    draws: list[int]
    undefended: int | None
    size: float
    attacker_error_rate: float
    same_image_as: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        index: Its place in the data set.
        label: Its class.
        conditions: By name: `clean`, `random`, and each attack.
        chosen: The condition that the attacker would submit, chosen on their own draws.
        seconds: Time spent on it.
        cost: Network calls spent on it.
        made_by: The versions of what did it.
        sanity: What a look at the model showed; on the first images only.
        quality: By condition, how far the image is from the clean one, `before` and `after` it is
            purified (`quality.measure`); empty in runs made before it was measured.
        loss_curves: By attack, its mean loss over its steps (`climb.curves`); empty of those that
            climb no gradient, and in runs made before it was kept.
    """

    index: int
    label: int
    conditions: dict[str, Condition]
    chosen: str
    seconds: float
    cost: dict[str, float]
    sanity: dict[str, Any] = field(default_factory=dict)
    made_by: str = ""
    quality: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    loss_curves: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "Outcome":
        """The outcome that `dataclasses.asdict` wrote."""
        conditions = {name: Condition(**c) for name, c in table["conditions"].items()}
        return cls(**{**table, "conditions": conditions})


@dataclass(frozen=True)
class Run:
    """A folder of outcomes.

    Attributes:
        folder: Where it is.
        manifest: What it was asked: `spec`, `identity`, `images` and `code` (hashes), `indices`,
            `classes`, `versions`, and the `kind` of a run that is not an evaluation.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """What was done: `evaluation`, `certification` or `collection` (of adversarial images)."""
        return self.manifest.get("kind", "evaluation")

    @classmethod
    def begin(
        cls,
        folder: Path,
        manifest: Mapping[str, Any],
        fingerprint: Callable[[Sequence[int]], str] | None = None,
    ) -> "Run":
        """Open the run at `folder`, or start it.

        Args:
            folder: Where it is.
            manifest: What the run is to do.
            fingerprint: The hash of the images at some indices (`images` of what is asked). With it, a
                run on fewer of the same images grows to those that are asked, and keeps its outcomes.

        Raises:
            RuntimeError: The folder holds a run of another spec, on other images, on more of them, or
                by other code.
            OSError: The folder cannot be written.
        """
        if (folder / "run.json").exists() and any((folder / "outcomes").glob("*.jsonl")):
            run = cls.open(folder)
            held, wanted = (set(told.get("indices", ())) for told in (run.manifest, manifest))
            if wanted < held and run.manifest.get("identity") == manifest.get("identity"):
                raise RuntimeError(
                    f"{folder} holds a run on {len(held)} images, and this asks for {len(wanted)} of "
                    "them; ask for as many or more, or name another folder with --out"
                )
            grows = held < wanted and run.manifest["images"] == _hash_if_known(
                fingerprint, run.manifest["indices"]
            )
            for key in SAME:
                if (key == "indices" and held < wanted) or (key == "images" and grows):
                    continue
                if run.manifest.get(key) != manifest.get(key):
                    raise RuntimeError(
                        f"{folder} holds a run {_other(key, run.manifest, manifest)}; name another "
                        "folder with --out"
                    )
            if not grows:
                return run
        run = cls(folder, {"version": VERSION, **manifest})
        write_bytes(folder / "run.json", (json.dumps(run.manifest, indent=1) + "\n").encode())
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run at `folder`.

        Raises:
            RuntimeError: There is none, or one of another version of the format.
        """
        path = Path(folder) / "run.json"
        if not path.is_file():
            raise RuntimeError(
                f"{folder} is no run: it has no run.json; name a folder that `unfool evaluate` (or "
                "`attack`, or `certify`) was given as --out, or one in runs/"
            )
        try:
            asked = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise RuntimeError(f"{path} is damaged ({error})") from error
        if asked.get("version") != VERSION:
            raise RuntimeError(f"{path} is of format {asked.get('version')}, this is {VERSION}")
        return cls(Path(folder), asked)

    def add(self, outcomes: Sequence[HasIndex], examples: Mapping[str, np.ndarray]) -> None:
        """Write a block of outcomes, and the pictures of those that are shown."""
        tables: list[Any] = list(outcomes)
        lines = "".join(json.dumps(asdict(table)) + "\n" for table in tables).encode()
        # The name holds the contents, so that no two processes can write over each other.
        name = f"{outcomes[0].index:07}-{hashlib.sha256(lines).hexdigest()[:8]}"
        if examples:
            write_bytes(self.folder / "examples" / f"{name}.npz", npz_bytes(examples))
        write_bytes(self.folder / "outcomes" / f"{name}.jsonl", lines)

    def outcomes(self) -> list[Outcome]:
        """All outcomes of an evaluation so far, by index.

        Raises:
            RuntimeError: A file is damaged, or the run is no evaluation.
        """
        if self.kind != "evaluation":
            raise RuntimeError(f"{self.folder} holds a {self.kind}; this works on an evaluation")
        return self.read(Outcome.from_dict)

    def read(self, of: Callable[[dict[str, Any]], Kept]) -> list[Kept]:
        """All facts so far, by index, each made by `same_image_as` from the table that was written.

        Raises:
            RuntimeError: A file is damaged.
        """
        found: dict[int, Kept] = {}
        for path in sorted((self.folder / "outcomes").glob("*.jsonl")):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                try:
                    fact = of(json.loads(line))
                    found[fact.index] = fact
                except (ValueError, TypeError, KeyError) as error:
                    raise RuntimeError(
                        f"{path} is damaged in line {number}; delete the file and run the same "
                        "command again: only its images are done anew"
                    ) from error
        return [found[index] for index in sorted(found)]

    def forecast(self) -> dict[str, Any] | None:
        """What was forecast of its cost (`forecast.Forecast.keep`); None if nothing was."""
        path = self.folder / FORECAST
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def examples(self, names: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        """The pictures kept of each block, by index; only these arrays, if any are named."""
        for path in sorted((self.folder / "examples").glob("*.npz")):
            with np.load(path) as file:
                yield {name: file[name] for name in names or file}


def _hash_if_known(
    fingerprint: Callable[[Sequence[int]], str] | None, indices: Sequence[int]
) -> str | None:
    """The hash of the images at `indices`; None if it cannot be told of these alone."""
    try:
        return None if fingerprint is None else fingerprint(indices)
    except ValueError:  # pictures that go by their order, not by `indices`
        return None


def _other(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What two runs that differ in `key` are of, told apart from one another."""
    if key == "identity" and _words(a) == _words(b):
        return "of other weights or images (a file that the spec names has changed)"
    return SAME[key]


def _words(asked: Mapping[str, Any]) -> Any:
    """What a run was asked in words: its kind and spec, less what is no part of an identity."""
    spec = json.loads(json.dumps({k: v for k, v in asked["spec"].items() if k != "machine"}))
    kept = {
        key: {k: v for k, v in part.items() if k not in (*NOT_IN_IDENTITY, "images")}
        if isinstance(part, dict)
        else part
        for key, part in spec.items()
    }
    return asked.get("kind"), kept


@dataclass(frozen=True)
class _Told:
    """A fact of any kind of run, as it was written."""

    table: dict[str, Any]

    @property
    def index(self) -> int:
        return self.table["index"]


def merge(folders: Sequence[Path], out: Path) -> Run:
    """Put the outcomes of several folders of the same run into one.

    Raises:
        RuntimeError: They are not of the same spec, or disagree about an image.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        for key in SAME:
            if run.manifest.get(key) != runs[0].manifest.get(key):
                what = _other(key, run.manifest, runs[0].manifest)
                raise RuntimeError(f"{run.folder} and {folders[0]} differ: one is {what}")
    whole = Run.begin(out, runs[0].manifest)
    facts: dict[int, tuple[Path, Any]] = {}
    for run in (whole, *runs):
        for entry in run.read(_Told):
            fact = {key: value for key, value in entry.table.items() if key not in MEASURED}
            folder, known = facts.setdefault(entry.index, (run.folder, fact))
            if known != fact:
                raise RuntimeError(
                    f"{folder} and {run.folder} disagree about image {entry.index}: they were made "
                    "by other models or machines; merge shards that do not overlap"
                )
    for run in runs:
        for kind in ("examples", "outcomes"):
            for path in sorted((run.folder / kind).glob("*.*")):
                target = whole.folder / kind / path.name
                if not target.exists():
                    write_bytes(target, path.read_bytes())
    return whole
