"""What an evaluation will cost, before it runs: network calls, time, and the images that fit a budget.

The whole evaluation of one image is rehearsed on stand-ins (`dry_run`); a few calls of the real parts
then tell what one asking costs (`call_cost`).
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

# Seconds for timing calls of more than one image: in a dry run, and in a glance before a run begins.
DRY_RUN, GLANCE = 10.0, 0.7
JUDGING = ("verdict", "distances")


@dataclass(frozen=True)
class Forecast:
    """What a run will cost.

    Attributes:
        images: How many it is for.
        per_image: By condition, `verdict` for what judges them all, `distances` for how far
            pictures are from the clean ones.
        most: Images that fall are left alone before the end, and cost less than this says.
        batch_size: Images in the largest call that was timed; 0 if it goes by what images took.
        low, high: The 95 % interval of an accuracy of one half on so many images, one draw each: no
            interval of the report will be much wider.
        workers: Of Ray, which share the time.
    """

    images: int
    per_image: dict[str, Cost]
    most: bool
    batch_size: int
    low: float
    high: float
    workers: int = 1

    @property
    def each(self) -> Cost:
        """The cost of an image."""
        return sum(self.per_image.values(), Cost())

    @property
    def total(self) -> Cost:
        """The cost of them all."""
        return self.each * self.images

    def keep(self, folder: Path) -> None:
        """Write it into a folder whose run has not begun: the report sets it beside what that took."""
        if (folder / "run.json").is_file():
            return
        table = asdict(self) | {"calls": self.total.calls, "seconds": self.total.seconds}
        write_bytes(folder / FORECAST, (json.dumps(table, indent=1) + "\n").encode())


def seconds_of(budget: str) -> float:
    """The seconds of a budget of time: `2h`, `30m`, `45s`, `1h30m`.

    Raises:
        SpecError: It is not written so.
    """
    units = {"h": 3600, "m": 60, "s": 1}
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", budget):
        raise SpecError(f"--budget must be a time such as 2h, 30m, or 45s, not {budget!r}")
    return sum(float(n) * units[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)([hms])", budget))


def forecast(
    spec: EvaluationSpec,
    budget: float | None = None,
    made: Prepared | None = None,
    judged: bool = True,
) -> Forecast:
    """The cost of a checked evaluation `spec`, with as many of its images as fit into a budget.

    Args:
        spec: What `run.check` returned.
        budget: Seconds; at least one block of images is taken, and never more than the spec's.
        made: What `prepare.prepare` made of it, if it was made already.
        judged: Whether its images are judged, and not only attacked.

    Raises:
        SpecError: A part refuses its options, or the parts do not fit each other.
    """
    made, workers = made or prepare(spec), _workers(spec)
    most = made.on(spec, (0, 1), quiet=True).batch_size  # the model is now executed as in the run
    played = dry_run(spec, made, most)
    with _one_thread() if spec["machine"]["engine"] == "ray" else nullcontext():
        costs, rows = call_costs(made, played, spec["machine"]["images_per_block"], most, DRY_RUN)
    per_image = _per_image(spec, made, played, costs, judged)
    images = whole = len(made.indices)
    each = sum(per_image.values(), Cost()).seconds
    if budget is not None:
        images = min(
            whole, max(spec["machine"]["images_per_block"], int(workers * budget / max(each, 1e-9)))
        )
    share = wilson(images // 2, images)
    half = (share.high - share.low) / 2
    return Forecast(images, per_image, _most(spec), rows, 0.5 - half, 0.5 + half, workers)


def expected(
    spec: EvaluationSpec, made: Prepared, rows: int, judged: bool = True
) -> Expected | None:
    """What an image of a run will take, by a few quick calls; None where that cannot be told.

    Args:
        spec: What `run.check` returned.
        made: Its parts, executed as in the run.
        rows: The most images of a call.
        judged: Whether its images are judged, and not only attacked.
    """
    try:
        played = dry_run(spec, made, rows)
        costs, _ = call_costs(made, played, spec["machine"]["images_per_block"], rows, GLANCE)
    except Exception:  # whatever it is: the run itself, which needs no forecast, will tell
        return None
    per_image = _per_image(spec, made, played, costs, judged)
    return Expected({name: cost.seconds for name, cost in per_image.items()}, played.ticks)


def watched(machine: Machine, spec: EvaluationSpec, made: Prepared, judged: bool = True) -> Machine:
    """A machine that knows what an image of a run will take (`expected`), if it shows progress."""
    return replace(machine, expected=partial(expected, spec, made, machine.batch_size, judged))


def plan(
    spec: EvaluationSpec, folder: Path, budget: str | None, shard: tuple[int, int] = (0, 1)
) -> tuple[EvaluationSpec, Forecast | None]:
    """A checked spec with the images that fit into a budget, and its forecast, kept in the folder.

    A run that was begun with a budget goes on with the images it was begun with, and needs no
    forecast. Where images that fall cost less and a run has begun, the forecast is what its images
    took; in the folder stays the one from before it began.

    Raises:
        SpecError: As `forecast`; or with a budget only a shard is asked for, and each would choose
            its own number of images.
    """
    if budget is None:
        found = forecast(spec)
        found = _so_far(found, spec, folder) or found
        found.keep(folder)
        return spec, found
    if shard[1] > 1:
        raise SpecError(
            "--budget chooses the number of images by this machine's speed, so shards would "
            "differ: get the number from `--dry-run --budget`, and give it to all shards by --set "
            "evaluation.images="
        )
    limit, images = seconds_of(budget), begun(spec, folder)
    if images is not None:
        return _with_images(spec, images), None
    found = forecast(spec, limit)
    found.keep(folder)
    return _with_images(spec, found.images), found


def _so_far(found: Forecast, spec: EvaluationSpec, folder: Path) -> Forecast | None:
    """The forecast by the images that a run in `folder` has done, if it depends on how they fall."""
    if not found.most or begun(spec, folder) is None:
        return None
    done = Run.open(folder).outcomes()
    if not done:
        return None
    calls = {key: fmean(o.cost.get(key, 0) for o in done) for key in CALLS}
    cost = Cost(calls, fmean(outcome.seconds for outcome in done))
    return replace(found, per_image={f"by the {len(done)} done": cost}, most=False, batch_size=0)


def begun(spec: Mapping[str, Any], folder: Path) -> int | None:
    """How many images a run of what `spec` asks was begun with in `folder`; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    asked = Run.open(folder).manifest
    return len(asked["indices"]) if asked["identity"] == specs.identity(spec) else None


def _with_images(spec: EvaluationSpec, images: int | None) -> EvaluationSpec:
    return {**spec, "evaluation": {**spec["evaluation"], "images": images}}


def _per_image(
    spec: EvaluationSpec,
    made: Prepared,
    played: DryRun,
    costs: Mapping[Call, Cost],
    judged: bool,
) -> dict[str, Cost]:
    """What an image costs, by condition and by what judges it."""
    found = {
        name: sum((costs[kind] * n for kind, n in counts.items()), Cost())
        for name, counts in played.asked.items()
        if judged or name not in JUDGING
    }
    if judged and not made.attacks:  # distances are measured for the report's pictures only
        whole = len(made.indices)
        found["distances"] *= min(spec["evaluation"]["examples"], whole) / whole
    return found


def _workers(spec: EvaluationSpec) -> int:
    if spec["machine"]["engine"] != "ray":
        return 1
    from unfool.evaluation import run_on_ray

    return run_on_ray.workers(spec)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread, as in a task of Ray, which takes one processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _most(spec: EvaluationSpec) -> bool:
    """Whether images that fall are left alone, or their verdicts stopped, before the end."""
    early = any(row["name"] == "autoattack" or row.get("early_stop") for row in spec["attacks"])
    options = spec["evaluation"]
    return early or options["skip_broken"] or options.get("curtail", False)
