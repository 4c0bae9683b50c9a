"""Examines a file of weights: what it is, which line of a spec loads it, and whether it works."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from unfool import spec as specs
from unfool.cli.doctor import STATISTICS, examine, pick_examples
from unfool.cli.doctor_denoiser import check_denoiser
from unfool.cli.doctor_finding import Finding
from unfool.data import fetch
from unfool.data.subset import choose_indices
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.models.identify import Identified, identify
from unfool.runtime.device import pick_device
from unfool.spec import Part, RawSpec
from unfool.spec.menu import find, options_of

_SAMPLES = {(3, 32, 32): "cifar10-sample", (1, 8, 8): "digits"}  # shipped with the package


def weights(source: str, changes: Sequence[str], folder: str | None, device: str) -> list[Finding]:
    """Identify a file or folder of weights, load it, and test it on images.

    Args:
        source: The file or folder, or the name of a shipped model.
        changes: `data=...` names the images to test it on; `denoiser.size=64` and the like give
            what the file does not state.
        folder: The folder with the data sets.
        device: Where to compute.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or contains no weights.
        SpecError: A change does not fit.
    """
    identified = identify(Path(source))
    findings = [
        Finding("ok", f"{source}: {identified.form}; {identified.family}"),
        Finding("note" if "does not tell" in identified.average else "ok", identified.average),
    ]
    if identified.kind is None or identified.part is None:
        return [*findings, Finding("FAIL", identified.advice)]
    table = specs.load({identified.kind: identified.part}, changes)
    part: Any = table.get(identified.kind)
    line = yaml.safe_dump(part, default_flow_style=True, sort_keys=False, width=10_000)
    findings.append(
        Finding("ok", f"load it by this line of a spec: {identified.kind}: {line.strip()}")
    )
    if identified.advice:
        findings.append(Finding("note", identified.advice))
    where = pick_device(device)
    try:
        model: Any = specs.build(identified.kind, specs.check(identified.kind, part))
    except (SpecError, ValueError, OSError) as error:
        return [*findings, Finding("FAIL", _with_change(identified.kind, part["name"], error))]
    model = model.eval().requires_grad_(False).to(where)
    findings.append(Finding("ok", _facts(model)))
    return findings + _test_on_images(identified, model, table, folder, where)


def _with_change(kind: str, name: str, error: Exception) -> str:
    """Return an error's message; if it asks for an option of the part, add the `--set` for it."""
    message = " ".join(str(error).split())
    options = "|".join(options_of(kind, find(kind, name)))
    match = re.search(rf"\bset ({options}): (\w+)", message)
    return f"{message}; here: --set {kind}.{match[1]}={match[2]}" if match else message


def _facts(model: nn.Module) -> str:
    facts = [f"{sum(p.numel() for p in model.parameters()):,} parameters"]
    if isinstance(model, Denoiser):
        if model.shape is not None:
            facts.append(f"images of {' x '.join(map(str, model.shape))}")
        null = "" if getattr(model, "null", True) else " and no null class"
        facts.append(f"{model.classes} classes{null}" if model.classes else "no classes")
        facts += [f"{key} {value}" for key in ("predicts", "time", "schedule")
                 if (value := getattr(model, key, None)) is not None]  # fmt: skip
    else:
        facts += [
            f"{key} {_numbers(value)}"
            for key in ("mean", "std")
            if (value := getattr(model, key, None)) is not None
        ]
    return ", ".join(facts)


def _numbers(value: Any) -> str:
    return " ".join(f"{number:.4g}" for number in value.flatten().tolist())


def _test_on_images(
    identified: Identified, model: nn.Module, table: RawSpec, folder: str | None, device: str
) -> list[Finding]:
    """Test a model on images that fit it, or say why it was not tested."""
    part: Any = table.get("data") or _images_for(model, folder)
    if part is None:
        what = (
            'it was not tested: name images of its size by --set "data={name: ...}" --data FOLDER'
        )
        return [Finding("note", what)]
    try:
        data = specs.build("data", specs.check_data(part, folder))
        x, y = fetch(data, choose_indices(len(data), min(STATISTICS, len(data)), 0))
    except (SpecError, ValueError, OSError) as error:
        if "data" in table:
            raise
        return [Finding("note", f"it was not tested: {' '.join(str(error).split())}")]
    x, y, classes = x.to(device), y.to(device), len(data.classes)
    tested = Finding("ok", f"tested on {len(x)} images of {part['name']}")
    if isinstance(model, Denoiser):
        return [tested, *check_denoiser(model, x, y, classes)]
    return [tested, *examine(model, *pick_examples(x, y), classes)]


def _images_for(model: nn.Module, folder: str | None) -> Part | None:
    """Choose images that fit a model: from the folder if one is named, else a shipped sample."""
    shape = model.shape if isinstance(model, Denoiser) else (3, 32, 32)
    if shape is None:
        return None
    if folder is not None and shape == (3, 32, 32):
        return {"name": "cifar10"}
    if folder is not None:
        return {"name": "folder", "size": shape[1], "gray": shape[0] == 1}
    name = _SAMPLES.get(shape)
    return None if name is None else {"name": name}
