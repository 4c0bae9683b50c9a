"""Compares two runs image by image, on the same images and the same held-out draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unfool.noise import Noise
from unfool.results.attack_roles import roles
from unfool.results.image_records import PairedImage, condition_record
from unfool.results.outcome import Outcome
from unfool.results.report_json import DoubtEntry, Provenance
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec
from unfool.results.summary import judge, summarize_run
from unfool.spec import FILE_KEYS, NOT_IN_EVALUATION, NOT_IN_IDENTITY
from unfool.statistics import Mean, Share, mcnemar
from unfool.threat import Threat

RESAMPLES = 10_000
RANDOM_NUMBERS_AT_ONCE = 1 << 22  # random numbers that are drawn at once
HASH_DIGITS = 64  # digits of the data's hash; one of precomputed adversarial images may follow


@dataclass(frozen=True)
class Paired:
    """The accuracies of two models under one condition, on the same images.

    Attributes:
        name: The condition; `robust` is the attack that counts, chosen for each image in each run.
        a: Accuracy per draw of the first model.
        b: Accuracy per draw of the second model.
        change: `b` minus `a`, with a paired interval over images.
        only_a: Number of images whose majority is right in the first run only.
        only_b: Number of images whose majority is right in the second run only.
        p: McNemar's p-value of these two counts.
        agree: Whether both give the same answer to each image at each draw.
    """

    name: str
    a: Share
    b: Share
    change: Mean
    only_a: int
    only_b: int
    p: float
    agree: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Attributes:
        folders: The folders of the first run, A, and the second, B.
        n: Number of images that both have finished.
        requested: Number of images in the specs of both.
        draws: Held-out draws per image.
        rows: The conditions that both have.
        differs: The differences between their specs, code, and versions: {path: (in A, in B)}.
        doubts: The doubts of each run, as in its report.
        not_tried: What neither run tried, in words.
        provenance: Where the numbers of each run come from.
        images: The result of each image.
    """

    folders: tuple[str, str]
    n: int
    requested: int
    draws: int
    rows: list[Paired]
    differs: dict[str, tuple[Any, Any]]
    doubts: tuple[list[DoubtEntry], list[DoubtEntry]]
    not_tried: list[str]
    provenance: tuple[Provenance, Provenance]
    images: list[PairedImage]


def compare(a: Run, b: Run, resamples: int = RESAMPLES) -> Comparison:
    """Compare B with A, on the images that both have finished.

    Args:
        a: The first run, the baseline.
        b: The second.
        resamples: Number of bootstrap resamples for the intervals.

    Raises:
        RuntimeError: A run is not an evaluation, or the two differ in images, threats, seeds,
            numbers of draws, or `curtail`, or have no image in common yet.
    """
    done = [{outcome.index: outcome for outcome in run.outcomes()} for run in (a, b)]
    _require_comparable(a, b)
    both = [(done[0][index], done[1][index]) for index in done[0] if index in done[1]]
    if not both:
        raise RuntimeError(
            f"{a.folder} and {b.folder} have no image in common yet: run their evaluations to the "
            "end, or merge their shards first"
        )
    names = _shared_conditions(a.spec, b.spec)
    options, summaries = a.spec["evaluation"], (summarize_run(a), summarize_run(b))
    return Comparison(
        folders=(str(a.folder), str(b.folder)),
        n=len(both),
        requested=len(a.manifest["indices"]),
        draws=options["draws"],
        rows=paired(both, names, options["seed"], resamples),
        differs=differences(a.manifest, b.manifest),
        doubts=(summaries[0]["doubts"], summaries[1]["doubts"]),
        not_tried=[text for text in summaries[0]["not_tried"] if text in summaries[1]["not_tried"]],
        provenance=(summaries[0]["provenance"], summaries[1]["provenance"]),
        images=[_paired_image(pair, names, a.manifest["classes"]) for pair in both],
    )


def paired(
    both: Sequence[tuple[Outcome, Outcome]],
    names: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Paired]:
    """Compare the conditions `names` of the same images in two runs.

    Args:
        both: For each image, its outcomes in the two runs.
        names: Conditions that both runs have, or `robust`.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    sides: list[tuple[Outcome, ...]] = list(zip(*both, strict=True))
    rates, judged, won, taken = {}, {}, {}, {}
    for name in names:
        for side, outcomes in enumerate(sides):
            rows = [(outcome.condition(name), outcome.label) for outcome in outcomes]
            rates[name, side] = np.array([outcome.rate(name) for outcome in outcomes])
            taken[name, side] = [row.taken for row, _ in rows]
            won[name, side] = np.array([row.won(label) for row, label in rows])
            judged[name, side] = judge(name, outcomes)
    gaps = np.stack([rates[name, 1] - rates[name, 0] for name in names], 1)
    changes = bootstrap(gaps, [judged[name, 0].draws for name in names], seed, resamples)
    result = []
    for name, change in zip(names, changes, strict=True):
        right = won[name, 0], won[name, 1]
        only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        shares = judged[name, 0].per_draw, judged[name, 1].per_draw
        change = within_reach(change, shares[0].value, shares[1].value)
        p, agree = mcnemar(only_a, only_b), taken[name, 0] == taken[name, 1]
        result.append(Paired(name, *shares, change, only_a, only_b, p, agree))
    return result


def within_reach(change: Mean, a: float, b: float) -> Mean:
    """Cut the interval of a change from `a` to `b` at 0 where one of them is 0 or 1.

    If one model is right on every image, or on none, the other can differ in one direction only.
    (If both are equal, the interval keeps its width, which alone shows how few images there are.)
    """
    if a == b:
        return change
    if (a == 1 or b == 0) and b < a:
        return change._replace(high=min(change.high, 0.0))
    if (a == 0 or b == 1) and a < b:
        return change._replace(low=max(change.low, 0.0))
    return change


def bootstrap(gaps: np.ndarray, draws: Sequence[int], seed: int, resamples: int) -> list[Mean]:
    """Compute means over images of paired differences, with 95 % intervals from resampled images.

    Two images are added, on either side of the mean, as far from it as those of
    `statistics.paired_difference_interval` are from 0. So an interval has a width even if no image
    differs, and covers what few images do not show. It goes from the 2.5th to the 97.5th percentile
    of the means of the resamples (Efron and Tibshirani, 1993, chapter 13). All conditions use the
    same resamples.

    Args:
        gaps: (images, conditions), each the mean of `draws` differences between values of 0 or 1.
        draws: Draws per image, for each condition.
        seed: Seed. The resamples depend only on it and on the number of images.
        resamples: Number of resamples.
    """
    middle, more = gaps.mean(0), (2 * np.asarray(draws, dtype=float)) ** -0.5
    values = np.vstack([gaps, middle + more, middle - more])
    size, means = len(values), []
    step = max(1, RANDOM_NUMBERS_AT_ONCE // size)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        noise = Noise.of(seed, range(first, first + count)).child("bootstrap")
        places = (noise.uniform(torch.zeros(count, size)).double() * size).long().numpy()
        places += size * np.arange(count)[:, None]
        times = np.bincount(places.ravel(), minlength=count * size).reshape(count, size)
        means.append(times @ values / size)
    ends = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0).clip(-1, 1)
    return [Mean(float(m), float(x), float(y)) for m, x, y in zip(middle, *ends, strict=True)]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences between two manifests: {path: (in A, in B)}.

    Attacks are matched by label. Options outside a spec's identity are left out, and so are whole
    specs whose identities agree although their files lie elsewhere. None stands for a missing
    value.
    """
    result = {}
    if a["identity"] != b["identity"]:
        specs = [{k: v for k, v in run["spec"].items() if k != "machine"} for run in (a, b)]
        result = dict(_differences(specs[0], specs[1], ""))
        if not result:
            result["contents of a file that both name:"] = (a["identity"], b["identity"])
    if a["images"] != b["images"]:  # precomputed images, as the data are the same
        precomputed = [run["images"][HASH_DIGITS:][:8] or None for run in (a, b)]
        result["images that were made before:"] = (precomputed[0], precomputed[1])
    if a.get("code") != b.get("code"):
        result["your own code:"] = (str(a.get("code"))[:8], str(b.get("code"))[:8])
    return result | dict(_differences(a.get("versions"), b.get("versions"), "versions"))


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    a, b = _by_label(a), _by_label(b)
    tables = isinstance(a, dict) and isinstance(b, dict)
    if not tables or (path and a.get("name") != b.get("name")):
        if a != b:
            yield path, (a, b)
        return
    ignored = (*NOT_IN_IDENTITY, *(NOT_IN_EVALUATION if path == "evaluation" else ()))
    for key in [*a, *(key for key in b if key not in a)]:
        if key not in ignored:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))


def _by_label(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(row, dict) and "label" in row for row in value):
        return {row["label"]: row for row in value}
    return value


def _require_comparable(a: Run, b: Run) -> None:
    """Refuse two runs that cannot be compared."""
    specs, runs = [run.spec for run in (a, b)], f"{a.folder} and {b.folder}"
    first, second = (spec["evaluation"] for spec in specs)
    indices = [run.manifest["indices"] for run in (a, b)]
    images = [run.manifest["images"][:HASH_DIGITS] for run in (a, b)]
    if indices[0] != indices[1] or images[0] != images[1]:
        sets = _data_sets([spec["data"] for spec in specs])
        if sets[0] != sets[1]:
            raise RuntimeError(
                f"{runs} use different data sets ({sets[0]} and {sets[1]}): evaluate both on the "
                "same"
            )
        drawn = [(spec["images"], spec["subset_seed"]) for spec in (first, second)]
        if indices[0] != indices[1] and drawn[0] != drawn[1]:
            counts = [len(places) for places in indices]
            raise RuntimeError(
                f"{runs} use different images ({counts[0]} and {counts[1]} of the data set): "
                "evaluate both with the same evaluation.images and evaluation.subset_seed"
            )
        raise RuntimeError(
            f"{runs} use different images (the contents or labels of the data sets differ): "
            "evaluate both on the same data"
        )
    for key, why in (
        ("seed", "the models did not get the same noise"),
        ("draws", "majorities over different numbers of draws cannot be compared"),
    ):
        if first[key] != second[key]:
            raise RuntimeError(
                f"{runs} have evaluation.{key} {first[key]} and {second[key]}, so {why}: evaluate "
                "both with the same value"
            )
    if first.get("curtail", False) != second.get("curtail", False):
        curtailed = [bool(options.get("curtail")) for options in (first, second)]
        raise RuntimeError(
            f"{runs} have evaluation.curtail {curtailed[0]} and {curtailed[1]}, so their accuracies "
            "per draw are not of the same draws: evaluate both with the same"
        )
    threats = [Threat(**spec["threat"]) for spec in specs]
    if all(spec["attacks"] for spec in specs) and threats[0] != threats[1]:
        descriptions = [f"{threat.norm} {threat.eps:.4g}" for threat in threats]
        raise RuntimeError(
            f"{runs} have different threats ({descriptions[0]} and {descriptions[1]}): evaluate both "
            "with the same threat"
        )


def _data_sets(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe the data of two specs by their names or, if these agree, the options that differ."""
    sections = [
        {k: v for k, v in part.items() if k not in (*NOT_IN_IDENTITY, *FILE_KEYS)} for part in parts
    ]
    if sections[0]["name"] != sections[1]["name"]:
        return [part["name"] for part in sections]
    differing = [
        key for key in sections[0] | sections[1] if sections[0].get(key) != sections[1].get(key)
    ]
    options = [", ".join(f"{key} {part.get(key)}" for key in differing) for part in sections]
    return [f"{part['name']} with {words}" for part, words in zip(sections, options, strict=True)]


def _shared_conditions(a: EvaluationSpec, b: EvaluationSpec) -> list[str]:
    """The conditions that two specs have in common, in the order of a report."""
    first, second = _condition_roles(a), _condition_roles(b)
    return [name for name, part in first.items() if second.get(name) == part]


def _condition_roles(spec: EvaluationSpec) -> dict[str, str]:
    """The conditions of a spec, with the role of each."""
    attacks, unbounded, corruptions, known_noise = roles(spec["attacks"])
    result = {"clean": "clean"} | ({"random": "random"} if spec["attacks"] else {})
    result |= {row["label"]: "attack" for row in attacks}
    if attacks:
        result["robust"] = "bounded" if attacks[0].get("bounded", True) else "unbounded"
    result |= {row["label"]: f"knows {row.get('knows', '')}" for row in known_noise}
    result |= {row["label"]: "beyond" for row in unbounded}
    return result | {row["label"]: "corruption" for row in corruptions}


def _paired_image(
    pair: tuple[Outcome, Outcome], names: Sequence[str], classes: Sequence[str]
) -> PairedImage:
    label = pair[0].label
    records = {
        name: [condition_record(outcome.condition(name), label) for outcome in pair]
        for name in names
    }
    return {
        "index": pair[0].index,
        "label": label,
        "class_name": classes[label],
        "conditions": {name: {"a": a, "b": b} for name, (a, b) in records.items()},
    }
