"""The queue in front of the model: calls are shared and bounded, and jobs do not affect each other."""

import threading
import time

import pytest
import torch

from unfool.noise import Noise
from unfool.serve.batcher import Batcher, ModelFailed, Overloaded, Part


class Model:
    """A model that adds its noise to the images, records its calls, and waits for `gate`."""

    def __init__(self):
        self.calls, self.gate = [], threading.Event()

    def __call__(self, x, noise):
        self.gate.wait(30)
        self.calls.append(len(x))
        if bool((x == 7).any()):
            raise ValueError("seven")
        return (x + noise.normal(x), x.flatten(1).sum(1))


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    made = Batcher({"add": model, "other": model}, 8, 200, lambda rows, seconds: None)
    yield made
    model.gate.set()
    made.close()


def part(seed, images=1, copies=1, value=0.5, size=2):
    return Part(torch.full((images, 1, size, size), value), Noise.of(seed, range(images * copies)))


def test_each_job_gets_its_own_rows(batcher, model):
    parts = [part(seed, 1 + seed % 3, 1 + seed % 5, seed / 100) for seed in range(20)]
    futures = [batcher.submit("add", [each], False) for each in parts]
    model.gate.set()
    for each, future in zip(parts, futures, strict=True):
        ((added, total),) = future.result(30)
        x = each.x.repeat(len(each.noise) // len(each.x), 1, 1, 1)
        assert torch.equal(added, x + each.noise.normal(x))
        assert torch.equal(total, x.flatten(1).sum(1))
    assert max(model.calls) == 8
    assert len(model.calls) < 20, "calls are shared"
    assert sum(model.calls) == sum(len(each.noise) for each in parts)
    assert batcher.rows == 0


def test_job_that_must_run_alone_shares_no_call(batcher, model):
    others = [batcher.submit("add", [part(0, 3)], False) for _ in range(2)]
    alone = batcher.submit("add", [part(1, 5, 2), part(2, 3)], True)
    late = batcher.submit("add", [part(0, 3)], False)
    model.gate.set()
    for future in (*others, alone, late):
        future.result(30)
    assert [8, 2, 3] in [model.calls[i : i + 3] for i in range(len(model.calls))]
    assert sum(model.calls) == 3 * 3 + 13


def test_kinds_and_image_sizes_do_not_share_calls(batcher, model):
    jobs = [("add", 2), ("other", 2), ("add", 3), ("add", 2), ("other", 2)]
    futures = [batcher.submit(kind, [part(0, 2, size=size)], False) for kind, size in jobs]
    model.gate.set()
    for future, (_, size) in zip(futures, jobs, strict=True):
        assert future.result(30)[0][0].shape == (2, 1, size, size)
    assert sorted(model.calls) in ([2, 4, 4], [2, 2, 2, 4])


def test_failing_job_does_not_affect_other_jobs(batcher, model, caplog):
    futures = [batcher.submit("add", [part(i, 2)], False) for i in range(2)]
    bad = batcher.submit("add", [part(0, 1, value=7.0)], False)
    futures.append(batcher.submit("add", [part(5, 2)], False))
    model.gate.set()
    with pytest.raises(ModelFailed):
        bad.result(30)
    assert all(len(future.result(30)[0][0]) == 2 for future in futures)
    assert "seven" in caplog.text, "the log has the error"
    assert batcher.submit("add", [part(1)], False).result(30), "and the worker lives"
    assert batcher.rows == 0


def test_full_or_closing_queue_refuses_jobs_and_finishes_accepted_ones(batcher, model):
    futures = [batcher.submit("add", [part(0, 20, 5)], False) for _ in range(2)]
    with pytest.raises(Overloaded) as told:
        batcher.submit("add", [part(0)], False)
    assert 1 <= told.value.retry_after <= 60
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.accepting:
        time.sleep(0.01)
    with pytest.raises(Overloaded, match="shutting down"):
        batcher.submit("add", [part(0)], False)
    model.gate.set()
    closing.join(30)
    assert all(future.done() and future.result() for future in futures)


def test_canceled_job_is_dropped(batcher, model):
    first = batcher.submit("add", [part(0, 8)], False)
    time.sleep(0.1)  # the model has it by now
    gone = batcher.submit("other", [part(0, 8)], False)
    assert gone.cancel()
    last = batcher.submit("add", [part(0, 3)], False)
    model.gate.set()
    first.result(30)
    last.result(30)
    assert model.calls == [8, 3]
    assert batcher.rows == 0


def test_task_runs_between_calls_and_may_compute_gradients(batcher, model):
    call = batcher.submit("add", [part(0, 3)], False)

    def slope():
        x = torch.tensor(3.0, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(x**2, x)
        return float(found), list(model.calls)

    task = batcher.run(slope, 5)
    assert batcher.rows == 8
    model.gate.set()
    assert task.result(30) == (6.0, [3])
    call.result(30)
    assert batcher.rows == 0


def test_task_counts_toward_the_queue_limit_and_fails_alone(batcher, model):
    def fails():
        raise ValueError("a path of the server")

    first = batcher.submit("add", [part(0)], False)
    broken = batcher.run(fails, 150)
    with pytest.raises(Overloaded):
        batcher.run(fails, 150)
    model.gate.set()
    first.result(30)
    with pytest.raises(ModelFailed) as error:
        broken.result(30)
    assert "path" not in str(error.value)
    assert batcher.run(lambda: "alive", 1).result(30) == "alive"
