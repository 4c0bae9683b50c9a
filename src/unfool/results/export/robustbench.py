"""A run as a model-info file of RobustBench (Croce et al., 2021).

The keys are those of the files in its folder `model_info/`. What a run does not know (authors,
venue, link) is null.
"""

from typing import Any

from unfool import spec as specs
from unfool.results.export.conditions import model_words, red_doubts, summary_of_finished
from unfool.results.report_json import Readings
from unfool.results.run_folder import Run
from unfool.results.threat_model import eps_words

NORMS = ("linf", "l2")


def model_info(run: Run, name: str | None = None) -> dict[str, Any]:
    """Return RobustBench's JSON entry of a model, from a finished run.

    Accuracies are in percent, per draw, because RobustBench queries a model once. `autoattack_acc`
    is the accuracy under AutoAttack on the exact gradient, if the run tried it; `external` is the
    accuracy under the attack that counts. `footnote` has the intervals of `clean_acc` and
    `external` and the red doubts, and `unreliable` says whether there are any.

    Args:
        run: The run.
        name: The name of the model.

    Raises:
        RuntimeError: The run is not finished, or is not an evaluation.
        ValueError: RobustBench has no leaderboard for its threat, or nothing was attacked or
            corrupted.
    """
    summary = summary_of_finished(run)
    norm, attacks = summary["threat"]["norm"], summary["spec"]["attacks"]
    if not attacks:
        raise ValueError(
            f"{run.folder} tried no attack and no corruption, and RobustBench lists only results "
            "under these: name a run with one"
        )
    if summary["attacks"] and norm not in NORMS:
        raise ValueError(
            f"RobustBench has leaderboards for {' and '.join(NORMS)}, and none for {norm}: name a "
            "run with such a threat"
        )
    auto = [
        row["label"]
        for row in attacks
        if row["name"] == "autoattack" and specs.part("view", row["view"])["name"] == "exact"
    ]
    under = {row["name"]: row["robust"] for row in summary["attacks"]}
    auto_readings = [under[label] for label in auto if label in under]
    robust = summary["robust"] if summary["attacks"] else None
    corrupted = summary.get("corrupted")
    red = red_doubts(summary)
    return {
        "link": None,
        "name": name,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": None if "purifier" in summary["spec"] else 1,
        "dataset": summary["spec"]["data"]["name"],
        "venue": None,
        "architecture": model_words(summary),
        "eps": eps_words(summary["threat"]["eps"]) if summary["attacks"] else None,
        "clean_acc": _percent(summary["clean"]),
        "reported": None,
        "corruptions_acc": _percent(corrupted),
        "autoattack_acc": _percent(min(auto_readings, key=_accuracy, default=None)),
        "external": _percent(robust),
        "footnote": _footnote(summary["n"], summary["clean"], robust, list(under), red),
        "unreliable": bool(red),
    }


def _accuracy(readings: Readings) -> float:
    return readings["per_draw"]["accuracy"]


def _percent(readings: Readings | None) -> str | None:
    return None if readings is None else f"{100 * _accuracy(readings):.2f}"


def _footnote(
    n: int, clean: Readings, robust: Readings | None, attacks: list[str], red: list[str]
) -> str:
    """Return the intervals, the numbers of images and draws, and the red doubts in words."""
    text = f"{n} images, {clean['k']} draws each; 95 % intervals: clean {_interval(clean)}"
    if robust is not None:
        text += f", external {_interval(robust)} (the worst of {', '.join(attacks)} for each image)"
    text += ". Accuracy of one pass of a model that may be random; measured with unfool."
    return text + (f" Doubts: {', '.join(red)}." if red else "")


def _interval(readings: Readings) -> str:
    share = readings["per_draw"]
    return f"[{100 * share['low']:.2f}, {100 * share['high']:.2f}]"
