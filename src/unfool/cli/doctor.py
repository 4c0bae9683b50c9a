"""Checks what is installed, and whether a model works as a classifier."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from unfool import __version__
from unfool import spec as specs
from unfool.attacks.losses import query_model
from unfool.cli.doctor_denoiser import check_denoiser
from unfool.cli.doctor_finding import Finding
from unfool.cli.doctor_input import check_input_format
from unfool.compatibility import check_classes, logits_of, undefended
from unfool.data import fetch
from unfool.data.subset import choose_indices
from unfool.defenses.purified_classifier import predict_draws
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.evaluation.prepare import build_model
from unfool.evaluation.sanity_checks import are_probabilities, same_logits
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.runtime.device import pick_device
from unfool.statistics import percent

VOTES = 8  # the default of `classify` and `evaluate`
STATISTICS = 256  # images for the mean and variance of each pixel
EXAMINED = 32  # images on which a classifier is tested
SECONDS = 20.0  # a call is not timed again after this much time


def installed() -> list[Finding]:
    """Check the package, Python, the libraries, the device, and the disk space."""
    findings = [Finding("ok", f"unfool {__version__}, Python {platform.python_version()}")]
    needed = ("torch", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors", "matplotlib")
    for name in needed:
        try:
            findings.append(Finding("ok", f"{name} {version(name)}"))
        except PackageNotFoundError:
            findings.append(Finding("FAIL", f"{name} is missing; run: pip install unfool"))
    try:
        findings.append(Finding("ok", f"transformers {version('transformers')}"))
    except PackageNotFoundError:
        extra = "no transformers, which Stable Diffusion needs: pip install 'unfool[latent]'"
        findings.append(Finding("note", extra))
    try:
        import_module("torchvision")
        findings.append(Finding("ok", f"torchvision {version('torchvision')}"))
    except ImportError:
        findings.append(Finding("note", "torchvision is not installed; nothing here needs it"))
    except RuntimeError:
        broken = "it was not built for this torch"
        findings.append(
            Finding("FAIL", f"torchvision is installed but broken ({broken}): uninstall it")
        )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        findings.append(Finding("ok", f"{name}, {free >> 20} of {total >> 20} MiB free"))
    else:
        threads = torch.get_num_threads()
        findings.append(
            Finding("note", f"no GPU; {threads} thread{'' if threads == 1 else 's'} on the CPU")
        )
    free_disk = shutil.disk_usage(Path.cwd()).free >> 20
    findings.append(
        Finding("ok" if free_disk > 500 else "FAIL", f"{free_disk} MiB of disk free here")
    )
    return findings


def model(
    spec: str | Mapping[str, Any], changes: Sequence[str], folder: str | None, device: str
) -> list[Finding]:
    """Examine the classifier of a spec, with its defense, and the denoisers in it.

    Raises:
        SpecError: The spec is wrong.
    """
    table = specs.load(spec, changes)
    where = pick_device(device)
    if "data" not in table:
        raise SpecError("the doctor needs a spec with 'data' and 'classifier'")
    specs.refuse_unread_folder(table, folder)
    data = specs.build("data", specs.check_data(table["data"], folder))
    checked = check_model(table)
    classifier = build_model(checked, where)
    indices = choose_indices(len(data), min(STATISTICS, len(data)), 0)
    x, y = (values.to(where) for values in fetch(data, indices))
    findings = options({"data": specs.check_data(table["data"], folder), **checked})
    findings += examine(classifier, *pick_examples(x, y), len(data.classes))
    for denoiser in _denoisers(classifier):
        findings += check_denoiser(denoiser, x, y, len(data.classes), (0.05, 0.1, 0.2))
    if not any(finding.mark == "FAIL" for finding in findings):
        findings.append(latency(classifier, x[:1]))
    try:
        check_classes(data)
    except SpecError as error:
        findings.append(Finding("FAIL", str(error)))
    return findings


def pick_examples(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up to 32 evenly spaced images and labels, because data may be sorted by class."""
    indices = torch.linspace(0, len(x) - 1, min(EXAMINED, len(x))).round().long().to(x.device)
    return x[indices], y[indices]


def examine(model: Any, x: torch.Tensor, y: torch.Tensor, classes: int) -> list[Finding]:
    """Test a classifier on a few images (B, C, H, W) in [0, 1] and their labels (B,)."""
    noise, findings = Noise.of(0, range(len(x))), []

    def say(passed: bool, good: str, bad: str, mark: Literal["note", "FAIL"] = "FAIL") -> None:
        findings.append(Finding("ok", good) if passed else Finding(mark, bad))

    with torch.no_grad():
        try:
            logits = logits_of(model, x, noise.child("a"))
        except SpecError as error:
            return [Finding("FAIL", str(error))]
        logit_count = logits.shape[1]
        if logit_count < classes:
            what = f"returns {tuple(logits.shape)} for {len(x)} images of {classes} classes"
            return [Finding("FAIL", what)]
        again, other = (model(x, noise.child(k)) for k in ("a", "b"))
        few = min(2, len(x))
        small_batch = model(x[:few], noise.take(range(few)).child("a"))
    say(
        logit_count == classes,
        f"logits of {classes} classes",
        f"the classifier has {logit_count} classes, and the data set has {classes}: check that these are "
        f"the classifier's first {classes}, in the same order",
        "note",
    )
    say(bool(logits.isfinite().all()), "logits are finite", "logits are not finite")
    softmax = bool(are_probabilities(logits).all())
    say(
        not softmax,
        "logits, not probabilities",
        "the classifier returns probabilities instead of logits: remove its softmax",
    )
    say(
        torch.equal(logits, again),
        "the same noise gives the same answer",
        "the same noise gives different answers, so the model draws its own random numbers: let it "
        "draw them from `noise`",
    )
    say(
        same_logits(small_batch, logits[:few]),
        "an answer does not depend on the batch",
        "an answer depends on the other images of the batch: call eval() on the model",
    )
    training = isinstance(model, nn.Module) and any(m.training for m in model.modules())
    say(not training, "in eval mode", "the model is in training mode: call eval()")
    random = not torch.equal(logits, other)
    findings.append(
        Finding(
            "note", "the model is random: evaluate it on many draws, and attack it with eot > 1"
        )
        if random
        else Finding("ok", "deterministic")
    )
    try:
        gradient_sizes = (
            query_model(model, x, y, "margin", noise, 0, 1).gradient.flatten(1).abs().amax(1)
        )
        say(
            bool((gradient_sizes > 0).all()),
            "the gradient reaches every image",
            f"the gradient is zero on {int((gradient_sizes == 0).sum())} of {len(x)} images",
        )
    except RuntimeError as error:
        findings.append(Finding("FAIL", " ".join(str(error).split())))
    findings.append(check_input_format(undefended(model), x, y, noise, classes))
    if undefended(model) is not model:
        accuracy = float((logits.argmax(1) == y).float().mean())
        findings.append(Finding("ok", f"with its defense, right on {percent(accuracy, 0)} of them"))
    return findings


def options(checked: Mapping[str, Any]) -> list[Finding]:
    """List each part of a checked spec with its options, including defaults."""
    findings: list[Finding] = []
    for kind in ("data", "classifier", "denoiser", "purifier"):
        if kind in checked:
            table = {key: value for key, value in checked[kind].items() if key != "name"}
            option_text = yaml.safe_dump(
                table, default_flow_style=True, sort_keys=False, width=10_000
            )
            name = checked[kind]["name"]
            more = f" (unfool menu {name})" if ":" not in name else ""
            findings.append(Finding("ok", f"{kind} {name}: {option_text.strip()}{more}"))
    return findings


@torch.no_grad()
def latency(model: Any, x: torch.Tensor) -> Finding:
    """Measure how long one answer and a vote take for one image (1, C, H, W).

    On a CPU, the vote is also timed with one thread, which is often faster for a small network.
    """
    noise, threads = Noise.of(0, [0]), torch.get_num_threads()

    def vote() -> None:
        predict_draws(model, x, noise, VOTES)

    answer, votes = _seconds(lambda: model(x, noise), x.device), _seconds(vote, x.device)
    sentence = f"an answer for one image takes {answer:.2g} s, {VOTES} votes {votes:.2g} s"
    if x.device.type != "cpu" or threads == 1:
        return Finding("ok", sentence)
    torch.set_num_threads(1)
    try:
        single_thread = _seconds(vote, x.device)
    finally:
        torch.set_num_threads(threads)
    sentence += f", and {single_thread:.2g} s with one thread instead of {threads}"
    if single_thread > votes:
        return Finding("ok", sentence)
    return Finding("note", f"{sentence}: set OMP_NUM_THREADS=1 for runs of this model")


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the median seconds of three calls after a first, or of the last if calls are slow."""
    seconds: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > SECONDS:
            return seconds[-1]
    return sorted(seconds[1:])[1]


def _denoisers(model: Any) -> Iterator[Denoiser]:
    """Yield each denoiser in a model once."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, Denoiser):
            yield module
