"""The defenses of `unfool analyze compression`, measured one by one, and kept as they are done."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from unfool import __version__
from unfool import spec as specs
from unfool.analysis.compression import Compression, compression
from unfool.analysis.inputs import AnalysisInputs, is_run, load_inputs
from unfool.errors import SpecError
from unfool.protocols import Defended
from unfool.report.compression import Measured
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run
from unfool.runtime.files import hash_of_json, npz_bytes, write_bytes


class Found(NamedTuple):
    """What became of all sources.

    Attributes:
        measured: Of each defense with a purifier, what was measured.
        specs: Their checked specs, by name.
        indices: By name, which images of the data set.
        skipped: The names of those without a purifier.
    """

    measured: list[Measured]
    specs: dict[str, Any]
    indices: dict[str, list[int]]
    skipped: list[str]


def measure_all(
    sources: Sequence[str],
    changes: Sequence[str],
    data: str | None,
    images: int,
    device: str,
    folder: Path,
    options: dict[str, Any],
    quiet: bool,
) -> Found:
    """Measure the purifier of each spec or run folder, or read what was measured before.

    Raises:
        SpecError: A spec is wrong, or no source has a purifier.
        RuntimeError: A run has no outcomes yet.
    """
    found = Found([], {}, {}, [])
    for source, name in zip(sources, _names(sources), strict=True):
        run = summarize_run(Run.open(Path(source))) if is_run(source) else None
        at = load_inputs(source, changes, data, images, device)
        if not isinstance(at.model.model, Defended):
            found.skipped.append(name)
            continue
        file = folder / "measured" / f"{name}-{_key(at, options)}.npz"
        kept = _kept(file)
        if kept is None:
            kept = compression(at.model, at.x, at.threat, at.noise, quiet=quiet, **options)
            write_bytes(file, npz_bytes(kept.arrays()))
        found.measured.append(Measured(name, kept, run))
        found.specs[name], found.indices[name] = at.spec, at.indices
    if not found.measured:
        raise SpecError(
            f"there is no purifier in {', '.join(sources)}, so there is nothing to measure: name a "
            "spec or a run with one"
        )
    return found


def _names(sources: Sequence[str]) -> list[str]:
    """What the report calls each: the last part of its path, numbered where two are alike."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        name = path.name if is_run(source) else path.stem
        places = [name, *(f"{name}-{number}" for number in range(2, len(sources) + 1))]
        names.append(next(place for place in places if place not in names))
    return names


def _key(at: AnalysisInputs, options: dict[str, Any]) -> str:
    """A name for what is measured of which images of a defense."""
    asked = [specs.identity(at.spec), at.indices, options, __version__]
    return hash_of_json(asked)[:10]


def _kept(file: Path) -> Compression | None:
    """What was measured before; None if it was not, or the file is damaged."""
    try:
        with np.load(file) as arrays:
            return Compression.from_arrays(arrays)
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error):
        return None
