"""The computations of the page: purify, vote, attack and compare, by functions of the library.

Everything is computed in the model's thread, through the queue of the service.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from unfool import spec as specs
from unfool.api.apply import noise_to_classify, noise_to_purify
from unfool.attacks.losses import Query, query_batch, without_noise
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched, classifier_only
from unfool.defenses.purified_classifier import predict_draws
from unfool.noise import Noise
from unfool.protocols import Classifier, Defended, Purifier
from unfool.serve.defense import Defense
from unfool.serve.limits import Refused
from unfool.serve.playground.choices import Choices, Sample, samples_of
from unfool.serve.playground.settings import Settings
from unfool.serve.request import Body, images_to_classify, in_thread
from unfool.statistics import Share, wilson
from unfool.threat import Threat

STATES = 5  # images of the reverse process that are shown, besides the original
Result = TypeVar("Result")


class Picture(NamedTuple):
    """An image to try.

    Attributes:
        x: The image (1, C, H, W), shaped for the model.
        name: Its name on the page.
        label: Its class, or None if unknown.
        notes: What was changed, such as the size.
    """

    x: Tensor
    name: str
    label: int | None = None
    notes: tuple[str, ...] = ()


class Votes(NamedTuple):
    """The number of votes for each class.

    Attributes:
        counts: The votes of each class.
        random: Whether the model draws noise; if not, there is a single pass.
    """

    counts: list[int]
    random: bool

    @property
    def passes(self) -> int:
        """The number of votes."""
        return sum(self.counts)

    @property
    def winner(self) -> int:
        """The class with the most votes; in a tie, the lowest index."""
        return max(range(len(self.counts)), key=self.counts.__getitem__)

    @property
    def undecided(self) -> bool:
        """Whether another class has as many votes."""
        return self.counts.count(self.counts[self.winner]) > 1

    def share(self, index: int) -> Share:
        """Return the share of votes for a class, with Wilson's 95 % interval."""
        return wilson(self.counts[index], self.passes)


class Purification(NamedTuple):
    """One pass of the purifier, and the votes.

    Attributes:
        path: Times and images (C, H, W), from the noised image to the purified one; empty if the
            purifier does not provide them.
        purified: The purified image (1, C, H, W); None without a purifier.
        defended: The votes of the model.
        undefended: The votes of the classifier without its purifier; None if it has none.
    """

    path: list[tuple[float, Tensor]]
    purified: Tensor | None
    defended: Votes
    undefended: Votes | None


class AttackStep(NamedTuple):
    """A query of an attack, and its result.

    Attributes:
        number: The number of the query, from 1.
        steps: Steps of the attack; further queries compare its candidates.
        x: The queried image (1, C, H, W).
        loss: The mean loss at `x`.
        wrong: The share of draws that misclassify `x`.
    """

    number: int
    steps: int
    x: Tensor
    loss: float
    wrong: float


class Attacked(NamedTuple):
    """The result of an attack.

    Attributes:
        x: The adversarial image (1, C, H, W).
        label: The class that was attacked.
        size: Size of the perturbation, in the threat's norm.
        before: The votes of the model on the original image.
        defended: The votes of the model on `x`, with held-out noise.
        undefended: The votes of the classifier without its purifier; None if it has none.
    """

    x: Tensor
    label: int
    size: float
    before: Votes
    defended: Votes
    undefended: Votes | None


class Compared(NamedTuple):
    """The result of a purifier for the image.

    Attributes:
        key: Its key in `Choices.purifiers`.
        purified: The purified image (1, C, H, W).
        defended: The votes of the classifier behind this purifier.
        distance: Root mean square difference from the image.
        seconds: Duration of one pass of the purifier.
    """

    key: str
    purified: Tensor
    defended: Votes
    distance: float
    seconds: float


class Lab:
    """A served model, and the experiments that the page offers.

    Args:
        defense: The model behind the queue.
        table: The spec of the model.
    """

    def __init__(self, defense: Defense, table: specs.RawSpec):
        self.defense, self.limits = defense, defense.limits
        model = defense.loaded.model
        self.defended_model = model if isinstance(model, Defended) else None
        self.choices = Choices.of(table, self.defended_model, defense)
        self.samples: list[Sample] = samples_of(defense.loaded, table)

    def label(self, index: int) -> str:
        """Return the name of a class."""
        if not self.defense.loaded.classes and self.samples:
            return self.samples[0].classes[index]
        return self.defense.loaded.label(index)

    def sample(self, number: int) -> Picture:
        """Return a sample.

        Raises:
            Refused: There is no sample with this index.
        """
        if not 0 <= number < len(self.samples):
            raise Refused(
                404, f"there is no sample {number}: choose one from 0 to {len(self.samples) - 1}"
            )
        sample = self.samples[number]
        return Picture(sample.x[None], f"sample {number}", sample.label)

    async def read(self, content: bytes) -> Picture:
        """Read an uploaded image, resized to what the model takes.

        Raises:
            Refused: The content is not an image file, or is too large.
        """
        if len(content) > self.limits.body:
            raise Refused(
                413, f"the file has more than {self.limits.body} bytes: choose a smaller one"
            )
        body = Body((content,), None, {})
        images = await in_thread(images_to_classify, body, self.defense.loaded, self.limits)
        notes = tuple(note.replace("image 1", "the image") for note in images.notes)
        return Picture(images.groups[0], "your image", None, notes)

    async def purify(self, picture: Picture, settings: Settings) -> Purification:
        """Purify an image once, and vote with and without the defense.

        With a seed, the results equal those of `unfool purify` and `unfool classify` for this file.

        Raises:
            Refused: A setting is out of range, or the time is up.
        """
        settings.check(self.limits)
        clock, path, purified = _Clock(self.limits.seconds), [], None
        x = picture.x.to(self.defense.device)
        if self.defended_model is not None:
            path, purified = await self._walk(x, noise_to_purify(settings.seed, 0, 1), clock)
        defended, undefended = await self._vote_with_and_without_defense(x, settings, clock)
        return Purification(path, purified, defended, undefended)

    async def attack(
        self, picture: Picture, settings: Settings
    ) -> AsyncIterator[AttackStep | Attacked]:
        """Attack the image by PGD; yield each query, and last the result, judged on held-out noise.

        The attack is `PGD(steps, eot, loss="margin")`; its noise is the child stream `attack` of
        the votes' noise. An image without a label gets the class that the model votes for.

        Raises:
            Refused: A setting is out of range, or the time is up.
        """
        settings.check(self.limits)
        clock, x = _Clock(self.limits.seconds), picture.x.to(self.defense.device)
        before = await self._votes(self.defense.model, x, settings, clock)
        label = before.winner if picture.label is None else picture.label
        noise = noise_to_classify(settings.seed, 0, 1).child("attack")
        model = self._view(settings)
        threat, y = self.threat(settings), torch.tensor([label], device=x.device)
        search = attack_of(settings).search(x, y, threat, noise)
        result, number = None, 0
        while True:
            try:
                query: Query = search.send(result)  # pyright: ignore[reportArgumentType]
            except StopIteration as end:
                x_adv: Tensor = end.value
                break
            rows = settings.eot * (3 if query.gradient else 1)
            (result,) = await clock.wait(self._run(lambda q=query: query_batch(model, [q]), rows))
            number += 1
            loss, wrong = float(result.loss), float(result.error_rate)
            yield AttackStep(number, settings.steps, query.x, loss, wrong)
        defended, undefended = await self._vote_with_and_without_defense(x_adv, settings, clock)
        yield Attacked(x_adv, label, float(threat.size(x_adv - x)), before, defended, undefended)

    async def compare(self, picture: Picture, settings: Settings) -> AsyncIterator[Compared]:
        """Purify and classify the image with each purifier, on the same noise.

        Raises:
            Refused: A setting is out of range, there is no purifier, or the time is up.
        """
        settings.check(self.limits)
        if self.defended_model is None:
            raise Refused(404, "this model has no purifier, so there is nothing to compare")
        clock, x = _Clock(self.limits.seconds), picture.x.to(self.defense.device)
        for key in settings.purifiers:
            purifier = self.choices.purifiers[key].purifier
            noise = noise_to_purify(settings.seed, 0, 1)
            purified, seconds = await clock.wait(
                self._run(lambda p=purifier, n=noise: _timed(p, x, n), 1)
            )
            model = Batched(self.defended_model.with_purifier(purifier), self.defense.model)
            votes = await self._votes(model, x, settings, clock)
            distance = float((purified - x).square().mean().sqrt())
            yield Compared(key, purified, votes, distance, seconds)

    def threat(self, settings: Settings) -> Threat:
        """Return the threat of the attack.

        Raises:
            Refused: The budget is out of range.
        """
        if not 0 <= settings.eps <= self.choices.max_eps:
            raise Refused(400, f"eps must be from 0 to {self.choices.max_eps:g}")
        return Threat(self.choices.norm, settings.eps / self.choices.unit)

    def _view(self, settings: Settings) -> Classifier:
        if settings.gradient == "exact":
            return self.defense.model
        if self.defended_model is None:
            raise Refused(
                400, "this model has no purifier that BPDA could skip: choose the exact gradient"
            )
        return classifier_only(self.defense.model)

    async def _walk(
        self, x: Tensor, noise: Noise, clock: "_Clock"
    ) -> tuple[list[tuple[float, Tensor]], Tensor]:
        assert self.defended_model is not None
        purifier: Any = self.defended_model.purifier
        if not hasattr(purifier, "walk"):
            return [], await clock.wait(self._run(lambda: purifier(x, noise), 1))
        states, path = purifier.walk(x, noise), []
        while (state := await clock.wait(self._run(lambda: next(states, None), 1))) is not None:
            path.append(state)
        purified = path[-1][1]
        return [(t, image[0]) for t, image in _evenly(path, STATES)], purified

    async def _vote_with_and_without_defense(
        self, x: Tensor, settings: Settings, clock: "_Clock"
    ) -> tuple[Votes, Votes | None]:
        defended = await self._votes(self.defense.model, x, settings, clock)
        if self.defended_model is None:
            return defended, None
        undefended = classifier_only(self.defense.model)
        return defended, await self._votes(undefended, x, settings, clock)

    async def _votes(
        self, model: Classifier, x: Tensor, settings: Settings, clock: "_Clock"
    ) -> Votes:
        noise = noise_to_classify(settings.seed, 0, 1)
        random = not bool(await clock.wait(self._run(lambda: without_noise(model, x, noise), 2)))
        passes = settings.votes if random else 1
        chosen = await clock.wait(
            self._run(lambda: predict_draws(model, x, noise, passes)[0].cpu(), passes)
        )
        classes = max(len(self.defense.labels), int(chosen.max()) + 1)
        return Votes(torch.bincount(chosen, minlength=classes).tolist(), random)

    def _run(self, task: Any, rows: int) -> Awaitable[Any]:
        return self.defense.run(task, rows)


def attack_of(settings: Settings) -> PGD:
    """Return the attack that the settings describe."""
    return PGD(steps=settings.steps, eot=settings.eot, loss="margin")


class _Clock:
    """The time limit of an answer."""

    def __init__(self, seconds: float):
        self.seconds, self.end = seconds, asyncio.get_running_loop().time() + seconds

    async def wait(self, answer: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout_at(self.end):
                return await answer
        except TimeoutError:
            raise Refused(
                503,
                (
                    f"the answer took longer than {self.seconds:g} seconds: choose fewer steps or "
                    "votes"
                ),
                1,
            ) from None


def _timed(purifier: Purifier, x: Tensor, noise: Noise) -> tuple[Tensor, float]:
    began = time.perf_counter()
    purified = purifier(x, noise)
    if isinstance(purifier, nn.Module) and x.is_cuda:
        torch.cuda.synchronize(x.device)
    return purified, time.perf_counter() - began


def _evenly(states: list[Any], count: int) -> Iterator[Any]:
    """Return at most `count` evenly spaced states, including the first and the last."""
    last = len(states) - 1
    indices = (
        {round(i * last / (count - 1)) for i in range(count)} if last >= count else range(last + 1)
    )
    return (states[index] for index in sorted(indices))
