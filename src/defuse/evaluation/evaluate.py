"""The evaluation, image by image.

Every image is taken clean, under random noise and under each attack, judged on noise that no search
has seen, and written down as it is done.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defuse import __version__
from defuse.attacks.losses import look
from defuse.attacks.views import Limited
from defuse.data import fetch
from defuse.defenses.purified import votes
from defuse.evaluation.ledger import Ledger, peak_bytes
from defuse.evaluation.quality import Quality, measure
from defuse.evaluation.record import Condition, Outcome, Run
from defuse.noise import Noise
from defuse.progress import progress
from defuse.protocols import Attack, Classifier, Dataset, Defended
from defuse.threat import Threat

PROBED = 16  # images, the first of a run, on which the doubts look at the model itself


@dataclass(frozen=True)
class Machine:
    """What changes the speed of an evaluation and nothing else.

    Attributes:
        device: `"cpu"`, `"cuda"`, ...
        rows: The most images (with their draws) in one call of the model.
        block: Images that are attacked together and written together.
        shard: (i, n): do the images i, i + n, i + 2 n, ... only.
        quiet: Show no progress.
    """

    device: str = "cpu"
    rows: int = 256
    block: int = 32
    shard: tuple[int, int] = (0, 1)
    quiet: bool = False


def evaluate(
    model: Classifier,
    data: Dataset,
    attacks: Mapping[str, Attack],
    threat: Threat,
    run: Run,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    draws: int = 8,
    pictures: int = 8,
    machine: Machine | None = None,
) -> None:
    """Evaluate what `run` still lacks.

    The verdict on an image is the class the model chooses at each of `draws` held-out draws of its
    noise, the same draws clean and attacked. Which attack counts is chosen on other draws, as the
    attacker would have to.

    Args:
        model: The classifier, defended or not.
        data: Images with labels.
        attacks: By name.
        threat: What they may change.
        run: Where outcomes go, and which are there.
        indices: The images to do; all by default.
        seed: Of all noise.
        draws: Held-out draws of each verdict.
        pictures: Of how many of the first images pictures are kept.
        machine: What changes only speed.

    Raises:
        RuntimeError: An attack returned images outside the threat, or the model no numbers.
    """
    machine = machine or Machine()
    chosen = list(range(len(data)) if indices is None else indices)
    done = {outcome.index for outcome in run.outcomes()}
    rank, ranks = machine.shard
    mine = chosen[rank::ranks]
    todo = [index for index in mine if index not in done]
    shown, probed = set(chosen[:pictures]), set(chosen[:PROBED])
    measured = set(chosen) if attacks else shown  # beside a search, one more purification is cheap
    ledger = Ledger()
    judge = _Judge(Limited(model, machine.rows), attacks, threat, seed, draws, ledger)
    bar = progress("evaluating images", len(mine), len(mine) - len(todo), machine.quiet)
    with ledger.watching(model), bar as show:
        for first in range(0, len(todo), machine.block):
            block, here = todo[first : first + machine.block], len(mine) - len(todo) + first
            x, y = (part.to(machine.device) for part in fetch(data, block))
            versions = {}
            for name, version in judge.versions(x, y, block):
                versions[name] = version
                show(here, name)
            outcomes = judge.outcomes(versions, y, block, probed, measured)
            run.add(outcomes, judge.examples(versions, outcomes, y, shown))
            robust = [o.conditions[o.chosen].draws.count(o.label) / draws for o in outcomes]
            show(here + len(block), f"robust in this block {np.mean(robust):.0%}")


@dataclass
class _Judge:
    """Makes the versions of a block of images, and judges them."""

    model: Limited
    attacks: Mapping[str, Attack]
    threat: Threat
    seed: int
    draws: int
    ledger: Ledger
    began: float = 0.0

    def versions(
        self, x: Tensor, y: Tensor, indices: Sequence[int]
    ) -> Iterator[tuple[str, Tensor]]:
        """The images as they are; and, if there are attacks, under random noise and each attack."""
        noise = Noise.of(self.seed, indices)
        self.began = time.perf_counter()
        self.ledger.take()
        yield "clean", x
        if self.attacks:
            yield "random", self.threat.edge(x, noise.fold("control"))
        for name, attack in self.attacks.items():
            x_adv = attack(self.model, x, y, self.threat, noise.fold("search", name))
            held = self.threat if _bounded(attack) else None
            yield name, _allowed(name, x_adv, x, held)

    def _candidates(self) -> set[str]:
        """The conditions that the attacker chooses from.

        Those within the threat; what knows no threat, as a corruption, only if there is nothing else.
        """
        held = {name for name, attack in self.attacks.items() if _bounded(attack)}
        return {"clean", "random", *(held or self.attacks)}

    def outcomes(
        self,
        versions: Mapping[str, Tensor],
        y: Tensor,
        indices: Sequence[int],
        probed: set[int],
        measured: set[int],
    ) -> list[Outcome]:
        """The verdict on each image of a block."""
        noise, clean = Noise.of(self.seed, indices), versions["clean"]
        table: list[dict[str, Condition]] = [{} for _ in indices]
        for name, version in versions.items():
            judged = votes(self.model, version, noise.fold("verdict"), self.draws)
            seen = judged
            if self.attacks:  # else there is nothing to choose from
                seen = votes(self.model, version, noise.fold("select"), self.draws)
            wrong = (seen != y[:, None]).float().mean(1)
            bare = self._bare(version, noise.fold("bare"))
            size = self.threat.size(version - clean)
            for i, row in enumerate(table):
                row[name] = Condition(
                    draws=judged[i].tolist(),
                    bare=bare[i],
                    size=round(float(size[i]), 6),
                    wrong=round(float(wrong[i]), 4),
                )
        which = [i for i, index in enumerate(indices) if index in measured]
        quality = self._quality(versions, noise.fold("quality", "purify"), which)
        candidates = self._candidates()
        cost = {key: count / len(y) for key, count in self.ledger.take().items()}
        seconds = round((time.perf_counter() - self.began) / len(y), 4)
        which = [i for i, index in enumerate(indices) if index in probed]
        probes = _probe(self.model, versions["random"], y, noise, which) if self.attacks else {}
        return [
            Outcome(
                index=index,
                label=int(y[i]),
                conditions=row,
                # of equals, the attack that comes last: it is the strongest as a rule
                chosen=max(
                    (name for name in reversed(row) if name in candidates),
                    key=lambda name, row=row: row[name].wrong,
                ),
                seconds=seconds,
                cost=cost | {"peak_bytes": peak_bytes()},
                made_by=f"defuse {__version__}, torch {torch.__version__}",
                probe=probes.get(i, {}),
                quality=quality.get(i, {}),
            )
            for i, (index, row) in enumerate(zip(indices, table, strict=True))
        ]

    @torch.no_grad()
    def _quality(
        self, versions: Mapping[str, Tensor], noise: Noise, which: Sequence[int]
    ) -> dict[int, dict[str, Quality]]:
        """How far the versions of the images at positions `which` are from the clean ones.

        Before purification and after it; the one draw of the purifier is the same for all versions.
        """
        found: dict[int, dict[str, Quality]] = {i: {} for i in which}
        if not which:
            return found
        clean, model, noise = versions["clean"][which], self.model.model, noise.take(which)
        for name, version in versions.items():
            seen = {} if name == "clean" else {"before": version[which]}
            if isinstance(model, Defended):
                seen["after"] = Limited(model.purifier, self.model.rows)(version[which], noise)
            for when, pictures in seen.items():
                for i, told in zip(which, measure(pictures, clean), strict=True):
                    found[i].setdefault(name, {})[when] = told
        return found

    def _bare(self, x: Tensor, noise: Noise) -> list[int | None]:
        """What the classifier without its defence answers; None if there is no defence."""
        if not isinstance(self.model.model, Defended):
            return [None] * len(x)
        bare = Limited(self.model.model.classifier, self.model.rows)
        return votes(bare, x, noise, 1)[:, 0].tolist()

    def examples(
        self,
        versions: Mapping[str, Tensor],
        outcomes: Sequence[Outcome],
        y: Tensor,
        shown: set[int],
    ) -> dict[str, np.ndarray]:
        """Pictures of those images of a block that are shown."""
        which = [i for i, outcome in enumerate(outcomes) if outcome.index in shown]
        if not which:
            return {}
        indices = [outcomes[i].index for i in which]
        x_adv = torch.stack([versions[outcomes[i].chosen][i] for i in which])
        x, noise = versions["clean"][which], Noise.of(self.seed, indices)
        return _examples(self.model.model, x, x_adv, y[which], noise, indices)


def _bounded(attack: Attack) -> bool:
    """Whether an attack is held to the threat; one that is not says so by `bounded`."""
    return getattr(attack, "bounded", True)


def _allowed(name: str, x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """What an attack returned, if it is images, and within the threat if it is held to one."""
    if x_adv.shape != x.shape:
        raise RuntimeError(
            f"the attack {name} returned images shaped {tuple(x_adv.shape)}, given {tuple(x.shape)}"
        )
    if threat is None:
        if not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
            raise RuntimeError(f"the attack {name} returned what is no image of [0, 1]")
        return x_adv.detach()
    allowed = threat.allows(x, x_adv)
    if not bool(allowed.all()):
        raise RuntimeError(
            f"the attack {name} left the threat ({threat.norm} {threat.eps:.4g}, pixels in [0, 1]) on "
            f"{int((~allowed).sum())} of {len(x)} images; end it with threat.project(x, x_adv)"
        )
    return x_adv.detach()


def _probe(
    model: Limited, x: Tensor, y: Tensor, noise: Noise, which: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """What the doubts are about, seen on the images at positions `which`."""
    if not which:
        return {}
    x, y, noise = x[which], y[which], noise.take(which).fold("probe")
    with torch.no_grad():
        logits, again = model(x, noise.fold(0)), model(x, noise.fold(1))
        alone = model(x[:1], noise.take([0]).fold(0))
    if not bool(logits.isfinite().all()):
        raise RuntimeError("the model returned logits that are not finite; see `defuse doctor`")
    probabilities = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)
    alike = bool(torch.allclose(alone, logits[:1], rtol=1e-2, atol=1e-3))
    peaks = {loss: look(model, x, y, loss, noise, 0, 1).gradient for loss in ("ce", "margin")}
    promised, found = _slope(model, x, y, noise, peaks["margin"])
    return {
        i: {
            "probabilities": bool(probabilities[j]),
            "random": bool((logits[j] != again[j]).any()),
            "alike": alike,
            "gradients": {loss: float(peak[j].abs().max()) for loss, peak in peaks.items()},
            "slope": [float(promised[j]), float(found[j])],
        }
        for j, i in enumerate(which)
    }


def _slope(
    model: Limited, x: Tensor, y: Tensor, noise: Noise, gradient: Tensor, step: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """How much the margin rises over a small step uphill: as the gradient says, and in fact."""
    up, down = (x + step * gradient.sign()).clamp(0, 1), (x - step * gradient.sign()).clamp(0, 1)
    promised = (gradient * (up - down)).flatten(1).sum(1)
    above, below = (
        look(model, side, y, "margin", noise, 0, 1, gradient=False).loss for side in (up, down)
    )
    return promised, above - below


@torch.no_grad()
def _examples(
    model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, noise: Noise, indices: Sequence[int]
) -> dict[str, np.ndarray]:
    """Images clean and attacked, and what the model makes of them."""
    noise = noise.fold("verdict", "vote", 0)  # the first draw of the verdict
    kept = {"index": np.array(indices), "label": _array(y)}
    kept |= {"clean": _array(x), "attacked": _array(x_adv)}
    fooled = y
    if isinstance(model, Defended):
        fooled = model.classifier(x_adv, noise).argmax(1)  # what the attack makes of it, undefended
    for name, version in (("clean", x), ("attacked", x_adv)):
        kept[f"{name}_answer"] = _array(model(version, noise).argmax(1))
        if not isinstance(model, Defended):
            continue
        kept[f"{name}_bare"] = _array(model.classifier(version, noise).argmax(1))
        purify, see = noise.fold("purify"), noise.fold("classify")
        if not hasattr(model.purifier, "walk"):
            kept[f"{name}_purified"] = _array(model.purifier(version, purify))
            continue
        times, seen, state = [], [], version
        for t, state in model.purifier.walk(version, purify):  # pyright: ignore
            times.append(t)
            seen.append(model.classifier(state, see).softmax(1))
        along = torch.stack(seen, 1)  # (B, N + 1, K)
        kept[f"{name}_purified"] = _array(state)
        for key, label in (("sure", y), ("fooled", fooled)):
            which = label[:, None, None].expand(-1, len(times), 1)
            kept[f"{name}_{key}"] = _array(along.gather(2, which)[:, :, 0])
        kept["times"], kept[f"{name}_surest"] = np.array(times), _array(along.amax(2))
    return kept


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
