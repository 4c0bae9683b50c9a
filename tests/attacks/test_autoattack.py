"""AutoAttack: surviving images go to the next stage, and a lucky draw breaks no image."""

import pytest
import torch
from analytic import NOISE, SIZE, THREATS, Bent, Blurred, Coin, Linear, X, Y, accuracy, many, worst

from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.views import Batched
from unfool.noise import Noise
from unfool.threat import Threat

RIGHT = torch.zeros(SIZE, dtype=torch.long)
SMALL = {"steps": 3, "queries": 4, "targets": 2, "eot": 2, "draws": 16}


def cost(coin: Coin, **options) -> float:
    """The number of model calls per image."""
    AutoAttack(**{**SMALL, **options})(coin, X, RIGHT, THREATS["linf"], NOISE)
    return coin.rows_seen / SIZE


@pytest.mark.parametrize("version", ["unfool", "rand", "standard"])
@pytest.mark.parametrize("criterion", ["mean", "majority"])
def test_occasional_errors_of_a_random_model_do_not_break_an_image(version, criterion):
    options = {"version": version, "criterion": criterion}
    whole = cost(Coin(1.0), **options)
    # an image whose answers agree by chance costs each attack one more call
    assert abs(cost(Coin(0.75), **options) - whole) <= 7
    assert cost(Coin(0.0), **options) == SMALL["draws"] + 3  # found to be wrong, and skipped
    assert whole > 3 * SMALL["draws"]


def test_votes_decide_which_images_are_broken():
    def logits(*counts):
        answers = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
        return torch.nn.functional.one_hot(answers, 3).double()[None]

    y = torch.tensor([0])
    for counts, mean, half, majority in (
        ((0, 16, 0), True, True, True),
        ((1, 15, 0), False, True, True),
        ((4, 12, 0), False, True, True),
        ((5, 11, 0), False, True, False),  # a lead of 6 is within two standard errors, 8
        ((5, 5, 6), False, True, False),
        ((9, 7, 0), False, False, False),
    ):
        seen = logits(*counts)
        assert bool(AutoAttack(criterion="mean", draws=16).broken(seen, y)) is mean
        assert bool(AutoAttack(criterion="mean", draws=16, threshold=0.5).broken(seen, y)) is half
        assert bool(AutoAttack(draws=16).broken(seen, y)) is majority


@pytest.mark.parametrize("version", ["standard", "plus", "rand", "unfool"])
def test_without_noise_it_equals_its_attacks_run_in_sequence(version):
    x, y, noise = many(12)
    threat, model = Threat("linf", 0.03), Bent(classes=4)
    y = model(x, noise).argmax(1)
    attack = AutoAttack(version, steps=4, queries=12, targets=1, eot=1)
    found = attack(model, x, y, threat, noise)
    assert threat.allows(x, found).all()
    robust = torch.arange(len(x))
    for i, stage in enumerate(attack.stages(), 1):
        search = noise.child("stage", i, "search").take(robust)
        tried = stage(model, x[robust], y[robust], threat, search)
        stands = model(tried, noise.take(robust)).argmax(1) == y[robust]
        robust = robust[stands]
        if not len(robust):
            break
    standing = (model(found, noise).argmax(1) == y).nonzero()[:, 0]
    assert standing.tolist() == robust.tolist()
    assert 0 < len(robust) < len(x)


def test_optimum_of_a_noisy_linear_model_is_reached():
    threat = Threat("l2", 0.15)
    x, y, noise = many(24)
    attack = AutoAttack(steps=12, queries=10, targets=1, eot=4, criterion="mean")
    found = attack(Blurred(), x, y, threat, noise.child("search"))
    assert accuracy(found, y) < accuracy(worst(threat, x, y), y) + 0.01


def test_versions_match_the_publication():
    names = {
        v: [type(s).__name__ for s in AutoAttack(v).stages()] for v in ("standard", "plus", "rand")
    }
    assert names == {
        "standard": ["APGD", "APGD", "FAB", "Square"],
        "plus": ["APGD", "APGD", "FAB", "Square", "APGD", "FAB"],
        "rand": ["APGD", "APGD"],
    }

    def told(version, name, stages):
        return [getattr(stage, name) for stage in AutoAttack(version).stages()[stages]]

    assert told("rand", "eot", slice(None)) == [20, 20]
    assert told("standard", "loss", slice(2)) == ["ce", "dlr"]
    assert told("standard", "targets", slice(3)) == [0, 9, 9]
    assert told("plus", "restarts", slice(3)) == [5, 5, 5]
    assert told("standard", "queries", slice(3, 4)) == [5000]


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match=r"standard .*4 classes"):
        AutoAttack("standard")(Linear(), X, Y, THREATS["linf"], NOISE)


@pytest.mark.parametrize("version", ["unfool", "rand"])
def test_image_is_broken_only_when_its_class_is_not_among_those_kept(version):
    def network(x, noise):
        """Class 1 always exceeds the true class 0; class 2 does so only after an attack."""
        return torch.stack([0 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0] + 1, x.mean((1, 2, 3)) - 0.55], 1)

    x, y = torch.full((4, 3, 2, 2), 0.5), torch.zeros(4, dtype=torch.long)
    model, noise = Batched(network, 256, classes_kept=2), Noise.of(0, range(4))
    attack = AutoAttack(version, steps=10, queries=20, draws=4, eot=2)
    found = attack(model, x, y, Threat("linf", 0.1), noise)
    assert bool((network(found, noise)[:, 2] > 0).all())
