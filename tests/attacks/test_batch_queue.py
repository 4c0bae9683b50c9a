"""One queue for many searches: calls are full, and each image gets the answers it gets alone."""

import pytest
import torch

from unfool.attacks.apgd import APGD
from unfool.attacks.autoattack import AutoAttack
from unfool.attacks.batch_queue import serve, serve_images
from unfool.attacks.losses import Query, query_model, recording_losses
from unfool.attacks.pgd import PGD
from unfool.attacks.views import Batched
from unfool.data import fetch
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified, predict_draws
from unfool.noise import Noise
from unfool.results.loss_curves import curves
from unfool.threat import Knowledge, Threat
from unfool.toy.blobs import Blobs, bayes, mixture

SIZE = 8
MODEL = Purified(bayes(), DiffPure(mixture(), t=0.1, steps=2))
X, Y = fetch(Blobs(SIZE), range(SIZE))
NOISE = Noise.of(3, range(SIZE))
THREAT = Threat("linf", 0.2)
ATTACKS = {
    "pgd": PGD(steps=4, eot=3, loss="margin", restarts=2, early_stop=4, early_stop_share=0.75),
    "apgd": APGD(steps=5, eot=3, loss="margin", early_stop=4),
    "targets": APGD(steps=2, eot=2, loss="margin", targets=1, restarts=2, early_stop=4),
}


class Counted(Batched):
    """A batched model that records the sizes of its calls."""

    def __init__(self, model, rows):
        super().__init__(model, rows)
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, x, noise):
        self.calls.append((len(x), x.requires_grad))
        return self.model(x, noise)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("rows", [5, None])
def test_adversarial_image_does_not_depend_on_batch_size_or_other_images(name, rows):
    attack = ATTACKS[name]
    found = attack(Batched(MODEL, rows), X, Y, THREAT, NOISE)
    for i in (0, 5):
        alone = attack(MODEL, X[[i]], Y[[i]], THREAT, NOISE.take([i]))
        assert torch.allclose(found[[i]], alone, atol=1e-6)


@pytest.mark.parametrize("attack", [PGD(steps=5, eot=2, loss="margin"), APGD(5, 2, "margin")])
def test_searching_image_by_image_equals_searching_the_batch(attack):
    """Without early stopping, one search holds all images; one search per image gives the same."""
    whole = attack(MODEL, X, Y, THREAT, NOISE)
    if isinstance(attack, PGD):
        searches = (attack.search(X[[i]], Y[[i]], THREAT, NOISE.take([i])) for i in range(SIZE))
    else:
        searches = (
            attack.search(X[[i]], Y[[i]], torch.tensor([False]), [None], THREAT, NOISE.take([i]))
            for i in range(SIZE)
        )
    apart = torch.cat(serve(Batched(MODEL, 5), searches))
    assert torch.allclose(whole, apart, atol=1e-6)


def test_calls_are_full_while_images_are_waiting():
    model = Counted(MODEL, 8)
    PGD(steps=6, eot=2, loss="margin", early_stop=4)(model, X, Y, THREAT, NOISE)
    climbing = [size for size, gradient in model.calls if gradient]
    assert max(size for size, _ in model.calls) == 8
    waiting = climbing[: len(climbing) // 3]
    assert waiting == [8] * len(waiting)


def test_early_stopping_saves_calls_and_breaks_the_same_images():
    full, short = (PGD(steps=10, eot=4, loss="margin", early_stop=stop) for stop in (0, 8))
    calls, wrong = [], []
    for attack in (full, short):
        model = Counted(MODEL, 16)
        found = attack(model, X, Y, THREAT, NOISE)
        assert THREAT.allows(X, found).all()
        calls.append(sum(size * (3 if gradient else 1) for size, gradient in model.calls))
        share = (
            (predict_draws(MODEL, found, NOISE.child("verdict"), 15) != Y[:, None]).float().mean(1)
        )
        wrong.append(share > 0.5)
    assert torch.equal(*wrong)
    assert bool(wrong[0].any())
    assert calls[1] < 0.9 * calls[0]


def test_wrong_answers_of_a_coin_do_not_stop_a_search():
    """A model that is wrong half of the time, whatever the image, is searched to the end."""

    def coin(x, noise):
        heads = (noise.uniform(x[:, 0, 0, 0]) < 0.5).to(x) - 0.5
        return torch.stack([heads, -heads], 1) + 0 * x.flatten(1).sum(1, keepdim=True)

    model = Counted(coin, None)
    PGD(steps=20, eot=1, early_stop=20)(model, X, Y, THREAT, NOISE)
    assert sum(size for size, gradient in model.calls if gradient) == 20 * SIZE


def test_early_stopping_checks_every_path_of_a_known_pool():
    """The image is wrong on the first paths, which the steps take, but not on most of the pool."""
    x, y, paths = X[:1], Y[:1], 16
    attacker = Knowledge(f"semi-{paths}").reveal(NOISE.take([0]), NOISE.child("secret").take([0]))
    keys = [attacker.for_query(i).keys[0] for i in range(paths)]

    def model(x, noise):
        wrong = torch.tensor([keys.index(key) < 4 for key in noise.keys])
        lead = torch.where(wrong, -1.0, 1.0) + 0 * x.flatten(1).sum(1)
        return torch.stack([lead, -lead], 1)[:, [0, 1] if int(y[0]) == 0 else [1, 0]]

    counted = Counted(model, None)
    PGD(steps=9, eot=4, loss="margin", early_stop=20)(counted, x, y, THREAT, attacker)
    assert sum(gradient for _, gradient in counted.calls) == 9


def test_loss_curves_of_unbroken_images_are_kept():
    full, short = (PGD(steps=10, eot=4, loss="margin", early_stop=stop) for stop in (0, 8))
    kept = []
    for attack in (full, short):
        with recording_losses() as steps:
            attack(Batched(MODEL, 16), X, Y, THREAT, NOISE)
        kept.append(curves(steps, SIZE))
    held = [i for i in range(SIZE) if kept[1][i]]
    assert 0 < len(held) < SIZE
    for i in held:
        assert kept[1][i] == pytest.approx(kept[0][i], abs=1e-4)


def test_autoattack_accepts_early_stopping():
    found = AutoAttack(steps=5, eot=2, draws=8, queries=10, early_stop=8)(
        MODEL, X, Y, THREAT, NOISE
    )
    assert THREAT.allows(X, found).all()


def test_queue_answers_searches_as_query_model_does():
    queries = [
        Query(X[:4], Y[:4], "margin", NOISE.take(range(4)), query_index, 3)
        for query_index in (0, 1)
    ]

    def search(query):
        return (yield query)

    told = serve(Batched(MODEL, 5), [search(query) for query in queries])
    for query, seen in zip(queries, told, strict=True):
        for ours, theirs in zip(seen, query_model(MODEL, *query), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_serve_images_keeps_the_order():
    def search(which):
        yield Query(X[which], Y[which], "ce", NOISE.take(which), 0, 1, False)
        return X[which]

    for apart in (True, False):
        assert torch.equal(serve_images(Batched(MODEL, 4), search, SIZE, apart), X)
