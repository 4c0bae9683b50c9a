"""The page of a model on a hub: README.md with metadata, results, license, and how to load it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from unfool.models.card import Card, read_card
from unfool.results.export.conditions import conditions, summary_of_finished, threat
from unfool.results.report_json import Readings, ShareEntry, Summary
from unfool.results.run_folder import Run
from unfool.statistics import percent_interval

TASKS = {"classifier": "image-classification", "denoiser": "unconditional-image-generation"}
ON_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}
LOADS = {"classifier": "load_classifier", "denoiser": "load_denoiser"}


def readme(
    name: str, card: Card, repository: str, license: str | None, runs: Sequence[Run] = ()
) -> str:
    """Return the text of README.md.

    Args:
        name: The name of the model.
        card: The contents of its card.
        repository: `OWNER/NAME` on the hub.
        license: A license identifier of the hub, such as `apache-2.0`; None leaves it out.
        runs: Finished evaluations of the model, whose results are included.

    Raises:
        RuntimeError: A run is not finished, or does not name the model in its spec.
    """
    summaries = [_of_model(run, card) for run in runs]
    meta = yaml.safe_dump(
        _metadata(name, card, license, summaries), sort_keys=False, allow_unicode=True
    )
    data = card.get("data", {}).get("name")
    trained = f" trained on {data}" if data else ""
    lines = [f"---\n{meta}---\n", f"# {name}\n"]
    lines.append(
        f"A {card['kind']} of images{trained}, {card.get('parameters', 0):,} parameters, made with "
        "[unfool](https://github.com/unfool/unfool).\n"
    )
    lines += ["## Results\n", *_metrics(card), *(line for s in summaries for line in _results(s))]
    lines.append(
        f"## Use\n\n```console\n$ pip install unfool\n$ hf download {repository} --local-dir {name}\n```"
        f"\n\n```python\nimport unfool\n\nmodel = unfool.{LOADS[card['kind']]}({name!r})\n```\n\n"
        f"In a spec: `{card['kind']}: {{name: trained, weights: {name}}}`. Images are in [0, 1].\n"
    )
    facts = {key: card.get(key) for key in ("objective", "data", "began_as") if key in card}
    lines.append("## How it was made\n")
    if command := card.get("command"):
        lines.append(f"```console\n$ {command}\n```\n")
    lines += [f"- {key}: `{json.dumps(value)}`" for key, value in facts.items()]
    lines.append(f"- sha256 of the weights: `{card['sha256']}`\n- everything else: `card.json`\n")
    lines.append(
        "## Limits\n\nA robust accuracy is an upper bound: it holds for the named attacks and "
        "threat, and a stronger attack may lower it. It says nothing about other data.\n"
    )
    return "\n".join(lines)


def _of_model(run: Run, card: Card) -> Summary:
    """The summary of a finished run whose spec names the weights of `card`."""
    summary, spec = summary_of_finished(run), run.spec
    for table in _tables([spec.get(key) for key in ("classifier", "denoiser", "purifier")]):
        if table.get("name") == "trained" and isinstance(weights := table.get("weights"), str):
            try:
                if read_card(weights)[1]["sha256"] == card["sha256"]:
                    return summary
            except ValueError:  # the folder no longer exists
                continue
    raise RuntimeError(
        f"the spec of {run.folder} does not use these weights (their sha256 differs), so its "
        "results are not this model's: name a run of this model, and start the command in the "
        "folder that the paths of its spec are relative to"
    )


def _tables(value: Any) -> list[dict[str, Any]]:
    tables = [value] if isinstance(value, dict) else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tables + [table for item in inner for table in _tables(item)]


def _metadata(
    name: str, card: Card, license: str | None, summaries: Sequence[Summary]
) -> dict[str, Any]:
    meta: dict[str, Any] = {"license": license} if license else {}
    meta |= {"library_name": "unfool", "pipeline_tag": TASKS[card["kind"]]}
    meta["tags"] = ["unfool", "adversarial-robustness", "image-classification"]
    data = card.get("data", {}).get("name")
    if data in ON_HUB:
        meta["datasets"] = [ON_HUB[data]]
    results = [
        _entry(s, condition.name, condition.readings)
        for s in summaries
        for condition in conditions(s)
    ]
    accuracy = card.get("metrics", {}).get("accuracy")
    if accuracy is not None and data:
        metric = {"type": "accuracy", "value": accuracy, "name": "accuracy"}
        results.insert(0, _index(str(data), metric))
    if results:
        meta["model-index"] = [{"name": name, "results": results}]
    return meta


def _entry(summary: Summary, condition: str, readings: Readings) -> dict[str, Any]:
    title = f"accuracy per draw, {condition}"
    if condition != "clean":
        title += f" ({threat(summary)})"
    title += _defended(summary)
    metric = {"type": "accuracy", "value": readings["per_draw"]["accuracy"], "name": title}
    return _index(str(summary["spec"]["data"]["name"]), metric)


def _defended(summary: Summary) -> str:
    """The purifier before the classifier in words; empty if there is none."""
    purifier = summary["spec"].get("purifier")
    return f", behind {purifier['name']}" if purifier else ""


def _index(data: str, metric: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": data, "name": data},
        "metrics": [metric],
    }


def _metrics(card: Card) -> list[str]:
    metrics: Any = card.get("metrics")
    if metrics is None:
        return ["The card contains no results.\n"]
    where = f"on {metrics['test_images']} images that it was not trained on"
    if "accuracy" in metrics:
        low, high = metrics["interval"]
        share: ShareEntry = {"accuracy": metrics["accuracy"], "low": low, "high": high}
        return [f"Accuracy {where}: {_cell(share)} (95 % interval).\n"]
    rows = [f"| {time} | {loss} |" for time, loss in metrics["denoising_loss"].items()]
    return [f"Denoising loss {where}:\n", "| t | loss |", "|---|---|", *rows, ""]


def _results(summary: Summary) -> list[str]:
    """Return a table of a run's accuracies, its threat model, doubts, and what was not tried."""
    rows = [
        f"| {condition.name} | {_cell(condition.readings['per_draw'])} | "
        f"{_cell(condition.readings['majority'])} |"
        for condition in conditions(summary)
    ]
    doubts = [
        f"- **{doubt['name']}** ({doubt['severity']}): {doubt['why']}"
        for doubt in summary["doubts"]
    ]
    model = [f"- {key}: {text}" for key, text in summary["threat_model"].items()]
    not_tried = [f"- {sentence}" for sentence in summary["not_tried"]]
    heading = f"{summary['n']} images of {summary['spec']['data']['name']}, {threat(summary)}"
    heading += _defended(summary)
    return [
        f"### {heading}\n",
        "Accuracy with 95 % intervals:\n",
        f"| | per draw | majority of {summary['clean']['k']} |",
        "|---|---|---|",
        *rows,
        "",
        *model,
        "",
        *(["Reasons to doubt these numbers:\n", *doubts, ""] if doubts else []),
        *(["What was not tried:\n", *not_tried, ""] if not_tried else []),
    ]


def _cell(share: ShareEntry) -> str:
    return percent_interval(share["accuracy"], share["low"], share["high"])


def license_of(text: str) -> str | None:
    """Return the license in the metadata of a README.md; None if there is none."""
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return None
    try:
        meta = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    return str(meta["license"]) if isinstance(meta, dict) and meta.get("license") else None


def own_readme(folder: Path) -> str | None:
    """Return the README.md that is already in a folder, if any."""
    path = folder / "README.md"
    return path.read_text("utf-8") if path.is_file() else None
