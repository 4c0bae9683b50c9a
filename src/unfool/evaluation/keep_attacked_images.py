"""Runs the attacks of an evaluation spec and keeps their images, without judging them."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from unfool import __version__
from unfool import spec as specs
from unfool.attacks.precomputed import digests, round_toward_clean
from unfool.attacks.views import Batched
from unfool.data import image_files
from unfool.errors import SpecError
from unfool.evaluation.attack_runner import AttackRunner, by_block
from unfool.evaluation.forecast import with_forecast
from unfool.evaluation.prepare import prepare
from unfool.evaluation.spec import refuse_ray
from unfool.results.manifest import Manifest
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.starts import record_start
from unfool.results.threat_model import sees
from unfool.runtime.files import npz_bytes, write_bytes
from unfool.threat import Threat

Format = Literal["npz", "safetensors"]
KIND = "collection"
ATTACK_PREFIX = "by "  # prefix of an attack's label in the file of a block


@dataclass(frozen=True)
class AttackedImage:
    """The facts about one image and its adversarial versions.

    Attributes:
        index: Its place in the data set.
        label: Its class.
        sizes: By attack, the norm of the perturbation, in the threat's norm.
        reused_from: For each attack that skipped the image, the earlier condition whose image it
            took over.
        seconds: Time spent on it.
        made_by: The versions of the software.
    """

    index: int
    label: int
    sizes: dict[str, float]
    reused_from: dict[str, str]
    seconds: float
    made_by: str


def check_format(word: str) -> Format:
    """Return `word` as a format of arrays.

    Raises:
        SpecError: The format is unknown.
    """
    for known in get_args(Format):
        if word == known:
            return known
    raise SpecError(f"--format must be {' or '.join(get_args(Format))}, not {word!r}")


def check(spec: EvaluationSpec) -> None:
    """Refuse a checked evaluation spec that cannot make adversarial images.

    Raises:
        SpecError: The spec has no attacks, or its engine is Ray.
    """
    if not spec["attacks"]:
        raise SpecError(
            "the spec has no attacks to make images with: add one to its section attacks"
        )
    refuse_ray(spec["machine"], "making adversarial images")


def identity_content(spec: EvaluationSpec) -> dict[str, Any]:
    """Return the content by which the images of a checked evaluation spec are identified."""
    return {"kind": KIND, **spec}


def run(
    spec: EvaluationSpec, folder: Path, shard: tuple[int, int] = (0, 1), quiet: bool = False
) -> Run:
    """Make the adversarial images of a checked evaluation `spec`, from where `folder` left off.

    An evaluation of the same spec makes the same images.

    Args:
        spec: What `run.check` returned.
        folder: The folder for the images.
        shard: (i, n): only images i, i + n, i + 2 n, ...
        quiet: Show no progress.

    Raises:
        SpecError: The spec has no attacks, or its engine is Ray; a part refuses its options, or the
            parts do not fit each other.
        RuntimeError: The folder holds something else, or an attack exceeded the threat.
    """
    check(spec)
    prepared, options, threat = prepare(spec), spec["evaluation"], Threat(**spec["threat"])
    identity = specs.identity(identity_content(spec))
    manifest: Manifest = {**prepared.manifest, "identity": identity, "kind": KIND}
    store = Run.begin(folder, manifest, prepared.fingerprint)
    record_start(store, prepared.device)
    machine = with_forecast(
        prepared.set_up_machine(spec, shard, quiet), spec, prepared, judged=False
    )
    runner = AttackRunner(
        Batched(prepared.model, machine.batch_size),
        prepared.attacks,
        threat,
        options["seed"],
        options["draws"],
        options["skip_broken"],
    )

    def keep(block: Sequence[int], y: Tensor, versions: Mapping[str, Tensor]) -> str:
        x = versions["clean"]
        sizes = {name: threat.size(versions[name] - x).tolist() for name in prepared.attacks}
        seconds = round((time.perf_counter() - runner.began) / len(block), 4)
        facts = [
            AttackedImage(
                index=index,
                label=int(y[i]),
                sizes={name: round(size[i], 6) for name, size in sizes.items()},
                reused_from={name: by[i] for name, by in runner.reused_from.items() if i in by},
                seconds=seconds,
                made_by=f"unfool {__version__}, torch {torch.__version__}",
            )
            for i, index in enumerate(block)
        ]
        arrays = {ATTACK_PREFIX + name: versions[name].cpu().numpy() for name in prepared.attacks}
        store.add(facts, {"index": np.array(block), "clean": x.cpu().numpy(), **arrays})
        return "kept"

    done = {fact.index for fact in store.read(AttackedImage)}
    by_block("attacking images", runner, prepared.data, prepared.indices, done, machine, keep)
    return store


def write_images(
    run: Run, form: Format = "npz", png: bool = False, command: str = ""
) -> list[Path]:
    """Merge the blocks of a collection into one array file per attack, and write a card.

    Args:
        run: What the function `run` returned.
        form: Format of the arrays: `images` (N, C, H, W) of float32, `labels` and `indices` (N,),
            `clean_blake2b` (N, 16), the digests of the clean images, and in an npz `classes`.
        png: Also write 8-bit image files, named by the image's index. Each value is rounded toward
            the clean one, so that the images stay within the threat.
        command: The command that made the images, for the card.

    Returns:
        The files and folders that were written.

    Raises:
        RuntimeError: There are no images yet, or the file of some is missing; or 8-bit images
            would exceed the threat, because the clean images have more than 8 bits (the arrays are
            written then).
    """
    facts = run.read(AttackedImage)
    if not facts:
        raise RuntimeError(f"{run.folder} holds no images yet: run `unfool attack` first")
    rows = {row["label"]: row for row in run.spec["attacks"]}
    indices = [fact.index for fact in facts]
    x, exceeding, written = _images(run, "clean", indices), {}, []
    arrays = {
        "labels": np.array([fact.label for fact in facts]),
        "indices": np.array(indices),
        "clean_blake2b": digests(torch.from_numpy(x)),
    }
    classes = {"classes": np.array(run.manifest["classes"])}
    for (name, row), stem in zip(rows.items(), _stems(rows), strict=True):
        attack_arrays = {**arrays, "images": _images(run, ATTACK_PREFIX + name, indices)}
        path = run.folder / f"{stem}.{form}"
        write_bytes(
            path, npz_bytes(attack_arrays | classes) if form == "npz" else save(attack_arrays)
        )
        written.append(path)
        if png:
            threat = Threat(**run.spec["threat"]) if row.get("bounded", True) else None
            images = torch.from_numpy(x), torch.from_numpy(attack_arrays["images"])
            exceeding[name] = _write_pngs(run.folder / stem, facts, *images, threat)
            written.append(run.folder / stem)
    card = run.folder / "card.json"
    write_bytes(card, (json.dumps(_card(run, facts, form, png, command), indent=1) + "\n").encode())
    if any(exceeding.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in exceeding.items() if count)
        raise RuntimeError(
            f"as 8-bit images, {counts} would exceed the threat, because the clean images have "
            "more than 8 bits: use the arrays, which were written, instead of PNG files"
        )
    return [*written, card]


def _card(
    run: Run, facts: Sequence[AttackedImage], form: Format, png: bool, command: str
) -> dict[str, object]:
    """Describe the images and how they were made."""
    spec = run.spec
    rows = {row["label"]: row for row in spec["attacks"]}
    return {
        "what": "adversarial images, (N, C, H, W) of [0, 1]",
        "command": command,
        "images": len(facts),
        "requested": len(run.manifest["indices"]),
        "threat": spec["threat"],
        "seed": spec["evaluation"]["seed"],
        "attacks": {
            name: {
                "file": f"{stem}.{form}",
                "png": f"{stem}/, 8 bits, rounded toward the clean image" if png else None,
                "saw": sees(row),
                "largest": max(fact.sizes[name] for fact in facts),
                "unchanged": sum(fact.sizes[name] == 0 for fact in facts),
                "options": row,
            }
            for (name, row), stem in zip(rows.items(), _stems(rows), strict=True)
        },
        "classes": run.manifest["classes"],
        "data_sha256": run.manifest["images"],
        "spec": spec,
        "versions": run.manifest["versions"],
    }


class KeptImages(NamedTuple):
    """The first images that an attack made.

    Attributes:
        name: The attack's label.
        stem: The name of its files, without extension.
        indices: The place of each image in the data set.
        labels: Their classes.
        sizes: The norms of the perturbations, in the threat's norm.
        clean: The clean images (N, C, H, W).
        attacked: The adversarial images, shaped like `clean`.
    """

    name: str
    stem: str
    indices: list[int]
    labels: list[int]
    sizes: list[float]
    clean: np.ndarray
    attacked: np.ndarray


def kept_images(run: Run, count: int) -> Iterator[KeptImages]:
    """Yield the first `count` images of each attack of a collection.

    Raises:
        RuntimeError: A file of the run is damaged or missing.
    """
    facts = run.read(AttackedImage)[:count]
    indices = [fact.index for fact in facts]
    clean = _images(run, "clean", indices)
    labels = {row["label"]: row for row in run.spec["attacks"]}
    for name, stem in zip(labels, _stems(labels), strict=True):
        yield KeptImages(
            name,
            stem,
            indices,
            [fact.label for fact in facts],
            [fact.sizes[name] for fact in facts],
            clean,
            _images(run, ATTACK_PREFIX + name, indices),
        )


def _images(run: Run, key: str, indices: Sequence[int]) -> np.ndarray:
    """Collect the array `key` of the images at `indices` from all blocks, (N, C, H, W).

    Raises:
        RuntimeError: The file with an image is missing.
    """
    by_index: dict[int, np.ndarray] = {}
    for block in run.examples(("index", key)):
        by_index |= zip(block["index"].tolist(), block[key], strict=True)
    if missing := [index for index in indices if index not in by_index]:
        raise RuntimeError(
            f"the file of {run.folder / 'examples'} that held image {missing[0]} is missing: delete "
            f"the file of {run.folder / 'outcomes'} that has the same name, and run the same command "
            "again, which makes its images again"
        )
    return np.stack([by_index[index] for index in indices])


def _write_pngs(
    folder: Path, facts: Sequence[AttackedImage], x: Tensor, x_adv: Tensor, threat: Threat | None
) -> int:
    """Write the images that stay within the threat as PNG files; return how many do not."""
    rounded = round_toward_clean(x, x_adv)
    allowed = torch.ones(len(x), dtype=torch.bool) if threat is None else threat.allows(x, rounded)
    for fact, image, is_allowed in zip(facts, rounded, allowed.tolist(), strict=True):
        if is_allowed:
            image_files.write(folder / f"{fact.index:07}.png", image)
    return int((~allowed).sum())


def _stems(labels: Mapping[str, Any]) -> Iterator[str]:
    """Yield a file name for each attack, without extension. No two are the same."""
    taken: set[str] = set()
    for label in labels:
        stem = re.sub(r"[^\w.-]+", "-", label).strip(".-") or "attack"
        while stem.lower() in taken:
            stem += "-"
        taken.add(stem.lower())
        yield stem
