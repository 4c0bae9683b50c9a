"""Runs on disk. A run is a folder with its checked spec (`run.json`) and the outcome of each image.

Outcomes are written one block of images at a time, whole or not at all, each block to its own file.
So processes share a folder without locks, a killed process loses one block, and repeating the
command resumes a run.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from unfool.results.example_images import describe_damage
from unfool.results.manifest import Format, KeptForecast, Manifest
from unfool.results.outcome import Condition, Indexed, Line, Outcome
from unfool.results.spec import CertificationSpec, EvaluationSpec
from unfool.runtime.files import hash_of_json, npz_bytes, raise_system_error, write_bytes
from unfool.runtime.validate import from_json, read_json
from unfool.spec import NOT_IN_IDENTITY

VERSION = 1
FORECAST = "forecast.json"
STARTS = "starts"  # folder of the processes that worked on a run (`results.starts`)
REPEAT_ADVICE = "delete the file and run the same command again, which repeats only its images"
DELETE_ADVICE = "delete it, and the report then shows fewer images"
MUST_MATCH = {  # what runs that share a folder must have in common
    "identity": "of another spec",
    "indices": "on another number of images, or on others of the data set",
    "images": "on other images (the data set's contents differ)",
    "code": "with other code (a module that the spec names, or one that it imports, has changed)",
    "weights": "with other weights (the model or an attack was built with others)",
}


class HasIndex(Protocol):
    """The result of one image in any kind of run: a dataclass that can be written as JSON."""

    @property
    def index(self) -> int:
        """The image's place in the data set."""
        ...


Record = TypeVar("Kept", bound=HasIndex)


class OutcomeStore(Protocol):
    """A store of outcomes: a run on disk, or a block on its way to one."""

    def outcomes(self) -> list[Outcome]:
        """Return the stored outcomes."""
        ...

    def add(self, outcomes: Sequence[Any], examples: Mapping[str, np.ndarray]) -> None:
        """Store the outcomes of a block, and the arrays of its examples."""
        ...


@dataclass(frozen=True)
class Run:
    """A folder of outcomes.

    Attributes:
        folder: The path of the folder.
        manifest: The description of the run (`run.json`).
    """

    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        """The kind: `evaluation`, `certification`, or `collection` (of adversarial images)."""
        return self.manifest.get("kind", "evaluation")

    @property
    def spec(self) -> EvaluationSpec:
        """The spec of an evaluation, or of a collection.

        Raises:
            RuntimeError: The run is a certification.
        """
        if self.kind == "certification":
            raise RuntimeError(
                f"{self.folder} holds a {self.kind}, and this needs an evaluation: name the folder "
                "of one"
            )
        return cast(EvaluationSpec, self.manifest["spec"])

    @classmethod
    def begin(
        cls,
        folder: Path,
        manifest: Manifest,
        fingerprint: Callable[[Sequence[int]], str] | None = None,
    ) -> "Run":
        """Open the run at `folder`, or start it.

        Args:
            folder: The path of the folder.
            manifest: The description of the run.
            fingerprint: Hashes the images at some indices (`images` of the manifest). With it, a
                run on fewer of the same images grows to those requested, and keeps its outcomes.

        Raises:
            RuntimeError: The folder holds another run (its spec, code, weights, or images differ),
                or a run on more images; or it holds outcomes without a run.json.
            OSError: The folder cannot be written.
        """
        begun = any((folder / "outcomes").glob("*.jsonl"))
        if begun and not (folder / "run.json").exists():
            raise RuntimeError(
                f"{folder} holds outcomes but no run.json, which says what run they belong to: put "
                f"run.json back, delete {folder / 'outcomes'}, or name another folder with --out"
            )
        if begun:
            run = cls.open(folder)
            held, wanted = (set(told["indices"]) for told in (run.manifest, manifest))
            if wanted < held and run.manifest["identity"] == manifest["identity"]:
                raise RuntimeError(
                    f"{folder} holds a run on {len(held)} images, and this spec asks for only "
                    f"{len(wanted)} of them: ask for as many or more, or name another folder with "
                    "--out"
                )
            grows = held < wanted and run.manifest["images"] == _hash_if_known(
                fingerprint, run.manifest["indices"]
            )
            for key in MUST_MATCH:
                if (key == "indices" and held < wanted) or (key == "images" and grows):
                    continue
                if run.manifest.get(key) != manifest.get(key):
                    raise RuntimeError(
                        f"{folder} holds a run {_describe_difference(key, run.manifest, manifest)}: name another "
                        "folder with --out"
                    )
            if not grows:
                return run
        asked: Manifest = {"version": VERSION, **manifest}
        asked["sha256"] = seal(asked)
        run = cls(folder, asked)
        write_bytes(folder / "run.json", (json.dumps(run.manifest, indent=1) + "\n").encode())
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open the run at `folder`.

        Raises:
            RuntimeError: There is no run, its format differs, or run.json is damaged or was
                changed.
        """
        path = Path(folder) / "run.json"
        if not path.is_file():
            raise RuntimeError(
                f"{folder} is not a run folder, for it has no run.json: name a folder that `unfool "
                "evaluate` (or `attack`, or `certify`) was given as --out, or one in runs/"
            )
        try:
            if (found := read_json(Format, path)["version"]) != VERSION:
                raise RuntimeError(
                    f"{path} has format {found}, and this version of unfool reads format "
                    f"{VERSION}: use the version that wrote it"
                )
            run = cls(Path(folder), read_json(Manifest, path))
            kind = CertificationSpec if run.kind == "certification" else EvaluationSpec
            from_json(kind, json.dumps(run.manifest["spec"]), f"{path}, spec")
        except ValueError as error:
            raise RuntimeError(
                f"{error}: the file is damaged, or was not written by unfool"
            ) from error
        if run.manifest.get("sha256", seal(run.manifest)) != seal(run.manifest):
            raise RuntimeError(
                f"{path} has changed since the run began (its sha256 differs), so nobody can tell "
                f"what was run: put the original back, or delete {folder} and run again"
            )
        return run

    def add(self, outcomes: Sequence[HasIndex], examples: Mapping[str, np.ndarray]) -> None:
        """Write the outcomes of a block, and the arrays of its examples.

        Raises:
            RuntimeError: The folder was moved or deleted since the run began.
            OSError: The folder cannot be written, or the disk is full.
        """
        if not (self.folder / "run.json").is_file():
            raise RuntimeError(
                f"{self.folder} was moved or deleted during the run, so the results of "
                f"{len(outcomes)} images were not saved: put it back, and run the same command "
                "again"
            )
        tables: list[Any] = list(outcomes)
        lines = "".join(json.dumps(asdict(table)) + "\n" for table in tables).encode()
        # The name holds the contents, so that no two processes can write over each other.
        name = f"{outcomes[0].index:07}-{self._content_hash(lines)}"
        if examples:
            write_bytes(self.folder / "examples" / f"{name}.npz", npz_bytes(examples))
        write_bytes(self.folder / "outcomes" / f"{name}.jsonl", lines)

    def outcomes(self) -> list[Outcome]:
        """Return all outcomes of an evaluation so far, sorted by index.

        Raises:
            RuntimeError: The run is not an evaluation, or a file is damaged or does not fit the
                run.
        """
        if self.kind != "evaluation":
            raise RuntimeError(
                f"{self.folder} holds a {self.kind}, and this needs an evaluation: name the folder "
                "of one"
            )
        draws, curtail = draws_of(self.spec), self.spec["evaluation"].get("curtail", False)
        found = self.read(Outcome)
        for outcome in found:
            held = {
                name: _draws_of_verdict(condition, outcome.label, curtail)
                for name, condition in outcome.conditions.items()
            }
            if held != draws or outcome.chosen not in held:
                raise RuntimeError(
                    f"the outcome of image {outcome.index} in {self.folder / 'outcomes'} does not "
                    f"belong to this run (its conditions have the draws {held}, of which the "
                    f"attacker chose {outcome.chosen!r}, and run.json asks for {draws}): {REPEAT_ADVICE}"
                )
        return found

    def read(self, of: type[Record]) -> list[Record]:
        """Return all records so far, sorted by index.

        Args:
            of: The dataclass of a record.

        Raises:
            RuntimeError: A file is damaged, belongs to another run, holds an image that is not in
                the run, or disagrees with another file about an image.
        """
        found: list[Record] = []
        for line in self.lines():
            try:
                found.append(from_json(of, line.text, line.location))
            except ValueError as error:
                raise RuntimeError(f"{error}; {REPEAT_ADVICE}") from error
        return found

    def lines(self) -> list[Line]:
        """Return all records so far as they were written, one for each image, sorted by index.

        Raises:
            RuntimeError: A file is damaged, belongs to another run, holds an image that is not in
                the run, or disagrees with another file about an image.
        """
        known, found = set(self.manifest["indices"]), dict[int, Line]()
        for path in sorted((self.folder / "outcomes").glob("*.jsonl")):
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] != self._content_hash(content):
                raise RuntimeError(
                    f"{path} is damaged, was changed, or belongs to another run (its name does not "
                    f"match its contents): {REPEAT_ADVICE}"
                )
            for number, text in enumerate(content.splitlines(), 1):
                place = f"{path}, line {number}"
                try:
                    line = Line(from_json(Indexed, text, place)["index"], text, place)
                except ValueError as error:
                    raise RuntimeError(f"{error}; {REPEAT_ADVICE}") from error
                if line.index not in known:
                    raise RuntimeError(
                        f"{place} holds image {line.index}, which is not in the run: {REPEAT_ADVICE}"
                    )
                if (
                    found.setdefault(line.index, line).reproducible_part()
                    != line.reproducible_part()
                ):
                    raise RuntimeError(
                        f"{found[line.index].location} and {place} disagree about image {line.index}: "
                        "different models or machines computed them; delete one of the files, and "
                        "run the same command again"
                    )
        return [found[index] for index in sorted(found)]

    def _content_hash(self, content: bytes) -> str:
        """Return eight hexadecimal digits that identify the contents of a file of this run."""
        identity = self.manifest["identity"].encode()
        return hashlib.sha256(identity + b"\n" + content).hexdigest()[:8]

    def forecast(self) -> KeptForecast | None:
        """Return the forecast of the run's cost (`forecast.Forecast.keep`); None if there is none.

        Raises:
            RuntimeError: The file is damaged.
        """
        path = self.folder / FORECAST
        try:
            return read_json(KeptForecast, path) if path.is_file() else None
        except ValueError as error:
            raise RuntimeError(
                f"{error}; delete the file, which the report does not need"
            ) from error

    def examples(self, names: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arrays of each block's examples, by index; if `names` are given, only these.

        Raises:
            RuntimeError: A file is damaged.
            OSError: A file cannot be opened or read.
        """
        for path in sorted((self.folder / "examples").glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    block = {name: file[name] for name in names or file}
            except Exception as error:  # a damaged archive may raise anything
                raise_system_error(error)
                raise RuntimeError(f"{path} is damaged ({error}); {DELETE_ADVICE}") from error
            if wrong := describe_damage(block, names):
                raise RuntimeError(f"{path} is damaged ({wrong}); {DELETE_ADVICE}")
            yield block


def seal(manifest: Manifest) -> str:
    """The sha256 of a manifest, which does not depend on the layout of the file."""
    told = {key: value for key, value in manifest.items() if key != "sha256"}
    return hash_of_json(told)


def draws_of(spec: EvaluationSpec) -> dict[str, int]:
    """The number of draws under each condition: one if the attacker knows all of the noise."""
    draws = spec["evaluation"]["draws"]
    names = ["clean", *(["random"] if spec["attacks"] else [])]
    known = {row["label"]: row.get("knows") == "both" for row in spec["attacks"]}
    return dict.fromkeys(names, draws) | {
        name: 1 if all_ else draws for name, all_ in known.items()
    }


def _draws_of_verdict(condition: Condition, label: int, curtail: bool) -> int:
    """Number of draws behind a verdict; 0 if a run with this value of `curtail` cannot have it."""
    if condition.curtailed is None:
        return 0 if curtail and condition.k > 1 else condition.k
    return condition.k if curtail and condition.complete(label) else 0


def _hash_if_known(
    fingerprint: Callable[[Sequence[int]], str] | None, indices: Sequence[int]
) -> str | None:
    """The hash of the images at `indices`; None if these alone do not determine it."""
    try:
        return None if fingerprint is None else fingerprint(indices)
    except ValueError:  # precomputed images without `indices`, which go by their order
        return None


def _describe_difference(key: str, a: Manifest, b: Manifest) -> str:
    """Describe how two runs differ, given a `key` in which their manifests differ."""
    if key == "identity" and _comparable_spec(a) == _comparable_spec(b):
        return "with other weights or images (a file that the spec names has changed)"
    return MUST_MATCH[key]


def _comparable_spec(asked: Manifest) -> Any:
    """The kind and the spec of a run, without what its identity ignores."""
    spec = json.loads(json.dumps({k: v for k, v in asked["spec"].items() if k != "machine"}))
    kept = {
        key: {k: v for k, v in part.items() if k not in (*NOT_IN_IDENTITY, "images")}
        if isinstance(part, dict)
        else part
        for key, part in spec.items()
    }
    return asked.get("kind"), kept


def merge(folders: Sequence[Path], out: Path) -> Run:
    """Merge the outcomes of several folders of the same run into one.

    Raises:
        RuntimeError: The runs differ, or they disagree about an image.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        for key in MUST_MATCH:
            if run.manifest.get(key) != runs[0].manifest.get(key):
                what = _describe_difference(key, run.manifest, runs[0].manifest)
                raise RuntimeError(f"{run.folder} and {folders[0]} differ: one is a run {what}")
    whole = Run.begin(out, runs[0].manifest)
    facts: dict[int, tuple[Path, Any]] = {}
    for run in (whole, *runs):
        for line in run.lines():
            folder, known = facts.setdefault(line.index, (run.folder, line.reproducible_part()))
            if known != line.reproducible_part():
                raise RuntimeError(
                    f"{folder} and {run.folder} disagree about image {line.index}: different "
                    "models or machines computed them; merge shards that do not overlap"
                )
    for run in runs:
        for kind in ("examples", STARTS, "outcomes"):
            for path in sorted((run.folder / kind).glob("*.*")):
                target = whole.folder / kind / path.name
                if not target.exists():
                    write_bytes(target, path.read_bytes())
    return whole
