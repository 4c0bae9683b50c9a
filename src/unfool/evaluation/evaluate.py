"""The evaluation, image by image.

Every image is evaluated clean, under random noise, and under each attack, on noise that no search
has seen. Its outcome is written when its block is done.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unfool import __version__
from unfool.attacks.views import Batched
from unfool.batching import in_parts
from unfool.defenses.purified_classifier import predict, predict_draws
from unfool.evaluation.attack_runner import (
    AttackRunner,
    Machine,
    bounded,
    by_block,
    positions_except,
    revealed_noise,
)
from unfool.evaluation.cost import peak_bytes
from unfool.evaluation.draw_caller import curtailed
from unfool.evaluation.image_quality import measure
from unfool.evaluation.sanity_checks import sanity_check
from unfool.noise import Noise
from unfool.protocols import Attack, Classifier, Dataset, Defended
from unfool.results.outcome import Condition, Curtailed, Outcome
from unfool.results.quality_means import Quality
from unfool.results.run_folder import OutcomeStore
from unfool.statistics import percent
from unfool.threat import Knowledge, Threat

PROBED = 16  # number of first images of a run on which sanity checks query the model


def evaluate_into(
    model: Classifier,
    data: Dataset,
    attacks: Mapping[str, Attack],
    threat: Threat,
    store: OutcomeStore,
    *,
    indices: Sequence[int] | None = None,
    only: Collection[int] | None = None,
    seed: int = 0,
    draws: int = 8,
    examples: int = 8,
    skip_broken: bool = False,
    lpips: bool = False,
    curtail: bool = False,
    machine: Machine | None = None,
) -> None:
    """Evaluate the images whose outcomes `store` lacks.

    The verdict on an image is the class that the model chooses at each of `draws` held-out draws of
    its noise, the same draws for the clean and the attacked image. The attack that counts is chosen
    on other draws, as the attacker would have to.

    Args:
        model: The classifier, defended or not.
        data: Images with labels.
        attacks: The attacks by name.
        threat: What they may change.
        store: The store of the outcomes.
        indices: The images of the run; all by default.
        only: The images to evaluate here; all of `indices` by default.
        seed: Seed of all noise.
        draws: Held-out draws of each verdict.
        examples: Number of first images that are kept as examples.
        skip_broken: Attack only images that no earlier version made wrong on all of the attacker's
            own draws; the others keep that version.
        lpips: Also measure this distance to the clean images.
        curtail: Stop the verdict on an image once no further draw can change its majority, or
            whether all draws are right; the accuracy per draw is then that of the first half of the
            draws.
        machine: Settings that change only the speed.

    Raises:
        RuntimeError: An attack returned images outside the threat, or the model NaN or infinity.
    """
    machine = machine or Machine()
    chosen = list(range(len(data)) if indices is None else indices)
    shown, probed = set(chosen[:examples]), set(chosen[:PROBED])
    measured = set(chosen) if attacks else shown  # after attacks, purifying once more is cheap
    runner = AttackRunner(
        Batched(model, machine.batch_size), attacks, threat, seed, draws, skip_broken
    )
    judge = Judge(runner, lpips, curtail)

    def keep(block: Sequence[int], y: Tensor, versions: Mapping[str, Tensor]) -> str:
        outcomes = judge.outcomes(versions, y, block, probed, measured)
        store.add(outcomes, judge.examples(versions, outcomes, y, shown))
        robust = [outcome.rate("robust") for outcome in outcomes]
        status = f"robust in this block {percent(float(np.mean(robust)), 0)}"
        return (
            status if judge.candidates() - {"clean", "random"} else f"{status} (random noise only)"
        )

    done = {outcome.index for outcome in store.outcomes()}
    if only is not None:
        done |= set(chosen) - set(only)
    by_block("evaluating images", runner, data, chosen, done, machine, keep)


@dataclass
class Judge:
    """Judges the versions of a block of images that an `AttackRunner` made."""

    runner: AttackRunner
    lpips: bool
    curtail: bool = False

    @property
    def model(self) -> Batched:
        """The model that is judged."""
        return self.runner.model

    def candidates(self) -> set[str]:
        """The conditions that the attacker chooses from.

        They are `clean`, `random`, and the attacks within the threat. If the threat limits none of
        the run's attacks, they are `clean` and these attacks; if all of these are corruptions,
        `clean` and the corruptions.
        """
        uninformed = {n: a for n, a in self.runner.attacks.items() if not getattr(a, "knows", None)}
        within_threat = {name for name, attack in uninformed.items() if bounded(attack)}
        if within_threat or not uninformed:
            return {"clean", "random", *within_threat}
        adversarial = {
            n for n, attack in uninformed.items() if getattr(attack, "adversarial", True)
        }
        return {"clean", *(adversarial or uninformed)}

    def outcomes(
        self,
        versions: Mapping[str, Tensor],
        y: Tensor,
        indices: Sequence[int],
        probed: set[int],
        measured: set[int],
    ) -> list[Outcome]:
        """Return the outcome of each image of a block."""
        runner = self.runner
        noise, clean = Noise.of(runner.seed, indices), versions["clean"]
        table: list[dict[str, Condition]] = [{} for _ in indices]
        for name, version in versions.items():
            reused = runner.reused_from.get(name, {})
            for i, earlier in reused.items():
                table[i][name] = replace(table[i][earlier], same_image_as=earlier)
            positions = positions_except(reused, len(y))
            if not positions:
                continue
            x, own_noise = version[positions], noise.take(positions)
            knows = getattr(runner.attacks.get(name), "knows", None)
            judged = self._judged(x, y[positions], own_noise, knows)
            # without a choice between attacks, these are the verdict's draws
            attacker_answers = torch.tensor([draws for draws, _ in judged], device=y.device)
            if name in runner.own_predictions:
                attacker_answers = runner.own_predictions[name]
            elif runner.attacks and not knows and not runner.answers.noise_free:
                attacker_answers = runner.answers(x, own_noise.child("select"), runner.draws)
            wrong = (attacker_answers != y[positions, None]).float().mean(1)
            undefended = self._without_purifier(x, own_noise.child("bare"))
            size = runner.threat.size(x - clean[positions])
            for j, i in enumerate(positions):
                table[i][name] = Condition(
                    draws=judged[j][0],
                    curtailed=judged[j][1],
                    undefended=undefended[j],
                    size=round(float(size[j]), 6),
                    attacker_error_rate=round(float(wrong[j]), 4),
                )
        which = [i for i, index in enumerate(indices) if index in measured]
        quality = self.quality(versions, noise.child("quality", "purify"), which)
        candidates = self.candidates()
        cost = {key: count / len(y) for key, count in runner.calls.take().items()}
        seconds = round((time.perf_counter() - runner.began) / len(y), 4)
        which = [i for i, index in enumerate(indices) if index in probed]
        probes = (
            sanity_check(self.model, versions["random"], y, noise, which) if runner.attacks else {}
        )
        return [
            Outcome(
                index=index,
                label=int(y[i]),
                conditions=row,
                # on a tie, the last attack, which is usually the strongest
                chosen=max(
                    (
                        name
                        for name in reversed(row)
                        if name in candidates and not row[name].same_image_as
                    ),
                    key=lambda name, row=row: row[name].attacker_error_rate,
                ),
                seconds=seconds,
                cost=cost | {"peak_bytes": peak_bytes()},
                made_by=f"unfool {__version__}, torch {torch.__version__}",
                sanity=probes.get(i, {}),
                quality=quality.get(i, {}),
                loss_curves={
                    name: curves[i] for name, curves in runner.loss_curves.items() if i in curves
                },
            )
            for i, (index, row) in enumerate(zip(indices, table, strict=True))
        ]

    @torch.no_grad()
    def _judged(
        self, x: Tensor, y: Tensor, noise: Noise, knows: Knowledge | None
    ) -> list[tuple[list[int], Curtailed | None]]:
        """Return the verdict's draws of each image; only one if the attacker knows all noise."""
        k, stream, answers = self.runner.draws, noise.child("verdict"), self.runner.answers
        previous: list[Tensor] = []

        def answer(which: list[int], first: int, draws: int) -> Tensor:
            if previous and answers.noise_free:
                return previous[0][which, :1].expand(-1, draws)
            previous.append(answers(x[which], stream.take(which), draws, first))
            return previous[-1]

        def answer_known_noise(which: list[int], first: int, draws: int) -> Tensor:
            queries = [
                stream.take(which).for_query(query_index)
                for query_index in query_indices[first : first + draws]
            ]
            return torch.stack([self.model.decide(x[which], query) for query in queries], 1)

        if knows is not None:
            stream = knows.reveal(noise.child("verdict", "rest"), revealed_noise(noise))
            query_indices = knows.query_indices(k)
            answer, k = answer_known_noise, len(query_indices)
        if self.curtail and k > 1:
            return list(curtailed(answer, y.tolist(), k))
        return [(draws, None) for draws in answer(list(range(len(x))), 0, k).tolist()]

    @torch.no_grad()
    def quality(
        self, versions: Mapping[str, Tensor], noise: Noise, which: Sequence[int]
    ) -> dict[int, dict[str, Quality]]:
        """Measure how far the versions of the images at positions `which` are from the clean ones.

        They are measured before and after purification. The purifier uses the same draw for all
        versions.
        """
        result: dict[int, dict[str, Quality]] = {i: {} for i in which}
        if not which:
            return result
        clean, model, noise = versions["clean"][which], self.model.model, noise.take(which)
        for name, version in versions.items():
            by_time = {} if name == "clean" else {"before": version[which]}
            if isinstance(model, Defended):
                by_time["after"] = Batched(model.purifier, self.model)(version[which], noise)
            for when, images in by_time.items():
                for i, distances in zip(which, measure(images, clean, self.lpips), strict=True):
                    result[i].setdefault(name, {})[when] = distances
        return result

    def _without_purifier(self, x: Tensor, noise: Noise) -> list[int | None]:
        """The predictions of the classifier without its defense; None if there is no defense."""
        if not isinstance(self.model.model, Defended):
            return [None] * len(x)
        bare = Batched(self.model.model.classifier, self.model)
        return predict_draws(bare, x, noise, 1)[:, 0].tolist()

    def examples(
        self,
        versions: Mapping[str, Tensor],
        outcomes: Sequence[Outcome],
        y: Tensor,
        shown: set[int],
    ) -> dict[str, np.ndarray]:
        """Return the arrays of those images of a block that the report shows as examples."""
        which = [i for i, outcome in enumerate(outcomes) if outcome.index in shown]
        if not which:
            return {}
        indices = [outcomes[i].index for i in which]
        x_adv = torch.stack([versions[outcomes[i].chosen][i] for i in which])
        x, noise = versions["clean"][which], Noise.of(self.runner.seed, indices)

        answers = {
            "clean": [outcomes[i].conditions["clean"].draws[0] for i in which],
            "attacked": [outcomes[i].conditions[outcomes[i].chosen].draws[0] for i in which],
        }

        def examples_of(rows: slice) -> dict[str, np.ndarray]:
            inputs = x[rows], x_adv[rows], y[which][rows], noise.take(range(rows.start, rows.stop))
            block_answers = {name: np.array(classes[rows]) for name, classes in answers.items()}
            return _examples(self.model.model, *inputs, indices[rows], block_answers)

        parts = in_parts(examples_of, len(which), self.model)
        times = parts[0].pop("times", None)  # the same for all images
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return arrays if times is None else arrays | {"times": times}


@torch.no_grad()
def _examples(
    model: Classifier,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    noise: Noise,
    indices: Sequence[int],
    answers: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return clean and attacked images, the model's intermediate results, and the given answers."""
    noise = noise.child("verdict", "vote", 0)  # the first draw of the verdict
    arrays = {"index": np.array(indices), "label": _array(y)}
    arrays |= {"clean": _array(x), "attacked": _array(x_adv)}
    fooled = y
    if isinstance(model, Defended):
        fooled = predict(model.classifier, x_adv, noise)  # what the undefended classifier predicts
    for name, version in (("clean", x), ("attacked", x_adv)):
        arrays[f"{name}_answer"] = answers[name]
        if not isinstance(model, Defended):
            continue
        bare = fooled if name == "attacked" else predict(model.classifier, version, noise)
        arrays[f"{name}_bare"] = _array(bare)
        purifier_noise, classifier_noise = noise.child("purify"), noise.child("classify")
        if not hasattr(model.purifier, "walk"):
            arrays[f"{name}_purified"] = _array(model.purifier(version, purifier_noise))
            continue
        times, predictions, state = [], [], version
        for t, state in model.purifier.walk(version, purifier_noise):  # pyright: ignore
            times.append(t)
            predictions.append(model.classifier(state, classifier_noise).softmax(1))
        probabilities = torch.stack(predictions, 1)  # (B, N + 1, K)
        arrays[f"{name}_purified"] = _array(state)
        for key, label in (("sure", y), ("fooled", fooled)):
            which = label[:, None, None].expand(-1, len(times), 1)
            arrays[f"{name}_{key}"] = _array(probabilities.gather(2, which)[:, :, 0])
        arrays["times"], arrays[f"{name}_surest"] = np.array(times), _array(probabilities.amax(2))
    return arrays


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
