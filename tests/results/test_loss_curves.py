"""The classifier's confidence along the purification, which a run keeps for example images."""

import numpy as np
import pytest
import torch

from unfool import spec as specs
from unfool.evaluation import run as running
from unfool.evaluation.prepare import build_model
from unfool.noise import Noise

CHANGES = [
    "purifier={name: coup, t: 0.1, steps: 4, weight: 1}",
    "data.size=6",
    "evaluation.draws=1",
    "threat.eps=0.3",
    "attacks.1.eot=1",
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The example images of a run of COUP on the toy world, with its model."""
    spec = running.check(specs.load("blobs", CHANGES))
    run = running.run(spec, tmp_path_factory.mktemp("run"), quiet=True)
    (block,) = run.examples()
    return block, build_model(spec, "cpu")


def test_curves_are_classifier_confidence_at_every_state(kept):
    block, model = kept
    noise = Noise.of(0, block["index"]).child("verdict", "vote", 0)
    attacked = torch.from_numpy(block["attacked"])
    fooled = model.classifier(attacked, noise).argmax(1)
    assert (fooled.numpy() != block["label"]).any()
    rows = np.arange(len(fooled))
    for name in ("clean", "attacked"):
        images = torch.from_numpy(block[name])
        for i, (t, state) in enumerate(model.purifier.walk(images, noise.child("purify"))):
            p = model.classifier(state, noise).softmax(1).detach().numpy()
            assert block["times"][i] == t
            assert block[f"{name}_sure"][:, i] == pytest.approx(p[rows, block["label"]], abs=1e-6)
            assert block[f"{name}_fooled"][:, i] == pytest.approx(p[rows, fooled], abs=1e-6)
            assert block[f"{name}_surest"][:, i] == pytest.approx(p.max(1), abs=1e-6)
    assert block["clean_sure"].shape == (6, 5)


def test_coup_walk_starts_at_the_image_itself(kept):
    block, _ = kept
    bare = block["attacked_bare"]
    first = block["attacked_fooled"][:, 0]
    assert first == pytest.approx(block["attacked_surest"][:, 0], abs=1e-6)
    assert ((first > 0.5) | (bare == block["label"])).all()
