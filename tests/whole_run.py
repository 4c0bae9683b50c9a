"""A complete `run.json` for tests that write their own runs, and a writer of outcomes files."""

import hashlib
from pathlib import Path
from typing import Any

from unfool.results.run_folder import Run

SPEC = {
    "data": {"name": "mine:Data"},
    "classifier": {"name": "mine:Net"},
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [],
    "evaluation": {"images": None, "subset_seed": 0, "seed": 0, "draws": 4, "examples": 0}
    | {"skip_broken": False, "lpips": False},
    "machine": {"device": "cpu", "batch_size": 4, "images_per_block": 32}
    | {"execution": "plain", "engine": "local"},
}
CERTIFICATION = {key: SPEC[key] for key in ("data", "classifier")} | {
    "certification": {"sigma": 0.25, "n0": 8, "n": 64, "alpha": 0.001, "images": None}
    | {"subset_seed": 0, "seed": 0},
    "machine": {"device": "cpu", "batch_size": 4},
}


def manifest(indices, spec=None, **told) -> Any:
    """The contents of `run.json` for `indices`; `spec` changes options of SPEC or adds sections."""
    changed = {
        name: SPEC[name] | part if name in ("threat", "evaluation", "machine") else part
        for name, part in (spec or {}).items()
    }
    asked = {"identity": "mine", "images": "0" * 64, "code": "0" * 64, "spec": SPEC | changed}
    return asked | {"indices": list(indices), "classes": ["a", "b"], "versions": {}} | told


def write_outcomes(run: Run, content: bytes) -> Path:
    """Write an outcomes file, named after the run and its contents as in a real run."""
    told = run.manifest["identity"].encode() + b"\n" + content
    path = run.folder / "outcomes" / f"9999999-{hashlib.sha256(told).hexdigest()[:8]}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
