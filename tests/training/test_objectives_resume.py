"""Training that is killed and run again ends with the same bits, for each objective listed here."""

import pytest

from stopped_training import assert_same_weights, stopped
from unfool import spec as specs
from unfool.cli.main import run
from unfool.training import run as training
from unfool.training.spec import check

DENOISER = {
    "name": "unet", "channels": 1, "size": 4, "widths": [8, 8], "groups": 4, "dropout": 0.1,
    "predicts": "edm",
}  # fmt: skip
CLASSIFIER = {"name": "small-cnn", "size": 4, "classes": 2, "width": 4}
BRIDGE = {
    "name": "adversarial-bridge", "classifier": {"name": "bayes"}, "attack": {"name": "pgd", "steps": 2},
    "eps": 0.2, "budget": "uniform",
}  # fmt: skip
OBJECTIVES = {
    "bridge": BRIDGE,
    "flow": BRIDGE | {"path": "flow", "attacked": "classifier"},
    "consistency": {
        "name": "consistency", "denoiser": {"name": "mixture"}, "levels": 4, "t_max": 0.3,
    },
    "addt": {"name": "addt", "classifier": {"name": "bayes"}, "cgpo_steps": 2},
    "pgd-at": {"name": "pgd-at", "steps": 2},
    "trades": {"name": "trades", "steps": 2},
    "alp": {"name": "alp", "steps": 2},
    "awp": {"name": "awp", "steps": 2},
    "trades-awp": {"name": "awp", "steps": 2, "gamma": 0.005, "beta": 6},
    "macer": {"name": "macer", "copies": 2},
}  # fmt: skip


def started(name):
    part = DENOISER if name in ("bridge", "flow", "consistency", "addt") else CLASSIFIER
    return check(
        specs.load(
            {
                "data": {"name": "blobs", "size": 32},
                "test": {"name": "blobs", "size": 8},
                "denoiser" if part is DENOISER else "classifier": part,
                "objective": OBJECTIVES[name],
                "training": {"steps": 6, "batch_size": 8, "warmup": 2, "flip": True, "crop": 1},
                "machine": {"save_every": 2},
            }
        )
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_training_resumes_bit_for_bit(elsewhere, name):
    whole = training.run(started(name), elsewhere / "whole", quiet=True)
    folder = stopped(started(name), elsewhere / "killed", 4)  # after the checkpoint of step 2
    assert_same_weights(whole, training.run(started(name), folder, quiet=True))


@pytest.mark.parametrize(
    ("name", "kind"), [("macer", "denoiser"), ("consistency", "classifier"), ("awp", "denoiser")]
)
def test_objective_for_the_other_kind_of_model_is_refused(elsewhere, mistake, name, kind):
    import yaml

    spec = {
        "data": "blobs", kind: DENOISER if kind == "denoiser" else CLASSIFIER,
        "objective": OBJECTIVES[name], "training": {"steps": 1},
    }  # fmt: skip
    (elsewhere / "a.yaml").write_text(yaml.safe_dump(spec))
    assert f"the objective {name} trains a" in mistake("train", "a.yaml", "--out", "run")


def test_nan_loss_stops_training_and_names_the_step(elsewhere, capsys):
    """A huge learning rate makes the weights infinite; the error names the last good checkpoint."""
    import yaml

    spec = {
        "data": {"name": "blobs", "size": 32}, "classifier": CLASSIFIER,
        "objective": OBJECTIVES["macer"],
        "training": {"steps": 40, "batch_size": 8, "warmup": 0, "learning_rate": 1e30,
                     "optimizer": "sgd", "grad_clip": 1e30},
        "machine": {"save_every": 1},
    }  # fmt: skip
    (elsewhere / "a.yaml").write_text(yaml.safe_dump(spec))
    assert run(["train", "a.yaml", "--out", "run", "--quiet"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "is nan at step" in said
    assert "last good checkpoint is" in said
