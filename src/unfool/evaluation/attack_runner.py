"""The attacker's side of a run: makes the versions of each image, one block of images at a time.

A search draws from streams that no verdict uses. They depend only on the seed, the image's place in
the data set, and the attack's name, not on the other images.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unfool.argument_checks import check_threat
from unfool.attacks.losses import recording_losses
from unfool.attacks.views import Batched
from unfool.data import fetch
from unfool.evaluation.block_progress import BlockProgress, Expected
from unfool.evaluation.cost import CallCounter
from unfool.evaluation.draw_caller import DrawCaller
from unfool.noise import Noise
from unfool.protocols import Attack, Dataset
from unfool.results.loss_curves import curves
from unfool.runtime.progress import progress, ticking
from unfool.threat import Threat

MIN_DRAWS = 8  # draws that decide whether an image is skipped: with fewer, chance decides
Keep = Callable[[Sequence[int], Tensor, Mapping[str, Tensor]], str]


@dataclass(frozen=True)
class Machine:
    """Settings that change the speed of an evaluation and nothing else.

    Attributes:
        device: `"cpu"`, `"cuda"`, ...
        batch_size: The largest number of images (times draws) in one call of the model.
        images_per_block: Images that are attacked together and written together.
        shard: (i, n): only images i, i + n, i + 2 n, ...
        quiet: Show no progress.
        expected: A function that forecasts the cost per image, for the progress. It is called only
            if progress is shown.
    """

    device: str = "cpu"
    batch_size: int = 256
    images_per_block: int = 32
    shard: tuple[int, int] = (0, 1)
    quiet: bool = False
    expected: Callable[[], Expected | None] | None = None


@dataclass
class AttackRunner:
    """Makes the versions of a block of images: clean, under random noise, and under each attack.

    Attributes:
        model: The model under attack.
        attacks: The attacks by name.
        threat: What they may change.
        seed: Seed of all noise.
        draws: Draws of a verdict. `skip_broken` uses as many of the attacker's own, but at least 8.
        skip_broken: Attack only images that no earlier version made wrong on all of these draws.
        calls: Counter of network calls.
        began: When the block began.
        reused_from: By attack and position, the earlier version taken for a skipped image.
        own_predictions: By version, the predictions on the attacker's own draws, if made.
        loss_curves: By attack and position, the loss over its steps.
    """

    model: Batched
    attacks: Mapping[str, Attack]
    threat: Threat
    seed: int
    draws: int
    skip_broken: bool
    calls: CallCounter = field(default_factory=CallCounter)
    began: float = 0.0
    reused_from: dict[str, dict[int, str]] = field(default_factory=dict)
    own_predictions: dict[str, Tensor] = field(default_factory=dict)
    loss_curves: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answers = DrawCaller(self.model)

    @property
    def conditions(self) -> list[str]:
        """The names of the versions, in order."""
        return ["clean", *(["random", *self.attacks] if self.attacks else [])]

    def versions(
        self, x: Tensor, y: Tensor, indices: Sequence[int]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the images clean and, if there are attacks, under random noise and each attack."""
        check_threat(self.threat, x)
        noise = Noise.of(self.seed, indices)
        self.began = time.perf_counter()
        self.calls.take()
        self.reused_from, self.own_predictions, self.loss_curves = {}, {}, {}
        broken: dict[int, tuple[str, Tensor]] = {}  # what broke each image
        baselines = {"clean": x}
        if self.attacks:
            baselines["random"] = self.threat.random_at_full_budget(x, noise.child("control"))
        for name, version in baselines.items():
            yield name, version
            broken = self._broken(name, version, y, noise, ()) | broken
        for name, attack in self.attacks.items():
            limit = self.threat if bounded(attack) else None
            knows = getattr(attack, "knows", None)
            done = broken if limit and not knows else {}
            version, todo = x.clone(), positions_except(done, len(x))
            for i, (_, earlier) in done.items():
                version[i] = earlier
            if todo:
                search = noise.take(todo).child("search", name)
                if knows:
                    search = knows.reveal(search, revealed_noise(noise.take(todo)))
                with recording_losses() as steps:
                    x_adv = attack(self.model, x[todo], y[todo], self.threat, search)
                risen = zip(todo, curves(steps, len(todo)), strict=True)
                self.loss_curves[name] = {i: curve for i, curve in risen if curve}
                version[todo] = _allowed(name, x_adv, x[todo], limit)
            self.reused_from[name] = {i: by for i, (by, _) in done.items()}
            yield name, version
            if limit and not knows:
                broken |= self._broken(name, version, y, noise, set(broken))  # not those it skipped

    def _broken(
        self, name: str, version: Tensor, y: Tensor, noise: Noise, done: Collection[int]
    ) -> dict[int, tuple[str, Tensor]]:
        """Return the images outside `done` that are wrong on all of the attacker's own draws."""
        todo = positions_except(done, len(y))
        if not (self.skip_broken and todo):
            return {}
        select = noise.take(todo).child("select")
        self.own_predictions[name] = self.answers(version[todo], select, max(self.draws, MIN_DRAWS))
        wrong = (self.own_predictions[name] != y[todo, None]).all(1).tolist()
        return {i: (name, version[i]) for i, is_wrong in zip(todo, wrong, strict=True) if is_wrong}


def by_block(
    what: str,
    runner: AttackRunner,
    data: Dataset,
    indices: Sequence[int],
    done: Collection[int],
    machine: Machine,
    keep: Keep,
) -> None:
    """Make the versions of the images that are not done, and pass each block to `keep`.

    Args:
        what: Words for the progress.
        runner: Makes the versions.
        data: Images with labels.
        indices: All images of the run, of which this shard takes its own.
        done: Images that are already written.
        machine: Device, sizes, and shard.
        keep: Takes the block's indices, labels, and versions by name; returns words to show.

    Raises:
        RuntimeError: An attack returned images outside the threat.
    """
    rank, ranks = machine.shard
    mine = indices[rank::ranks]
    todo = [index for index in mine if index not in done]
    expected = None
    if todo and machine.expected and not machine.quiet:
        expected = machine.expected()
    seconds_per_image = expected.seconds_per_image if expected else None
    bar = progress(what, len(mine), len(mine) - len(todo), machine.quiet, seconds_per_image)
    with runner.calls.watching(runner.model.model), bar as show:
        for first in range(0, len(todo), machine.images_per_block):
            block = todo[first : first + machine.images_per_block]
            done_before = len(mine) - len(todo) + first
            x, y = (part.to(machine.device) for part in fetch(data, block))
            versions: dict[str, Tensor] = {}
            block_progress = BlockProgress(
                show, done_before, len(block), runner.conditions, expected
            )
            with ticking(block_progress.tick):
                for name, version in runner.versions(x, y, block):
                    versions[name] = version
                    block_progress.next()
                words = keep(block, y, versions)
            show(done_before + len(block), words)


def revealed_noise(noise: Noise) -> Noise:
    """The noise revealed to attackers who know some of it: that of the verdict's first draw."""
    return noise.child("verdict", "vote", 0)


def positions_except(done: Collection[int], size: int) -> list[int]:
    """The positions 0 .. size - 1 that are not in `done`."""
    return [i for i in range(size) if i not in done]


def bounded(attack: Attack) -> bool:
    """Whether the threat limits an attack; one without limit has `bounded = False`."""
    return getattr(attack, "bounded", True)


def _allowed(name: str, x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """Return an attack's images if their shape is right and the threat, if any, allows them."""
    if x_adv.shape != x.shape:
        raise RuntimeError(
            f"the attack {name} must return images of the shape {tuple(x.shape)} that it was "
            f"given, and returned {tuple(x_adv.shape)}"
        )
    if threat is None:
        if not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
            raise RuntimeError(
                f"the attack {name} must return images in [0, 1] without NaN, and did not: clip "
                "what it returns"
            )
        return x_adv.detach()
    allowed = threat.allows(x, x_adv)
    if not bool(allowed.all()):
        most = float((threat.size(x_adv - x) - threat.eps).max())
        excess = f", by up to {most:.4g}" if most > 0 else "" if most <= 0 else ", by NaN"
        raise RuntimeError(
            f"the attack {name} exceeded the threat ({threat.norm} {threat.eps:.4g}, pixels in [0, "
            f"1]) on {int((~allowed).sum())} of {len(x)} images{excess}: {_cure(threat, most)}"
        )
    return x_adv.detach()


def _cure(threat: Threat, excess: float) -> str:
    if threat.norm == "linf" and 0 < excess <= 0.5 / 255 + 1e-6:
        return (
            "rounding to 8 bits explains so small an excess, so raise eps by 0.5/255, or round "
            "toward the clean image"
        )
    return (
        "let your attack end with threat.project(x, x_adv); images made earlier need the threat "
        "and the order that they were made for (files of a folder are sorted by name as text: 0, "
        "1, 10, 2)"
    )
