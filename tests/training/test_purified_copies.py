"""Training a classifier on purified copies together with clean images."""

import json

import pytest
import torch

from unfool import spec as specs
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.defenses.diffpure import DiffPure
from unfool.errors import SpecError
from unfool.models import card
from unfool.noise import Noise
from unfool.toy.blobs import Blobs
from unfool.training import image_cache
from unfool.training import run as training
from unfool.training.objectives import purified_copies as cache
from unfool.training.objectives.purified_copies import PurifiedCopies, with_purified_copies
from unfool.training.spec import check

SPEC = {
    "data": {"name": "digits", "split": "train"},
    "classifier": {"name": "small-cnn"},
    "objective": {
        "name": "purified",
        "denoiser": {"name": "trained", "weights": "digits-denoiser"},
        "purifier": {"name": "diffpure", "sampler": "ddpm", "t": 0.2, "steps": 2},
        "images": 40,
        "copies": 2,
        "smoothing": 0.1,
    },
    "training": {"steps": 2, "batch_size": 8, "init_from": "digits-classifier"},
}
DATA = Blobs(size=50)
ASKED = {"purifier": "blur"}


class Blur:
    calls = 0

    def __init__(self, weight: float = 0.0):
        self.weight = torch.tensor(weight)

    def __call__(self, x, noise):
        self.calls += 1
        return (x + 0.1 * noise.normal(x)).clamp(0, 1)


def made(**options):
    return PurifiedCopies(None, Blur(), **options)


def of(objective, home, **asked):
    return with_purified_copies(DATA, objective, ASKED | asked, home, quiet=True)


def test_half_of_the_images_are_purified(elsewhere):
    data = of(made(copies=2), elsewhere)
    assert len(data) == 200
    x, y = fetch(DATA, range(50))
    for copy in range(4):
        found, told = fetch(data, range(50 * copy, 50 * copy + 50))
        assert torch.equal(told, y)
        assert torch.equal(found, x) is (copy < 2)
        assert found.dtype == torch.float32
    one, other = (fetch(data, range(100 + 50 * copy, 150 + 50 * copy))[0] for copy in (0, 1))
    assert not torch.equal(one, other), "each copy has noise of its own"
    moved = data.facts()["moved_mean"]
    assert moved == pytest.approx(
        float((one - x).square().flatten(1).mean(1).sqrt().mean()), rel=0.2
    )


def test_copies_are_made_once_and_resume_after_a_kill(elsewhere, monkeypatch):
    whole = of(made(copies=2), elsewhere / "whole")
    real = cache.purify_block

    def dies(data, places, numbers, *rest):
        if numbers[0] > 0:
            raise KeyboardInterrupt
        return real(data, places, numbers, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "purify_block", dies)
        with pytest.raises(KeyboardInterrupt):
            of(made(copies=2), elsewhere / "killed")
    objective = made(copies=2)
    again = of(objective, elsewhere / "killed")
    assert objective.purifier.calls == 1, "of two blocks"
    assert all(torch.equal(whole[i][0], again[i][0]) for i in range(200))
    of(objective, elsewhere / "killed")
    assert objective.purifier.calls == 1


def test_copy_does_not_depend_on_its_block(elsewhere, monkeypatch):
    whole, _ = fetch(of(made(), elsewhere / "whole"), range(100))
    monkeypatch.setattr(image_cache, "BLOCK", 7)
    parts, _ = fetch(of(made(), elsewhere / "parts"), range(100))
    assert torch.equal(whole, parts)


def test_copies_are_made_in_parts_that_fit_into_memory(elsewhere, capsys):
    class Large(Blur):
        def __call__(self, x, noise):
            if len(x) > 20:
                raise torch.OutOfMemoryError
            return super().__call__(x, noise)

    whole, _ = fetch(of(made(copies=2), elsewhere / "whole"), range(200))
    parts = of(PurifiedCopies(None, Large(), copies=2), elsewhere / "parts")
    assert torch.equal(whole, fetch(parts, range(200))[0])
    assert capsys.readouterr().err.count("out of memory") == 2, "64, then 32, and only once"


def test_cache_key_covers_what_the_copies_depend_on(elsewhere):
    def key(objective=None, **asked):
        return of(objective or made(), elsewhere, **asked).purified.folder.name

    keys = [
        key(),
        key(purifier="other"),
        key(made(copies=2), copies=2),
        key(made(seed=1), seed=1),
        key(made(images=9), images=9),
        key(PurifiedCopies(None, Blur(weight=1.0))),
        key(made(smoothing=0.3), smoothing=0.3),
    ]
    assert keys[-1] == keys[0], "what the images do not depend on"
    assert len(set(keys)) == len(keys) - 1


def test_classifier_is_trained_on_purified_copies(elsewhere):
    folder = training.run(check(specs.load(SPEC)), elsewhere / "runs" / "own", quiet=True)
    told = json.loads((folder / "card.json").read_text())
    assert told["purified"]["images"] == 80
    assert 0 < told["purified"]["moved_mean"] < 0.5
    home = elsewhere / "runs" / "purified" / told["purified"]["key"]
    assert len(list(home.glob("*.safetensors"))) == 2
    assert json.loads((home / "asked.json").read_text())["copies"] == 2
    card.trained_classifier(str(folder))


def test_copy_equals_the_output_of_the_purifier(elsewhere):
    asks = check(specs.load(SPEC, ["objective.images=4", "objective.copies=1"]))
    objective = training.build_objective(asks["objective"])
    data = with_purified_copies(
        digits("train"), objective, asks["objective"], elsewhere, quiet=True
    )
    x, _ = fetch(data, range(4))
    pure, _ = fetch(data, range(4, 8))
    purifier = DiffPure(card.trained_denoiser("digits-denoiser"), sampler="ddpm", t=0.2, steps=2)
    with torch.no_grad():
        wanted = purifier(x, Noise.of(0, data.indices).child("purified", 0))
    assert torch.allclose(pure, wanted.clamp(0, 1), atol=1e-3), "but for half precision"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("objective.copies=0", "copies must be 1 or more, not 0"),
        ("objective.images=0", "images must be 1 or more, not 0"),
        ("objective.images=9999", "9999, and the data set has [0-9]+"),
        ("objective.smoothing=1", "smoothing must be from 0 to below 1"),
        ("objective.purifier={name: coup, t: 0.1, steps: 2}", "coup .*classifier"),
        ("objective.denoiser.weights=cifar10-denoiser-small", "objective.denoiser: the images are"),
    ],
)
def test_invalid_options_are_refused(elsewhere, change, said):
    with pytest.raises(SpecError, match=said):
        training.run(check(specs.load(SPEC, [change])), elsewhere / "run", quiet=True)


def test_purified_objective_for_a_denoiser_is_refused():
    unet = {"name": "unet", "channels": 1, "size": 8, "widths": [8], "groups": 8}
    spec = {key: value for key, value in SPEC.items() if key != "classifier"} | {"denoiser": unet}
    with pytest.raises(SpecError, match="the objective purified trains a classifier"):
        check(specs.load(spec | {"training": {"steps": 1}}))
