"""Dry run of an evaluation: counts the calls of a model's parts without making them.

Stand-ins replace the parts, and those of the sources of transfer attacks. They answer immediately,
and count how they are called. So a dry run works for any attack, including attacks from outside the
library. The classifier's stand-in is always right. So where broken images are skipped, the dry run
shows the cost of an image that no attack breaks. A stand-in draws noise if the real part does,
which is tested by calling each part once: attacks spend fewer draws on a model without noise.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfool.attacks.transfer import Transfer
from unfool.attacks.views import Batched
from unfool.data import fetch
from unfool.defenses.aggregate import Aggregated
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.per_step_loss import count_chain
from unfool.evaluation.attack_runner import AttackRunner
from unfool.evaluation.evaluate import Judge
from unfool.evaluation.prepare import Prepared
from unfool.noise import Noise, drawn_so_far
from unfool.protocols import Attack, Classifier, Defended
from unfool.results.spec import EvaluationSpec
from unfool.runtime.progress import ticking
from unfool.threat import Threat

# Methods by which a view derives another part from a part.
DERIVED_METHODS = ("with_fewer_steps", "adjoint", "without_elimination", "stage")

Answer = Callable[[Tensor, Tensor], Tensor]


class Call(NamedTuple):
    """A kind of call: the name of the part, and how it is called."""

    part: str
    how: str  # "forward", "gradient" or "decide"


@dataclass
class CallCount:
    """Counts how the parts are called.

    Attributes:
        images: Images in all calls.
        largest_call: Images in the largest call.
    """

    images: Counter[Call] = field(default_factory=Counter)
    largest_call: dict[Call, int] = field(default_factory=dict)

    def add(self, kind: Call, images: int) -> None:
        """Count a call."""
        self.images[kind] += images
        self.largest_call[kind] = max(images, self.largest_call.get(kind, 0))

    def take(self) -> Counter[Call]:
        """Return and reset the counts in `images`."""
        taken = +self.images
        self.images.clear()
        return taken


class DryRun(NamedTuple):
    """How the evaluation of one image calls the parts of a model.

    Attributes:
        calls: Images by kind of call, for each condition, `verdict`, and `distances`.
        largest_call: Images in the largest call of each kind.
        parts: The parts by name.
        ticks: Work in the units of `progress.tick`, by the keys of `calls`.
    """

    calls: dict[str, Counter[Call]]
    largest_call: dict[Call, int]
    parts: dict[str, Any]
    ticks: dict[str, float]


class StandIn:
    """Answers immediately in place of a part of a model, and counts the images it is asked about.

    Args:
        real: The part.
        name: The name of the part.
        answer: A differentiable function of the images and a random number for each: the output.
        count: The counter of the calls.
        real_parts: The real parts by name. The stand-in adds its own, and so do those that views
            derive.
    """

    def __init__(
        self,
        real: Any,
        name: str,
        answer: Answer,
        count: CallCount,
        real_parts: dict[str, Any],
    ):
        self.real, self.name, self.answer = real, name, answer
        self.count, self.real_parts = count, real_parts
        self.draws: bool | None = None  # whether the part draws noise, once known
        real_parts[name] = real

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the output, and count a forward call; a backward pass makes it a gradient call."""
        out, plain = self._answered(x, noise), Call(self.name, "forward")
        self.count.add(plain, len(x))
        if out.requires_grad:

            def back(gradient: Tensor) -> None:
                self.count.images[plain] -= len(gradient)
                self.count.add(Call(self.name, "gradient"), len(gradient))

            out.register_hook(back)
        return out

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.real, name)
        if name == "decide":

            def decide(x: Tensor, noise: Noise) -> Tensor:
                self.count.add(Call(self.name, "decide"), len(x))
                return self._answered(x, noise).argmax(1)

            return decide
        if name in DERIVED_METHODS:

            def derive(*options: Any) -> StandIn:
                derived_name = f"{self.name} {name}{options}"
                return StandIn(
                    attribute(*options), derived_name, self.answer, self.count, self.real_parts
                )

            return derive
        return attribute

    def _answered(self, x: Tensor, noise: Noise) -> Tensor:
        if self.draws is None:
            before = drawn_so_far()
            with torch.no_grad():
                self.real(x[:1].detach(), noise.take([0]))
            self.draws = drawn_so_far() != before
        zero = torch.zeros_like(x[:, 0, 0, 0], requires_grad=False)
        return self.answer(x, noise.child("rehearsal").normal(zero) if self.draws else zero)


def dry_run(spec: EvaluationSpec, prepared: Prepared, batch_size: int) -> DryRun:
    """Count how the evaluation of one image calls the parts of the model.

    Args:
        spec: What `run.check` returned.
        prepared: Its parts.
        batch_size: The largest number of images in a call.
    """
    count = CallCount()
    real_parts: dict[str, Any] = {}
    options, indices = spec["evaluation"], prepared.indices[:1]
    x, y = (part.to(prepared.device) for part in fetch(prepared.data, indices))
    right = _make_right_answer(x, y, len(prepared.data.classes))
    model = _stand_in(prepared.model, right, count, real_parts)
    attacks: dict[str, Attack] = {}
    for name, attack in prepared.attacks.items():
        attacks[name] = attack
        if isinstance(transfer := attack.attack, Transfer):
            if isinstance(source := transfer.source, nn.Module):
                source.eval().requires_grad_(False).to(prepared.device)
            source = _stand_in(source, right, count, real_parts, f"source of {name}: ")
            attacks[name] = replace(attack, attack=replace(transfer, source=source))
    runner = AttackRunner(
        Batched(model, batch_size),
        attacks,
        Threat(**spec["threat"]),
        options["seed"],
        options["draws"],
        options["skip_broken"],
    )

    calls: dict[str, Counter[Call]] = {}
    ticks: dict[str, float] = {}
    versions: dict[str, Tensor] = {}
    work: list[float] = []

    def take(name: str) -> None:
        calls[name], ticks[name] = count.take(), sum(work)
        work.clear()

    with ticking(work.append):
        for name, version in runner.versions(x, y, indices):
            versions[name] = version
            take(name)
        judge = Judge(runner, lpips=False, curtail=options.get("curtail", False))
        judge.outcomes(versions, y, indices, set(), set())
        take("verdict")
        judge.quality(versions, Noise.of(options["seed"], indices), [0])
        take("distances")
    return DryRun(calls, count.largest_call, real_parts, ticks)


def _make_right_answer(x: Tensor, y: Tensor, classes: int) -> Answer:
    """Make a classifier that is right about the image `x` (1, C, H, W), however it is changed."""
    pixels = torch.arange(x[0].numel() * classes, device=x.device).view(-1, classes)
    slope = torch.sin(pixels.to(x)) / len(pixels)
    common = torch.arange(classes, device=x.device).to(x) / classes  # scaled by the brightness

    def answer(images: Tensor, random: Tensor) -> Tensor:
        bright = (images.flatten(1).mean(1) + 0.01 * random)[:, None] * common.to(images)
        return 10 * F.one_hot(y, classes).to(images) + images.flatten(1) @ slope + bright

    return answer


def _purified(x: Tensor, random: Tensor) -> Tensor:
    """Return the image, made slightly brighter or darker by the random number."""
    count_chain()  # the view `per-step` requires a chain
    return x + 0.01 * random.view(-1, 1, 1, 1)


def _stand_in(
    model: Any, right: Answer, count: CallCount, real_parts: dict[str, Any], prefix: str = ""
) -> Classifier:
    """Make a stand-in for each part of a model; their names begin with `prefix`."""
    if isinstance(model, Aggregated):
        inner: Any = _stand_in(model.model, right, count, real_parts, prefix)
        return Aggregated(inner, paths=model.paths, by=model.by)
    if not isinstance(model, Defended):
        return StandIn(model, f"{prefix}classifier", right, count, real_parts)
    classifier = StandIn(model.classifier, f"{prefix}classifier", right, count, real_parts)
    purifier = StandIn(model.purifier, f"{prefix}purifier", _purified, count, real_parts)
    return Purified(classifier, purifier)
