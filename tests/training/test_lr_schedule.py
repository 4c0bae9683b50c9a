"""Learning rate and batch size of each step, and changes to them in a run that has begun."""

import json

import pytest

from stopped_training import assert_same_weights, stopped
from unfool import spec as specs
from unfool.errors import SpecError
from unfool.training import run as training
from unfool.training import train as loop
from unfool.training.lr_schedule import Plan
from unfool.training.options import TrainingOptions
from unfool.training.spec import check

TINY = {
    "data": {"name": "blobs", "size": 32},
    "denoiser": {"name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4},
    "objective": {"name": "denoising", "t_max": 0.5, "times": "lognormal", "stratified": True},
    "machine": {"save_every": 2},
}
OPEN = {
    "steps": 12, "batch_size": 4, "warmup": 2, "optimizer": "muon",
    "lr_schedule": "linear", "decay_from": 8,
    "ema_gamma": 6.94,
}  # fmt: skip


def started(**options):
    return check(specs.load(TINY | {"training": OPEN | options}))


def test_linear_schedule_decays_from_the_given_step():
    plan = Plan(10, warmup=2, lr_schedule="linear", decay_from=6)
    rates = [plan.rate(step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert Plan(6, warmup=2, lr_schedule="linear").rate(5) == 0.25, "from the end of the warm-up"


def test_batch_size_grows_once():
    plan = Plan(10, batch_size=4, grow={"at": 3, "batch_size": 16})
    assert [plan.size(step) for step in range(5)] == [4, 4, 4, 16, 16]
    assert [plan.images_before(step) for step in range(6)] == [0, 4, 8, 12, 28, 44]
    assert plan.batch_sizes() == [4, 16]


@pytest.mark.parametrize("at", [4, 8, 11])
def test_killed_training_with_muon_and_growing_batch_resumes_bit_for_bit(elsewhere, at):
    grow = {"at": 5, "batch_size": 8}
    whole = training.run(started(grow=grow), elsewhere / "whole", quiet=True)
    again = training.run(
        started(grow=grow), stopped(started(grow=grow), elsewhere / "killed", at), quiet=True
    )
    assert_same_weights(whole, again)
    lines = [json.loads(line)["step"] for line in (again / "log.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 6, 8, 10, 12]


def test_shortened_training_equals_one_planned_with_that_length(elsewhere):
    """A run planned for more steps may be cut short, unless its completed steps differ."""
    whole = training.run(started(grow={"at": 5, "batch_size": 8}), elsewhere / "whole", quiet=True)
    folder = stopped(
        started(steps=1000, decay_from=900, grow={"at": 6, "batch_size": 64}), elsewhere / "open", 7
    )
    with pytest.raises(RuntimeError, match=r"6 steps .*step 5"):
        training.run(started(grow={"at": 5, "batch_size": 8}), folder, quiet=True)
    again = stopped(started(steps=1000, decay_from=900), elsewhere / "again", 5)
    training.run(started(grow={"at": 5, "batch_size": 8}), again, quiet=True)
    assert_same_weights(whole, again)


@pytest.mark.parametrize("changed", [{"decay_from": 3}, {"steps": 4, "decay_from": 3}])
def test_plan_of_completed_steps_cannot_be_changed(elsewhere, changed):
    folder = stopped(started(), elsewhere / "run", 7)
    with pytest.raises(RuntimeError, match="only what comes after step 6"):
        training.run(started(**changed), folder, quiet=True)


def test_plan_that_ends_before_the_completed_steps_is_refused():
    """While the rate rises, it does not depend on the number of steps."""
    saved = Plan(steps=9, warmup=20, lr_schedule="linear").state()
    Plan(steps=6, warmup=20, lr_schedule="linear").check_same(saved, 6)
    with pytest.raises(RuntimeError, match=r"6 steps are done, .* only 5"):
        Plan(steps=5, warmup=20, lr_schedule="linear").check_same(saved, 6)


def test_changed_learning_rate_is_not_resumed(elsewhere):
    folder = stopped(started(), elsewhere / "run", 7)
    with pytest.raises(RuntimeError, match="belongs to another spec"):
        training.run(started(learning_rate=1e-3), folder, quiet=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay_from": 12}, r"decay_from .* 2.* 12.* 12"),
        ({"decay_from": 1}, r"decay_from must be from warmup, 2"),
        ({"lr_schedule": "cosine"}, r"decay_from belongs to lr_schedule: linear"),
        ({"grow": {"at": 3}}, r"training.grow"),
        ({"grow": {"at": 3, "batch_size": 0}}, r"training.grow.batch_size must be 1 or more"),
        ({"ema_gamma": -1}, r"ema_gamma must be 0 or more, not -1"),
        ({"ema_power": 0.5}, r"ema_gamma and ema_power"),
        ({"optimizer": "adamw", "muon_lr_factor": 2}, r"training.muon_lr_factor"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(SpecError, match=said):
        started(**options)


def test_grown_batch_that_does_not_divide_into_parts_is_refused(elsewhere):
    with pytest.raises(ValueError, match="a batch of 9 cannot be split into 2 parts"):
        training.run(
            started(grow={"at": 3, "batch_size": 9}, accumulate=2), elsewhere / "run", quiet=True
        )


def test_power_function_average_weights_step_i_by_i_to_the_gamma():
    """Karras et al. (2024), equation 123, up to the difference between sums and integrals."""
    gamma, steps, mean = 6.94, 400, 0.0
    options = TrainingOptions(steps, ema_decay=0.9, ema_gamma=gamma)
    for step in range(1, steps + 1):
        decay = loop.average_decay(step, options)
        mean = decay * mean + (1 - decay) * step / steps
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=2 / steps)
    assert loop.average_decay(1, options) == 0, "nothing of the first weights stays"
