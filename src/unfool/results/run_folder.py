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

from unfool.results.example_images import find_problem_in_examples
from unfool.results.manifest import Format, KeptForecast, Manifest
from unfool.results.outcome import Condition, Indexed, Line, Outcome
from unfool.results.run_differences import MUST_MATCH, describe_difference
from unfool.results.spec import CertificationSpec, EvaluationSpec
from unfool.runtime.files import hash_of_json, npz_bytes, raise_system_error, write_bytes
from unfool.runtime.validate import from_json, read_json

VERSION = 1
FORECAST = "forecast.json"
STARTS = "starts"  # folder of the processes that worked on a run (`results.starts`)
REPEAT_ADVICE = "delete the file and run the same command again, which repeats only its images"
DELETE_ADVICE = "delete it, and the report then shows fewer images"


class HasIndex(Protocol):
    """The result of one image in any kind of run: a dataclass that can be written as JSON."""

    @property
    def index(self) -> int:
        """The image's place in the data set."""
        ...


Record = TypeVar("Record", bound=HasIndex)


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
        has_outcomes = any((folder / "outcomes").glob("*.jsonl"))
        if has_outcomes and not (folder / "run.json").exists():
            raise RuntimeError(
                f"{folder} holds outcomes but no run.json, which says what run they belong to: put "
                f"run.json back, delete {folder / 'outcomes'}, or name another folder with --out"
            )
        if has_outcomes:
            run = cls.open(folder)
            present, requested = (set(entry["indices"]) for entry in (run.manifest, manifest))
            if requested < present and run.manifest["identity"] == manifest["identity"]:
                raise RuntimeError(
                    f"{folder} holds a run on {len(present)} images, and this spec asks for only "
                    f"{len(requested)} of them: ask for as many or more, or name another folder with "
                    "--out"
                )
            grows = present < requested
            same_images: bool | None = None  # unknown, as for two sets of images that only overlap
            if present == requested:
                same_images = run.manifest["images"] == manifest["images"]
            elif grows and (known := _hash_if_known(fingerprint, run.manifest["indices"])):
                same_images = run.manifest["images"] == known
            for key in MUST_MATCH:
                if grows and (key == "indices" or (key == "images" and same_images)):
                    continue
                if run.manifest.get(key) != manifest.get(key):
                    what = describe_difference(key, run.manifest, manifest, same_images)
                    raise RuntimeError(
                        f"{folder} holds a run {what}: name another folder with --out"
                    )
            if not (grows and same_images):
                return run
        sealed: Manifest = {"version": VERSION, **manifest}
        sealed["sha256"] = seal(sealed)
        run = cls(folder, sealed)
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
            if (version := read_json(Format, path)["version"]) != VERSION:
                raise RuntimeError(
                    f"{path} has format {version}, and this version of unfool reads format "
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
        outcomes = self.read(Outcome)
        for outcome in outcomes:
            draws_by_condition = {
                name: _draws_of_verdict(condition, outcome.label, curtail)
                for name, condition in outcome.conditions.items()
            }
            if draws_by_condition != draws or outcome.chosen not in draws_by_condition:
                raise RuntimeError(
                    f"the outcome of image {outcome.index} in {self.folder / 'outcomes'} does not "
                    f"belong to this run (its conditions have the draws {draws_by_condition}, of "
                    f"which the attacker chose {outcome.chosen!r}, and run.json asks for {draws}): "
                    f"{REPEAT_ADVICE}"
                )
        return outcomes

    def read(self, record_type: type[Record]) -> list[Record]:
        """Return all records so far, sorted by index.

        Args:
            record_type: The dataclass of a record.

        Raises:
            RuntimeError: A file is damaged, belongs to another run, holds an image that is not in
                the run, or disagrees with another file about an image.
        """
        records: list[Record] = []
        for line in self.lines():
            try:
                records.append(from_json(record_type, line.text, line.location))
            except ValueError as error:
                raise RuntimeError(f"{error}; {REPEAT_ADVICE}") from error
        return records

    def lines(self) -> list[Line]:
        """Return all records so far as they were written, one for each image, sorted by index.

        Raises:
            RuntimeError: A file is damaged, belongs to another run, holds an image that is not in
                the run, or disagrees with another file about an image.
        """
        known, by_index = set(self.manifest["indices"]), dict[int, Line]()
        for path in sorted((self.folder / "outcomes").glob("*.jsonl")):
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] != self._content_hash(content):
                raise RuntimeError(
                    f"{path} is damaged, was changed, or belongs to another run (its name does not "
                    f"match its contents): {REPEAT_ADVICE}"
                )
            for number, text in enumerate(content.splitlines(), 1):
                location = f"{path}, line {number}"
                try:
                    line = Line(from_json(Indexed, text, location)["index"], text, location)
                except ValueError as error:
                    raise RuntimeError(f"{error}; {REPEAT_ADVICE}") from error
                if line.index not in known:
                    raise RuntimeError(
                        f"{location} holds image {line.index}, which is not in the run: {REPEAT_ADVICE}"
                    )
                if (
                    by_index.setdefault(line.index, line).reproducible_part()
                    != line.reproducible_part()
                ):
                    raise RuntimeError(
                        f"{by_index[line.index].location} and {location} disagree about image "
                        f"{line.index}: different models or machines computed them; delete one of "
                        "the files, and run the same command again"
                    )
        return [by_index[index] for index in sorted(by_index)]

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

        A block without outcomes is left out: its process was killed between the two files, and it
        may even belong to an earlier run in this folder.

        Raises:
            RuntimeError: A file is damaged.
            OSError: A file cannot be opened or read.
        """
        finished = {path.stem for path in (self.folder / "outcomes").glob("*.jsonl")}
        for path in sorted((self.folder / "examples").glob("*.npz")):
            if path.stem not in finished:
                continue
            try:
                with np.load(path, allow_pickle=False) as file:
                    block = {name: file[name] for name in names or file}
            except Exception as error:  # a damaged archive may raise anything
                raise_system_error(error)
                raise RuntimeError(f"{path} is damaged ({error}); {DELETE_ADVICE}") from error
            if problem := find_problem_in_examples(block, names):
                raise RuntimeError(f"{path} is damaged ({problem}); {DELETE_ADVICE}")
            yield block


def seal(manifest: Manifest) -> str:
    """The sha256 of a manifest, which does not depend on the layout of the file."""
    entries = {key: value for key, value in manifest.items() if key != "sha256"}
    return hash_of_json(entries)


def draws_of(spec: EvaluationSpec) -> dict[str, int]:
    """The number of draws under each condition: one if the attacker knows all of the noise."""
    draws = spec["evaluation"]["draws"]
    names = ["clean", *(["random"] if spec["attacks"] else [])]
    knows_all = {row["label"]: row.get("knows") == "both" for row in spec["attacks"]}
    return dict.fromkeys(names, draws) | {
        name: 1 if all_ else draws for name, all_ in knows_all.items()
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


def merge(folders: Sequence[Path], out: Path) -> Run:
    """Merge the outcomes of several folders of the same run into one.

    Raises:
        RuntimeError: The runs differ, or they disagree about an image.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        a, b = run.manifest, runs[0].manifest
        same_images = a["images"] == b["images"] if a["indices"] == b["indices"] else None
        for key in MUST_MATCH:
            if a.get(key) != b.get(key):
                what = describe_difference(key, a, b, same_images)
                raise RuntimeError(f"{run.folder} and {folders[0]} differ: one is a run {what}")
    merged = Run.begin(out, runs[0].manifest)
    records: dict[int, tuple[Path, Any]] = {}
    for run in (merged, *runs):
        for line in run.lines():
            folder, known = records.setdefault(line.index, (run.folder, line.reproducible_part()))
            if known != line.reproducible_part():
                raise RuntimeError(
                    f"{folder} and {run.folder} disagree about image {line.index}: different "
                    "models or machines computed them; merge shards that do not overlap"
                )
    for run in runs:
        for kind in ("examples", STARTS, "outcomes"):
            for path in sorted((run.folder / kind).glob("*.*")):
                target = merged.folder / kind / path.name
                if not target.exists():
                    write_bytes(target, path.read_bytes())
    return merged
