"""A run as records of Every Eval Ever, schema 0.3.0: a log, and a line for each image and result.

The log (`EvaluationLog`) has a result for each condition and reading. The lines form the
instance-level file next to it, and refer to their results by `evaluation_result_id`.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfool import __version__
from unfool.results.export.conditions import (
    ConditionResult,
    conditions,
    data_name,
    model_words,
    summary_of_finished,
)
from unfool.results.outcome import Condition, Outcome, winner
from unfool.results.report_json import ShareEntry, Summary
from unfool.results.run_folder import Run

SCHEMA_VERSION = "0.3.0"
MODEL_NAME = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True)
class Reading:
    """A way to score the draws of an image.

    Attributes:
        metric: The name of the metric, the same for all runs.
        words: What it means.
        interval: The method of its confidence interval.
        score: The score of one image, from its draws and its label.
    """

    metric: str
    words: str
    interval: str
    score: Callable[[Condition, int], float]


READINGS = {
    "per_draw": Reading(
        "accuracy",
        "how often one pass is right",
        "Wilson, at the number of trials that the scatter over images is worth",
        Condition.rate,
    ),
    "majority": Reading(
        "unfool.majority_accuracy",
        "how often the class of most passes is right; a tie is wrong",
        "Wilson",
        Condition.won,
    ),
    "all_draws": Reading(
        "unfool.all_draws_accuracy",
        "how often all passes are right",
        "Wilson",
        Condition.always,
    ),
}


@dataclass(frozen=True)
class Record:
    """The files of a run for the datastore.

    Attributes:
        folder: Their folder in the datastore: `data/COLLECTION/DEVELOPER/MODEL`.
        name: The name of the log, without `.json`: a UUID that depends only on the run and the
            model.
        log: The log.
        lines: The instance-level file, `NAME_samples.jsonl`.
    """

    folder: str
    name: str
    log: dict[str, Any]
    lines: bytes


def record(run: Run, model: str, now: float, by: str | None = None) -> Record:
    """Make the log of a finished run, with its instance-level file.

    Args:
        run: The run.
        model: The name of the model, `OWNER/NAME`.
        now: The time, in seconds since 1970, at which the record is made.
        by: The organization that ran it.

    Raises:
        RuntimeError: The run is not finished, or is not an evaluation.
        ValueError: The name does not have the form `OWNER/NAME`.
    """
    if not MODEL_NAME.fullmatch(model):
        raise ValueError(f"the model must be named OWNER/NAME, as on a hub, not {model!r}")
    summary = summary_of_finished(run)
    data, (owner, name) = data_name(summary), model.split("/")
    key = f"{data}/{model}/{summary['run']}"
    results = list(conditions(summary))
    lines = b"".join(
        json.dumps(line, ensure_ascii=False).encode() + b"\n"
        for line in _instances(run, results, key, model, data)
    )
    digest = hashlib.sha256(key.encode()).digest()[:16]
    file_name, folder = str(uuid.UUID(bytes=digest, version=4)), f"data/{data}/{owner}/{name}"
    starts = summary["provenance"]["starts"]
    log = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": key,
        **({"evaluation_timestamp": starts[0]["date"]} if starts else {}),
        "retrieved_timestamp": str(int(now)),
        "source_metadata": {
            "source_name": "unfool",
            "source_type": "evaluation_run",
            "source_organization_name": by or "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "unfool", "version": __version__},
        "model_info": _model(run, summary, model),
        "evaluation_results": [
            _result(run, summary, condition, reading, data)
            for condition in results
            for reading in READINGS
        ],
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": f"{folder}/{file_name}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(lines).hexdigest(),
            "total_rows": lines.count(b"\n"),
        },
    }
    return Record(folder, file_name, log, lines)


def _model(run: Run, summary: Summary, model: str) -> dict[str, Any]:
    owner, name = model.split("/")
    parts = {
        key: summary["spec"].get(key) for key in ("classifier", "denoiser", "purifier", "paths")
    }
    return {
        "name": name,
        "id": model,
        "developer": owner,
        "inference_engine": {
            "name": "torch",
            "version": summary["versions"].get("torch", "unknown"),
        },
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "unknown",
            "model": model_words(summary),
            "weights": run.manifest.get("weights", "unknown"),
            **{key: json.dumps(part) for key, part in parts.items() if part is not None},
        },
    }


def _result(
    run: Run, summary: Summary, condition: ConditionResult, reading: str, data: str
) -> dict[str, Any]:
    how, share = READINGS[reading], _share(condition, reading)
    name = f"{data}.{condition.name}"
    doubts = [f"{doubt['name']} ({doubt['severity']})" for doubt in summary["doubts"]]
    return {
        "evaluation_result_id": f"{name}.{reading}",
        "evaluation_name": name,
        "source_data": {
            "dataset_name": data,
            "source_type": "other",
            "additional_details": {
                "images": str(summary["n"]),
                "subset_seed": str(summary["spec"]["evaluation"]["subset_seed"]),
                "images_sha256": run.manifest["images"],
            },
        },
        "metric_config": {
            "evaluation_description": f"{condition.description}; {how.words}",
            "metric_id": how.metric,
            "metric_name": reading.replace("_", " "),
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "metric_parameters": {"draws": _draws(condition, reading)},
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": share["accuracy"],
            "details": {"doubts": ", ".join(doubts) or "none"},
            "uncertainty": {
                "confidence_interval": {
                    "lower": share["low"],
                    "upper": share["high"],
                    "confidence_level": 0.95,
                    "method": how.interval,
                },
                "num_samples": summary["n"],
            },
        },
        "generation_config": {
            "additional_details": {
                "seed": str(summary["spec"]["evaluation"]["seed"]),
                "not_tried": " ".join(summary["not_tried"]),
                **{
                    key.replace("'s ", "_").replace(" ", "_"): text
                    for key, text in summary["threat_model"].items()
                },
            }
        },
    }


def _draws(condition: ConditionResult, reading: str) -> int:
    k = condition.readings["k"]
    return condition.readings.get("draws", k) if reading == "per_draw" else k


def _share(condition: ConditionResult, reading: str) -> ShareEntry:
    if reading == "per_draw":
        return condition.readings["per_draw"]
    return (
        condition.readings["majority"] if reading == "majority" else condition.readings["all_draws"]
    )


def _instances(
    run: Run, results: Sequence[ConditionResult], key: str, model: str, data: str
) -> Iterator[dict[str, Any]]:
    """Yield a line for each image, condition, and reading."""
    classes = run.manifest["classes"]
    for outcome in run.outcomes():
        for condition in results:
            judged = outcome.condition(condition.name)
            shared_fields = {
                "schema_version": SCHEMA_VERSION,
                "evaluation_id": key,
                "model_id": model,
                "evaluation_name": f"{data}.{condition.name}",
                **_sample(outcome, judged, classes, data),
                "metadata": {
                    "index": str(outcome.index),
                    "label": str(outcome.label),
                    "perturbation": f"{judged.size:.6g}",
                    **({"attack": outcome.chosen} if condition.name == "robust" else {}),
                },
            }
            for reading, how in READINGS.items():
                score = float(how.score(judged, outcome.label))
                right = judged.won(outcome.label) if reading == "per_draw" else score == 1
                yield {
                    **shared_fields,
                    "evaluation_result_id": f"{data}.{condition.name}.{reading}",
                    "evaluation": {"score": score, "is_correct": right},
                }


def _sample(
    outcome: Outcome, condition: Condition, classes: Sequence[str], data: str
) -> Mapping[str, Any]:
    """Return the input and the answers of an image under a condition, for each of its lines."""
    raw, reference = f"image {outcome.index} of {data}", [_class(outcome.label, classes)]
    hashed = json.dumps({"raw": raw, "reference": reference}, sort_keys=True, separators=(",", ":"))
    won = winner(condition.taken)
    return {
        "sample_id": f"{data}/{outcome.index}",
        "sample_hash": hashlib.sha256(hashed.encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "reference": reference},
        "output": {"raw": [_class(answer, classes) for answer in condition.taken]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": "tie" if won is None else _class(won, classes),
                "extraction_method": "majority_vote",
                "is_terminal": True,
            }
        ],
    }


def _class(number: int, classes: Sequence[str]) -> str:
    return classes[number] if number < len(classes) else str(number)
