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


class Measurements(NamedTuple):
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
) -> Measurements:
    """Measure the purifier of each spec or run folder, or read its saved measurement.

    Raises:
        SpecError: A spec is wrong, or no source has a purifier.
        RuntimeError: A run has no outcomes yet.
    """
    measurements = Measurements([], {}, {}, [])
    for source, name in zip(sources, _names(sources), strict=True):
        run = summarize_run(Run.open(Path(source))) if is_run(source) else None
        inputs = load_inputs(source, changes, data, images, device)
        if not isinstance(inputs.model.model, Defended):
            measurements.skipped.append(name)
            continue
        file = folder / "measured" / f"{name}-{_key(inputs, options)}.npz"
        measurement = _load_saved(file)
        if measurement is None:
            measurement = compression(
                inputs.model, inputs.x, inputs.threat, inputs.noise, quiet=quiet, **options
            )
            write_bytes(file, npz_bytes(measurement.arrays()))
        measurements.measured.append(Measured(name, measurement, run))
        measurements.specs[name], measurements.indices[name] = inputs.spec, inputs.indices
    if not measurements.measured:
        raise SpecError(
            f"there is no purifier in {', '.join(sources)}, so there is nothing to measure: name a "
            "spec or a run with one"
        )
    return measurements


def _names(sources: Sequence[str]) -> list[str]:
    """Return each source's name in the report: the end of its path, numbered if not unique."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        name = path.name if is_run(source) else path.stem
        candidates = [name, *(f"{name}-{number}" for number in range(2, len(sources) + 1))]
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names


def _key(inputs: AnalysisInputs, options: dict[str, Any]) -> str:
    """Return a hash of everything that a measurement depends on."""
    key = [specs.identity(inputs.spec), inputs.indices, options, __version__]
    return hash_of_json(key)[:10]


def _load_saved(file: Path) -> Compression | None:
    """Return the saved measurement, or None if the file is missing or damaged."""
    try:
        with np.load(file) as arrays:
            return Compression.from_arrays(arrays)
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error):
        return None
