"""The measurements of `unfool analyze compression`: one defense at a time, each saved when done."""

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
    """The measurements of all sources.

    Attributes:
        measured: The measurement of each defense with a purifier.
        specs: Their checked specs, by name.
        indices: The indices of their images in the data set, by name.
        skipped: Names of sources without a purifier.
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
    """Measure the purifier of each spec or run folder, or read its saved measurement.

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
    """Return each source's name in the report: the end of its path, numbered if not unique."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        name = path.name if is_run(source) else path.stem
        places = [name, *(f"{name}-{number}" for number in range(2, len(sources) + 1))]
        names.append(next(place for place in places if place not in names))
    return names


def _key(at: AnalysisInputs, options: dict[str, Any]) -> str:
    """Return a hash of everything that a measurement depends on."""
    asked = [specs.identity(at.spec), at.indices, options, __version__]
    return hash_of_json(asked)[:10]


def _kept(file: Path) -> Compression | None:
    """Return the saved measurement, or None if the file is missing or damaged."""
    try:
        with np.load(file) as arrays:
            return Compression.from_arrays(arrays)
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error):
        return None
