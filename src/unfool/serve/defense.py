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
        tally: The winning class, and the votes of each class.
        label: The name of the winning class.
        share: Its share of the votes, with Wilson's 95 % interval.
        probabilities: The mean softmax of the logits over the passes; None for a model that
            chooses a class without logits.
    """

    tally: Tally
    label: str
    share: Share
    probabilities: list[float] | None


@dataclass(frozen=True)
class Work:
    """Images to work on, in groups: an image file is a group, and so is an array of images.

    Attributes:
        groups: Images (B, C, H, W) of each group, shaped for the model.
        votes: Passes per image.
        seed: Seed of the noise; None for fresh noise.
    """

    groups: Sequence[Tensor]
    votes: int = 1
    seed: int | None = None


class Defense:
    """A model that is loaded once, and computes answers through a queue.

    A request with a seed uses the noise that the commands `classify` and `purify` use for the same
    images, and shares no call with other requests, so its answer equals theirs to the last bit.

    Args:
        loaded: The model.
        name: Its name for clients.
        device: Its device.
        batch_size: Most images in one call.
        limits: What the service accepts.
        observe: Called with the rows and the seconds of each call.
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
        """The class names known before the first answer; a class without a name is a number."""
        known = len(self.loaded.classes) if self.logits is None else self.logits
        return [self.loaded.label(index) for index in range(known)]

    async def classify(self, work: Work) -> list[Prediction]:
        """Return the vote on each image."""
        parts, index = [], 0
        for x in work.groups:
            noise = noise_to_classify(work.seed, index, len(x))
            parts.append(Part(x, vote_streams(noise, work.votes)))
            index += len(x)
        predictions = []
        for part, outputs in zip(parts, await self._answer("classify", parts, work), strict=True):
            chosen = outputs[0].view(work.votes, len(part.x)).T
            means = None if self.decides else _mean(outputs[1], len(part.x))
            predictions += self._predictions(chosen, means)
        return predictions

    async def purify(self, work: Work) -> list[Tensor]:
        """Return the purified images of each group, in the size that the denoiser takes."""
        parts, index = [], 0
        for x in work.groups:
            parts.append(Part(x, noise_to_purify(work.seed, index, len(x))))
            index += len(x)
        return [purified for (purified,) in await self._answer("purify", parts, work)]

    async def run(self, task: Callable[[], Answer], rows: int) -> Answer:
        """Run a function in the model's thread, counted as `rows` passes, and return its result."""
        return await asyncio.wrap_future(self.batcher.run(task, rows))

    async def _answer(self, kind: str, parts: Sequence[Part], work: Work) -> list[Outputs]:
        exclusive = work.seed is not None
        return await asyncio.wrap_future(self.batcher.submit(kind, parts, exclusive))

    def _predictions(self, chosen: Tensor, means: Tensor | None) -> list[Prediction]:
        classes = self.logits or len(self.loaded.classes) if means is None else means.shape[1]
        probabilities = [None] * len(chosen) if means is None else means.tolist()
        predictions = []
        for vote, mean in zip(tally(chosen, classes), probabilities, strict=True):
            share = wilson(vote.votes, chosen.shape[1])
            predictions.append(Prediction(vote, self.loaded.label(vote.winner), share, mean))
        return predictions

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
        """Return the number of logits, by a call that also warms up the model; None if unknown."""
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
    """Load the model of a spec, ready to answer requests.

    Raises:
        SpecError: Something in the spec is wrong.
    """
    where = pick_device(device)
    loaded = load_defended(specs.load(spec, changes), folder, where)
    return Defense(loaded, name, where, batch_size, limits, observe)


def _mean(probabilities: Tensor, images: int) -> Tensor:
    """Average probabilities (votes * B, K) over the passes of each image, to (B, K)."""
    return probabilities.view(-1, images, probabilities.shape[1]).mean(0)
