"""The defended model behind the service: images in, votes or purified images out."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unfool import spec as specs
from unfool.api.apply import (
    Loaded,
    Tally,
    load_defended,
    noise_to_classify,
    noise_to_purify,
    tally,
)
from unfool.argument_checks import check_finite, check_logits
from unfool.attacks.views import Batched
from unfool.defenses.purified_classifier import image_shape, vote_streams
from unfool.noise import Noise
from unfool.runtime.device import pick_device
from unfool.serve.batcher import Batcher, Observe, Outputs, Part
from unfool.serve.limits import Limits
from unfool.statistics import Share, wilson

Answer = TypeVar("Answer")


class Prediction(NamedTuple):
    """The vote on one image.

    Attributes:
        tally: The class that won.
        label: Its name.
        share: Its share of the votes, with Wilson's 95 % interval.
        probabilities: The mean over the passes of the softmax of the logits; None for a model that
            tells its class without logits.
    """

    tally: Tally
    label: str
    share: Share
    probabilities: list[float] | None


@dataclass(frozen=True)
class Work:
    """Images to work on, in groups: each picture is one, and so is an array of images.

    Attributes:
        groups: Images (B, C, H, W), as the model takes them.
        votes: Passes per image.
        seed: Of the noise; None for fresh noise.
    """

    groups: Sequence[Tensor]
    votes: int = 1
    seed: int | None = None


class Defense:
    """A model that is loaded once, and answers through the queue.

    A request with a seed has the noise that the commands `classify` and `purify` give its images, and
    calls of its own, so that its answer is theirs to the last bit.

    Args:
        loaded: The model.
        name: What clients call it.
        device: Where it is.
        batch_size: The most images in one call.
        limits: What is accepted.
        observe: Told the rows and the seconds of each call.
    """

    def __init__(
        self,
        loaded: Loaded,
        name: str,
        device: str,
        batch_size: int,
        limits: Limits,
        observe: Observe = lambda rows, seconds: None,
    ):
        self.loaded, self.name, self.limits, self.device = loaded, name, limits, device
        self.purifier = getattr(loaded.model, "purifier", None)
        self.purifier_shape = image_shape(self.purifier)
        self.decides = hasattr(loaded.model, "decide")
        self.model = Batched(loaded.model, batch_size)
        self.logits = self._count_logits()
        calls = {"classify": self._classify, "purify": self._purify}
        self.batcher = Batcher(calls, batch_size, limits.queue, observe)

    @property
    def labels(self) -> list[str]:
        """The names of the classes as far as they are known before the first answer."""
        known = len(self.loaded.classes) if self.logits is None else self.logits
        return [self.loaded.label(index) for index in range(known)]

    async def classify(self, work: Work) -> list[Prediction]:
        """The vote on each image."""
        parts, place = [], 0
        for x in work.groups:
            noise = noise_to_classify(work.seed, place, len(x))
            parts.append(Part(x, vote_streams(noise, work.votes)))
            place += len(x)
        found = []
        for part, outputs in zip(parts, await self._answer("classify", parts, work), strict=True):
            chosen = outputs[0].view(work.votes, len(part.x)).T
            means = None if self.decides else _mean(outputs[1], len(part.x))
            found += self._predictions(chosen, means)
        return found

    async def purify(self, work: Work) -> list[Tensor]:
        """The purified images of each group, in the size that the denoiser takes."""
        parts, place = [], 0
        for x in work.groups:
            parts.append(Part(x, noise_to_purify(work.seed, place, len(x))))
            place += len(x)
        return [pure for (pure,) in await self._answer("purify", parts, work)]

    async def run(self, task: Callable[[], Answer], rows: int) -> Answer:
        """What a function gives that the thread of the model runs, as `rows` passes of its queue."""
        return await asyncio.wrap_future(self.batcher.run(task, rows))

    async def _answer(self, kind: str, parts: Sequence[Part], work: Work) -> list[Outputs]:
        alone = work.seed is not None
        return await asyncio.wrap_future(self.batcher.submit(kind, parts, alone))

    def _predictions(self, chosen: Tensor, means: Tensor | None) -> list[Prediction]:
        classes = self.logits or len(self.loaded.classes) if means is None else means.shape[1]
        likely = [None] * len(chosen) if means is None else means.tolist()
        found = []
        for won, each in zip(tally(chosen, classes), likely, strict=True):
            share = wilson(won.votes, chosen.shape[1])
            found.append(Prediction(won, self.loaded.label(won.winner), share, each))
        return found

    def _classify(self, x: Tensor, noise: Noise) -> Outputs:
        x = x.to(self.device)
        if self.decides:
            return (self.model.decide(x, noise).cpu(),)
        logits = self.model(x, noise)
        check_logits(logits, len(x))
        check_finite(logits)
        return logits.argmax(1).cpu(), F.softmax(logits.float(), 1).cpu()

    def _purify(self, x: Tensor, noise: Noise) -> Outputs:
        return (Batched(self.purifier, self.model)(x.to(self.device), noise).cpu(),)  # pyright: ignore

    @torch.no_grad()
    def _count_logits(self) -> int | None:
        """How many classes the model tells apart, by trial, which warms it up; None if unknown."""
        if self.loaded.shape is None:
            return None
        x = torch.full((1, *self.loaded.shape), 0.5, device=self.device)
        logits = self.loaded.model(x, Noise.of(0, [0]))
        check_logits(logits, 1)
        return logits.shape[1]


def load_defense(
    spec: str,
    changes: Sequence[str],
    folder: str | None,
    name: str,
    device: str,
    batch_size: int,
    limits: Limits,
    observe: Observe = lambda rows, seconds: None,
) -> Defense:
    """The model of a spec, ready to answer.

    Raises:
        SpecError: Something in the spec is wrong.
    """
    where = pick_device(device)
    loaded = load_defended(specs.load(spec, changes), folder, where)
    return Defense(loaded, name, where, batch_size, limits, observe)


def _mean(probabilities: Tensor, images: int) -> Tensor:
    """The mean over the passes (votes * B, K) of each image, (B, K)."""
    return probabilities.view(-1, images, probabilities.shape[1]).mean(0)
