"""A defense is a classifier; its votes depend on images and draws alone."""

import pytest
import torch
from torch import nn

from unfool.attacks.views import Batched
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified, majority_class, predict_draws
from unfool.noise import Noise
from unfool.protocols import Defended
from unfool.toy.blobs import Blobs, bayes, mixture

NOISE = Noise.of(0, range(3))
X = NOISE.child("x").uniform(torch.zeros(3, 1, 4, 4))


class Recorder:
    """Remembers what it was asked and answers with a function of it."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, x, noise):
        self.asked.append((x, noise))
        return self.answer(x, noise)


def test_streams_have_the_names_they_are_known_by():
    purifier = Recorder(lambda x, noise: x + 1)
    classifier = Recorder(lambda x, noise: x.flatten(1))
    logits = Purified(classifier, purifier)(X, NOISE)
    assert torch.equal(logits, (X + 1).flatten(1))
    ((seen, purify),) = purifier.asked
    ((pure, classify),) = classifier.asked
    assert torch.equal(seen, X)
    assert torch.equal(pure, X + 1)
    assert purify == NOISE.child("purify")
    assert classify == NOISE.child("classify")


def test_behind_another_purifier_it_is_the_same_classifier():
    classifier = Recorder(lambda x, noise: x.flatten(1))
    model = Purified(classifier, Recorder(lambda x, noise: x + 1))
    other = model.with_purifier(lambda x, noise: x + noise.normal(x))
    assert isinstance(other, Defended)
    assert other.classifier is classifier
    expected = (X + NOISE.child("purify").normal(X)).flatten(1)
    assert torch.equal(other(X, NOISE), expected)
    assert classifier.asked[-1][1] == NOISE.child("classify")


def test_parts_that_are_modules_are_found_as_such():
    purify = DiffPure(mixture(), steps=2)
    model = Purified(bayes(), purify)
    names = dict(model.named_buffers())
    assert "purifier.denoiser.means" in names
    model.eval()
    assert not purify.training


class Noisy(nn.Module):
    """Three logits of pure noise and a little of the image; keeps count of what it was given."""

    def __init__(self, rows: int | None = None):
        super().__init__()
        self.sizes: list[int] = []
        if rows is not None:
            self.batch_size = rows

    def forward(self, x, noise):
        self.sizes.append(len(x))
        return x.flatten(1)[:, :3] + noise.child("classify").normal(x.flatten(1)[:, :3])


def test_vote_i_is_the_choice_on_stream_i():
    chosen = predict_draws(Noisy(), X, NOISE, 9)
    assert chosen.shape == (3, 9)
    for i in range(9):
        logits = Noisy()(X, NOISE.child("vote", i))
        assert torch.equal(chosen[:, i], logits.argmax(1))
    assert len(chosen.unique()) == 3  # the draws do differ


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 100])
def test_votes_do_not_depend_on_how_many_go_together(rows: int):
    model = Noisy()
    assert torch.equal(
        predict_draws(Batched(model, rows), X, NOISE, 10), predict_draws(Noisy(), X, NOISE, 10)
    )
    assert sum(model.sizes) == 30
    assert max(model.sizes) <= rows


def test_votes_do_not_depend_on_the_batch_nor_on_how_many_are_cast():
    chosen = predict_draws(Noisy(), X, NOISE, 10)
    order = [2, 0]
    assert torch.equal(predict_draws(Noisy(), X[order], NOISE.take(order), 10), chosen[order])
    assert torch.equal(predict_draws(Noisy(), X, NOISE, 4), chosen[:, :4])
    for i in range(3):
        assert torch.equal(predict_draws(Noisy(2), X[i : i + 1], NOISE.take([i]), 10)[0], chosen[i])


def test_a_purifier_that_changes_the_shape_is_told():
    model = Purified(bayes(), lambda x, noise: x[:, :, 1:])
    with pytest.raises(ValueError, match="the purifier must return images of the shape"):
        model(torch.zeros(2, 1, 4, 4), Noise.of(0, range(2)))


def test_votes_of_a_real_defense_do_not_depend_on_the_batch_either():
    data = Blobs(6)
    x = torch.stack([data[i][0] for i in range(6)])
    x = 0.5 + 0.02 * (x - 0.5)  # nearly on the border, so that draws disagree
    model, noise = Purified(bayes(), DiffPure(mixture(), t=0.3, steps=5)), Noise.of(0, range(6))
    chosen = predict_draws(model, x, noise, 12)
    assert 0.1 < float(chosen.double().mean()) < 0.9
    assert torch.equal(predict_draws(Batched(model, 12), x, noise, 12), chosen)
    order = [5, 2, 3]
    assert torch.equal(predict_draws(model, x[order], noise.take(order), 12), chosen[order])


def test_votes_keep_no_graph():
    seen = []

    def model(x, noise):
        seen.append(torch.is_grad_enabled())
        return x.flatten(1)

    predict_draws(model, X.clone().requires_grad_(), NOISE, 2)
    assert seen
    assert not any(seen)


def test_majority():
    chosen = torch.tensor(
        [
            [2, 2, 1, 0],
            [1, 1, 2, 2],  # equals: the lowest
            [3, 2, 1, 0],
            [3, 3, 3, 3],
            [0, 3, 3, 0],
        ]
    )
    assert majority_class(chosen, 4).tolist() == [2, 1, 0, 3, 0]
    assert majority_class(chosen, 7).tolist() == [2, 1, 0, 3, 0]
    assert majority_class(chosen[:, :1], 4).tolist() == [2, 1, 3, 3, 0]
