"""Training split over processes or into parts ends with the same weights as training without.

The last bits may differ: the mean over a batch sums the same terms in another order, and a
convolution of another number of images may round differently.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from stopped_training import weights
from unfool import spec as specs
from unfool.errors import SpecError
from unfool.models import card
from unfool.training import run as training
from unfool.training import train as loop
from unfool.training.distributed import Processes
from unfool.training.spec import check

SPEC = {
    "data": {"name": "digits", "split": "train"},
    "denoiser": {"name": "trained", "weights": "digits-denoiser"},
    "objective": {
        "name": "addt",
        "classifier": {"name": "trained", "weights": "digits-classifier"},
        "cgpo_steps": 2,
        "t_max": 0.5,
    },
    "training": {
        "steps": 4, "batch_size": 8, "learning_rate": 0.02, "warmup": 0, "optimizer": "sgd", "flip": True,
        "ema_decay": 0.5,
    },
    "machine": {"save_every": 2, "device": "cpu"},
}  # fmt: skip


def trained(folder, **options):
    spec = SPEC | {"training": SPEC["training"] | options}
    return training.run(check(specs.load(spec)), folder, quiet=True)


def gap(ours, theirs):
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return weights(trained(tmp_path_factory.mktemp("whole") / "run"))


def launch(folder, spec):
    """Start what `torchrun --nproc-per-node 2 -m unfool train` does; return outputs and exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "unfool", "train", spec, "--out", str(folder), "--quiet"],
            env=os.environ | shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [(process.communicate()[0], process.returncode) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.timeout(900)  # two processes that load torch
def test_two_processes_resume_a_single_process_run_with_equal_weights(
    elsewhere, whole, monkeypatch
):
    (elsewhere / "a.yaml").write_text(yaml.safe_dump(SPEC))
    real, made = loop.load_batch, []

    def dies(*arguments):
        made.append(arguments)
        assert len(made) <= 2, "killed after the checkpoint of step 2"
        return real(*arguments)

    monkeypatch.setattr(loop, "load_batch", dies)
    with pytest.raises(AssertionError, match="killed"):
        trained(elsewhere / "run")
    first, second = launch(elsewhere / "run", "a.yaml")
    assert (first[1], second[1]) == (0, 0), (first[0], second[0])
    assert "use it by" in first[0]
    assert second[0] == "", "one of them speaks"
    log = (elsewhere / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]
    assert gap(whole, weights_of_the_start()) > 1e-3, "something was learned"
    assert gap(weights(elsewhere / "run"), whole) < 2e-6


def weights_of_the_start():
    return card.trained_denoiser("digits-denoiser").state_dict()


def test_gradient_accumulation_equals_the_whole_batch(tmp_path, whole):
    parts = weights(trained(tmp_path / "parts", accumulate=4))
    assert gap(parts, whole) < 2e-6
    spec = {"training": SPEC["training"] | {"accumulate": 1}}
    plain = check(specs.load(SPEC))
    assert specs.identity(check(specs.load(SPEC | spec))) == specs.identity(plain)


def test_batch_that_does_not_divide_into_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"batch of 8 .* 3 parts"):
        trained(tmp_path / "run", accumulate=3)
    with pytest.raises(SpecError, match="accumulate must be 1 or more"):
        trained(tmp_path / "run", accumulate=0)


def test_single_process_exchanges_nothing():
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.tensor([1.0, 2.0])
    loss = torch.tensor(3.0)
    assert Processes().average([weight], loss) is loss
    assert weight.grad.tolist() == [1, 2]
    assert Processes().broadcast(5) == 5
