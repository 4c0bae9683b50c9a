"""Forecasts what an evaluation will cost: network calls, time, and the images that fit a budget.

A dry run with stand-ins counts the calls that the evaluation of one image makes (`dry_run`). A few
calls of the real parts then measure the cost of each kind of call (`call_cost`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.evaluation.attack_runner import Machine
from unfool.evaluation.block_progress import Expected
from unfool.evaluation.call_cost import CALLS, Cost, call_costs
from unfool.evaluation.dry_run import Call, DryRun, dry_run
from unfool.evaluation.prepare import Prepared, prepare
from unfool.results.run_folder import FORECAST, Run
from unfool.results.spec import EvaluationSpec
from unfool.runtime.files import write_bytes
from unfool.statistics import wilson

# Seconds for timing calls of more than one image: for a forecast, and just before a run begins.
DRY_RUN, GLANCE = 10.0, 0.7
JUDGING = ("verdict", "distances")


@dataclass(frozen=True)
class Forecast:
    """The expected cost of a run.

    Attributes:
        images: The number of images.
        per_image: By condition; also `verdict` for judging all of them, and `distances` for how far
            images are from the clean ones.
        is_upper_bound: Whether it is an upper bound, because attacks or verdicts may stop early. It
            leaves out the fresh draws of `early_stop` that do not end a search.
        batch_size: Images in the largest timed call; 0 if it is based on finished images.
        low, high: The 95 % interval of an accuracy of one half on that many images, with one draw
            each. No interval of the report will be much wider.
        workers: The number of Ray's workers, which share the time.
    """

    images: int
    per_image: dict[str, Cost]
    is_upper_bound: bool
    batch_size: int
    low: float
    high: float
    workers: int = 1

    @property
    def cost_per_image(self) -> Cost:
        """The cost per image."""
        return sum(self.per_image.values(), Cost())

    @property
    def total(self) -> Cost:
        """The cost of all images."""
        return self.cost_per_image * self.images

    def keep(self, folder: Path) -> None:
        """Write the forecast into a folder whose run has not begun, for the report to compare."""
        if (folder / "run.json").is_file():
            return
        table = asdict(self) | {"calls": self.total.calls, "seconds": self.total.seconds}
        write_bytes(folder / FORECAST, (json.dumps(table, indent=1) + "\n").encode())


def seconds_of(budget: str) -> float:
    """Convert a time budget to seconds: `2h`, `30m`, `45s`, `1h30m`.

    Raises:
        SpecError: The budget has another form.
    """
    units = {"h": 3600, "m": 60, "s": 1}
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", budget):
        raise SpecError(f"--budget must be a time such as 2h, 30m, or 45s, not {budget!r}")
    return sum(float(n) * units[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)([hms])", budget))


def forecast(
    spec: EvaluationSpec,
    budget: float | None = None,
    prepared: Prepared | None = None,
    judged: bool = True,
) -> Forecast:
    """Forecast the cost of a checked evaluation `spec`, with as many images as fit into a budget.

    Args:
        spec: What `run.check` returned.
        budget: Seconds. At least one block of images is taken, and never more than the spec's.
        prepared: The parts that `prepare.prepare` built, if they were built already.
        judged: Whether the images are also judged, and not only attacked.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    prepared, workers = prepared or prepare(spec), _workers(spec)
    # from here on, the model is executed as in the run
    batch_size = prepared.set_up_machine(spec, (0, 1), quiet=True).batch_size
    dry = dry_run(spec, prepared, batch_size)
    with _one_thread() if spec["machine"]["engine"] == "ray" else nullcontext():
        costs, timed_size = call_costs(
            prepared, dry, spec["machine"]["images_per_block"], batch_size, DRY_RUN
        )
    per_image = _per_image(spec, prepared, dry, costs, judged)
    images = available = len(prepared.indices)
    seconds_per_image = sum(per_image.values(), Cost()).seconds
    if budget is not None:
        images = min(
            available,
            max(
                spec["machine"]["images_per_block"],
                int(workers * budget / max(seconds_per_image, 1e-9)),
            ),
        )
    share = wilson(images // 2, images)
    half = (share.high - share.low) / 2
    return Forecast(
        images, per_image, _may_stop_early(spec), timed_size, 0.5 - half, 0.5 + half, workers
    )


def quick_forecast(
    spec: EvaluationSpec, prepared: Prepared, batch_size: int, judged: bool = True
) -> Expected | None:
    """Forecast the cost per image of a run by a few quick calls; None if that fails.

    Args:
        spec: What `run.check` returned.
        prepared: Its parts, executed as in the run.
        batch_size: The largest number of images in a call.
        judged: Whether the images are also judged, and not only attacked.
    """
    try:
        dry = dry_run(spec, prepared, batch_size)
        costs, _ = call_costs(
            prepared, dry, spec["machine"]["images_per_block"], batch_size, GLANCE
        )
    except Exception:  # the run itself, which needs no forecast, reports any error
        return None
    per_image = _per_image(spec, prepared, dry, costs, judged)
    return Expected({name: cost.seconds for name, cost in per_image.items()}, dry.ticks)


def with_forecast(
    machine: Machine, spec: EvaluationSpec, prepared: Prepared, judged: bool = True
) -> Machine:
    """Return `machine` with a forecast (`quick_forecast`), which is made only to show progress."""
    return replace(
        machine, expected=partial(quick_forecast, spec, prepared, machine.batch_size, judged)
    )


def plan(
    spec: EvaluationSpec, folder: Path, budget: str | None, shard: tuple[int, int] = (0, 1)
) -> tuple[EvaluationSpec, Forecast | None]:
    """Return a checked spec with the images that fit into a budget, and its forecast.

    The forecast is kept in the folder. A run that began with a budget continues with the same
    images and needs no forecast. If work may stop early and a run has begun, the forecast is based
    on the images that it has finished; the folder keeps the forecast from before the run.

    Raises:
        SpecError: As in `forecast`; or a shard has a budget, so that each shard would choose its
            own number of images.
    """
    if budget is None:
        result = forecast(spec)
        result = _from_finished_images(result, spec, folder) or result
        result.keep(folder)
        return spec, result
    if shard[1] > 1:
        raise SpecError(
            "--budget chooses the number of images by this machine's speed, so shards would "
            "differ: get the number from `--dry-run --budget`, and give it to all shards by --set "
            "evaluation.images="
        )
    limit, images = seconds_of(budget), images_at_start(spec, folder)
    if images is not None:
        return _with_images(spec, images), None
    result = forecast(spec, limit)
    result.keep(folder)
    return _with_images(spec, result.images), result


def _from_finished_images(initial: Forecast, spec: EvaluationSpec, folder: Path) -> Forecast | None:
    """Forecast from the images that a run in `folder` has finished, if work may stop early."""
    if not initial.is_upper_bound or images_at_start(spec, folder) is None:
        return None
    done = Run.open(folder).outcomes()
    if not done:
        return None
    calls = {key: fmean(o.cost.get(key, 0) for o in done) for key in CALLS}
    cost = Cost(calls, fmean(outcome.seconds for outcome in done))
    return replace(
        initial, per_image={f"by the {len(done)} done": cost}, is_upper_bound=False, batch_size=0
    )


def images_at_start(spec: Mapping[str, Any], folder: Path) -> int | None:
    """The number of images with which a run of `spec` began in `folder`; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    manifest = Run.open(folder).manifest
    return len(manifest["indices"]) if manifest["identity"] == specs.identity(spec) else None


def _with_images(spec: EvaluationSpec, images: int | None) -> EvaluationSpec:
    return {**spec, "evaluation": {**spec["evaluation"], "images": images}}


def _per_image(
    spec: EvaluationSpec,
    prepared: Prepared,
    dry: DryRun,
    costs: Mapping[Call, Cost],
    judged: bool,
) -> dict[str, Cost]:
    """The cost per image, by condition and for judging."""
    costs_by_condition = {
        name: sum((costs[kind] * n for kind, n in counts.items()), Cost())
        for name, counts in dry.calls.items()
        if judged or name not in JUDGING
    }
    if judged and not prepared.attacks:  # distances are measured only for the report's examples
        available = len(prepared.indices)
        costs_by_condition["distances"] *= (
            min(spec["evaluation"]["examples"], available) / available
        )
    return costs_by_condition


def _workers(spec: EvaluationSpec) -> int:
    if spec["machine"]["engine"] != "ray":
        return 1
    from unfool.evaluation import run_on_ray

    return run_on_ray.workers(spec)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one torch thread inside the `with`, as in a task of Ray, which takes one processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _may_stop_early(spec: EvaluationSpec) -> bool:
    """Whether attacks or verdicts may stop early, so that a forecast is an upper bound."""
    early = any(row["name"] == "autoattack" or row.get("early_stop") for row in spec["attacks"])
    options = spec["evaluation"]
    return early or options["skip_broken"] or options.get("curtail", False)
