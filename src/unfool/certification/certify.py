"""Certification by randomized smoothing (Cohen et al., 2019), from a spec to a run folder.

The function that is smoothed is classify(denoise(x + sigma eps)): noise of standard deviation sigma
on the pixels, not clipped; then a purifier that removes it, if there is one; then the classifier.
This module counts the answers; `certification.certificate` computes what the counts prove.
"""

import inspect
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool import __version__
from unfool import spec as specs
from unfool.certification.certificate import KIND, ClassCounts, largest_radius
from unfool.compatibility import check_fit
from unfool.data import fetch
from unfool.data.subset import choose_indices, labels_of
from unfool.errors import SpecError
from unfool.evaluation.cost import CallCounter, peak_bytes
from unfool.evaluation.evaluate import Machine
from unfool.evaluation.prepare import build_model, fingerprint, make_manifest
from unfool.evaluation.spec import check_model
from unfool.models.weights_hash import weights_hash
from unfool.noise import Noise
from unfool.protocols import Classifier, Dataset, Defended
from unfool.results.run_folder import Run
from unfool.results.spec import CertificationMachine, CertificationSection, CertificationSpec
from unfool.results.starts import record_start
from unfool.runtime.device import pick_device
from unfool.runtime.progress import progress
from unfool.spec import Part, menu

SECTIONS = ("data", "classifier", "denoiser", "purifier", "paths", "certification", "machine")
CERTIFICATION = {  # defaults
    "n0": 100,
    "n": 10_000,
    "alpha": 0.001,
    "images": None,
    "subset_seed": 0,
    "seed": 0,
}
MACHINE: CertificationMachine = {"device": "auto", "batch_size": 256}


class Denoising(nn.Module):
    """A purifier that removes noise of a known size and adds none.

    Args:
        purifier: A purifier with a method `denoise(x, sigma, noise)`.
        sigma: The standard deviation of the noise, in units of [0, 1] pixels.
    """

    def __init__(self, purifier: Any, sigma: float):
        super().__init__()
        self.purifier, self.sigma = purifier, sigma

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Denoised images, shaped like `x` (B, C, H, W)."""
        return self.purifier.denoise(x, self.sigma, noise)


class Noisy(nn.Module):
    """The function that is smoothed: a noisy draw of an image, denoised and classified.

    The noise comes from the stream `smooth`, which is separate from those of the model. If a
    purifier takes several paths, all see the same noisy image before they vote (DensePure; Xiao et
    al., 2022).

    Args:
        model: The classifier alone, or behind a purifier with a method `denoise`.
        sigma: The standard deviation of the noise, in units of [0, 1] pixels.
    """

    def __init__(self, model: Classifier, sigma: float):
        super().__init__()
        self.sigma, self.purifier = sigma, None
        if isinstance(model, Defended):
            self.purifier = model.purifier
            model = model.with_purifier(Denoising(model.purifier, sigma))
        self.model = model

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of one noisy draw for each image (B, C, H, W) in [0, 1].

        Raises:
            RuntimeError: The logits are not finite.
        """
        logits = self.model(x + self.sigma * noise.child("smooth").normal(x), noise)
        if not bool(logits.isfinite().all()):
            raise RuntimeError(
                "the model returned logits that are not finite, so nothing can be certified: look "
                "for the cause with `unfool doctor`"
            )
        return logits


def check(spec: Mapping[str, Any], folder: str | None = None) -> CertificationSpec:
    """Check a certification spec and fill in its defaults.

    Args:
        spec: The spec, from `spec.load`.
        folder: The folder that data sets are read from.

    Raises:
        SpecError: The spec is not valid.
    """
    for key in spec:
        if key not in SECTIONS:
            raise SpecError(f"a certification spec has no {key!r}; {menu.hint(key, SECTIONS)}")
    for key in ("data", "classifier", "certification"):
        if key not in spec:
            raise SpecError(f"a certification spec needs a section {key!r}")
    options = check_options(spec.get("certification"))
    machine = specs.check_section("machine", spec.get("machine", {}), CertificationMachine, MACHINE)
    if spec.get("purifier") is not None:
        spec = {**spec, "purifier": _purifier_part(spec.get("purifier"), options["sigma"])}
    model = check_model({**spec, "classifier": _classifier_part(spec, options["sigma"])})
    data = specs.check_data(spec.get("data"), folder)
    return {"data": data, **model, "certification": options, "machine": machine}


def run(
    spec: CertificationSpec, folder: Path, shard: tuple[int, int] = (0, 1), quiet: bool = False
) -> Run:
    """Run the certification of a checked `spec`, or resume it from what `folder` holds.

    Args:
        spec: The spec, from `check`.
        folder: The run folder.
        shard: (i, n): do only the images i, i + n, i + 2 n, ...
        quiet: Whether to show no progress.

    Raises:
        SpecError: A part rejects its options, or the parts do not fit together.
        RuntimeError: The folder holds another run, or the model returns logits that are not finite.
    """
    device = pick_device(spec["machine"]["device"])
    data: Dataset = specs.build("data", spec["data"])
    model = build_model(spec, device)
    return certify_model(spec, model, data, folder, device=device, shard=shard, quiet=quiet)


def certify_model(
    spec: CertificationSpec,
    model: Classifier,
    data: Dataset,
    folder: Path,
    *,
    device: str,
    shard: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> Run:
    """Certify a model that is already built, or resume from what `folder` holds.

    Args:
        spec: The checked spec; `model` and `data` are the parts that it describes.
        model: The model, frozen, on `device`.
        data: Images with labels.
        folder: The run folder.
        device: The device to compute on.
        shard: (i, n): do only the images i, i + n, i + 2 n, ...
        quiet: Whether to show no progress.

    Raises:
        SpecError: The parts do not fit together.
        RuntimeError: The folder holds another run, or the model returns logits that are not finite.
    """
    options, machine = spec["certification"], spec["machine"]
    if isinstance(model, Defended):
        _require_denoise(specs.part("purifier", spec.get("purifier"))["name"], model.purifier)
    noisy = Noisy(model, options["sigma"]).eval()
    weights = weights_hash(noisy)  # before any call, because a call may cache results
    indices = choose_indices(
        len(data), options["images"], options["subset_seed"], labels=labels_of(data)
    )
    check_fit(noisy, data, indices, device)
    manifest = make_manifest(spec, data, indices, fingerprint(data, indices), weights)
    manifest["kind"] = KIND
    run = Run.begin(folder, manifest, partial(fingerprint, data))
    record_start(run, device)
    certify(
        noisy,
        data,
        run,
        indices=indices,
        n0=options["n0"],
        n=options["n"],
        seed=options["seed"],
        machine=Machine(device, machine["batch_size"], shard=shard, quiet=quiet),
    )
    return run


def certify(
    model: Classifier,
    data: Dataset,
    run: Run,
    *,
    indices: Sequence[int],
    n0: int = 100,
    n: int = 10_000,
    seed: int = 0,
    machine: Machine | None = None,
) -> None:
    """Count the answers for the images that `run` lacks, and save each image when it is done.

    Args:
        model: The function that is smoothed (`Noisy`), from images and noise to logits.
        data: Images with labels.
        run: The run that holds the counts and gets the new ones.
        indices: The indices of the images to certify.
        n0: The number of draws that choose the answer.
        n: The number of other draws, which measure how sure the answer is.
        seed: The seed of all noise.
        machine: Options that change only speed; `batch_size` is the number of draws in one call.
    """
    machine = machine or Machine()
    done = {count.index for count in run.read(ClassCounts)}
    rank, ranks = machine.shard
    shard_indices = indices[rank::ranks]
    todo = [index for index in shard_indices if index not in done]
    done_before, draws_per_image, counter = len(shard_indices) - len(todo), n0 + n, CallCounter()
    bar = progress(
        "draws", len(shard_indices) * draws_per_image, done_before * draws_per_image, machine.quiet
    )
    with counter.watching(model), bar as show:
        for position, index in enumerate(todo, done_before):
            start, draws_done, counts = time.perf_counter(), position * draws_per_image, []
            x, y = fetch(data, [index])
            x, noise = x.to(machine.device), Noise.of(seed, [index])
            for stage, draws in (("select", n0), ("estimate", n)):
                counts.append(Counter[int]())
                for chosen in answers(model, x, draws, noise.child(stage), machine.batch_size):
                    counts[-1].update(chosen)
                    draws_done += len(chosen)
                    show(draws_done, f"image {position + 1} of {len(shard_indices)}")
            image_counts = ClassCounts(
                index=index,
                label=int(y[0]),
                selected=dict(sorted(counts[0].items())),
                estimated=dict(sorted(counts[1].items())),
                seconds=round(time.perf_counter() - start, 4),
                cost={**counter.take(), "peak_bytes": peak_bytes()},
                made_by=f"unfool {__version__}, torch {torch.__version__}",
            )
            run.add([image_counts], {})


def answers(
    model: Classifier, x: Tensor, draws: int, noise: Noise, rows: int = 256
) -> Iterator[list[int]]:
    """Yield the classes that `model` chooses in `draws` draws of one image; the lowest on ties.

    Args:
        model: The function that is smoothed (`Noisy`).
        x: The image (1, C, H, W).
        draws: The number of draws.
        noise: The noise of the image; draw i has a stream of its own, whatever `rows` is.
        rows: The number of draws in one call of the model.

    Yields:
        The classes of the draws of one call.
    """
    streams = noise.repeat(draws)
    for first in range(0, draws, rows):
        which = range(first, min(first + rows, draws))
        with torch.no_grad():
            logits = model(x.expand(len(which), -1, -1, -1), streams.take(which))
        yield logits.argmax(1).tolist()


def check_options(section: Any) -> CertificationSection:
    """Check the section `certification` and fill in its defaults.

    Raises:
        SpecError: An option is unknown or out of range.
    """
    if isinstance(section, dict) and "sigma" not in section:
        raise SpecError(
            "certification needs `sigma`, the standard deviation of the noise in units of [0, 1] "
            "pixels (0.25, say)"
        )
    options = specs.check_section("certification", section, CertificationSection, CERTIFICATION)
    sigma, n, alpha = options["sigma"], options["n"], options["alpha"]
    if not largest_radius(sigma, n, alpha):
        min_draws = math.floor(math.log(alpha, 0.5)) + 1  # where alpha^(1/n) exceeds 1/2
        raise SpecError(
            f"certification.n is {n}, and so few draws cannot certify anything at alpha {alpha:g}, "
            f"even if all agree: set it to {min_draws} or more"
        )
    return options


def _classifier_part(spec: Mapping[str, Any], sigma: float) -> Part:
    """The classifier's part, with `sigma` filled in if it classifies noisy images itself.

    Raises:
        SpecError: The part has another `sigma`, or a purifier would remove the noise first.
    """
    part = specs.part("classifier", spec.get("classifier"))
    if not getattr(menu.find("classifier", part["name"]), "noised", False):
        return part
    if spec.get("purifier") is not None:
        raise SpecError(
            f"the classifier {part['name']} classifies noisy images itself: leave out the purifier"
        )
    if part.get("sigma", sigma) != sigma:
        raise SpecError(
            f"classifier {part['name']}: the noise is certification.sigma; leave out `sigma`"
        )
    return {**part, "sigma": sigma}


def _purifier_part(part: Any, sigma: float) -> Part:
    """The purifier's part, with its noise set to that of the certification."""
    table = specs.part("purifier", part)
    purifier = menu.find("purifier", table["name"])
    if inspect.isclass(purifier) or menu.is_callable_part("purifier", purifier):
        _require_denoise(table["name"], purifier)
    if "sigma" not in specs.argument_names("purifier", table):
        return table
    if table.get("t") is not None or table.get("sigma", sigma) != sigma:
        raise SpecError(
            f"purifier {table['name']}: the noise is certification.sigma; leave out `sigma` and `t`"
        )
    return {**table, "sigma": sigma}


def _require_denoise(name: str, purifier: Any) -> None:
    if not hasattr(purifier, "denoise"):
        names = [n for n in menu.MENU["purifier"] if hasattr(menu.find("purifier", n), "denoise")]
        raise SpecError(
            f"the purifier {name} cannot be certified: it has no method `denoise(x, sigma, "
            f"noise)`; use {', '.join(names) or 'none'}, or the classifier alone (`purifier: null`)"
        )
