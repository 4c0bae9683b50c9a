"""Tests of a classifier behind a purifier, and of votes, which depend on images and draws only."""

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
    """A callable that records its inputs and returns a given function of them."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, x, noise):
        self.asked.append((x, noise))
        return self.answer(x, noise)


def test_noise_streams_have_their_documented_names():
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


def test_with_purifier_keeps_the_classifier_and_the_noise_streams():
    classifier = Recorder(lambda x, noise: x.flatten(1))
    model = Purified(classifier, Recorder(lambda x, noise: x + 1))
    other = model.with_purifier(lambda x, noise: x + noise.normal(x))
    assert isinstance(other, Defended)
    assert other.classifier is classifier
    expected = (X + NOISE.child("purify").normal(X)).flatten(1)
    assert torch.equal(other(X, NOISE), expected)
    assert classifier.asked[-1][1] == NOISE.child("classify")


def test_parts_that_are_modules_are_registered_as_submodules():
    purify = DiffPure(mixture(), steps=2)
    model = Purified(bayes(), purify)
    names = dict(model.named_buffers())
    assert "purifier.denoiser.means" in names
    model.eval()
    assert not purify.training


class Noisy(nn.Module):
    """A classifier whose three logits are pixels plus noise; records its batch sizes."""

    def __init__(self, rows: int | None = None):
        super().__init__()
        self.sizes: list[int] = []
        if rows is not None:
            self.batch_size = rows

    def forward(self, x, noise):
        self.sizes.append(len(x))
        return x.flatten(1)[:, :3] + noise.child("classify").normal(x.flatten(1)[:, :3])


def test_vote_i_is_the_prediction_on_stream_i():
    chosen = predict_draws(Noisy(), X, NOISE, 9)
    assert chosen.shape == (3, 9)
    for i in range(9):
        logits = Noisy()(X, NOISE.child("vote", i))
        assert torch.equal(chosen[:, i], logits.argmax(1))
    assert len(chosen.unique()) == 3  # the draws differ


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 100])
def test_votes_do_not_depend_on_the_batch_size(rows: int):
    model = Noisy()
    assert torch.equal(
        predict_draws(Batched(model, rows), X, NOISE, 10), predict_draws(Noisy(), X, NOISE, 10)
    )
    assert sum(model.sizes) == 30
    assert max(model.sizes) <= rows


def test_votes_do_not_depend_on_other_images_or_the_number_of_votes():
    chosen = predict_draws(Noisy(), X, NOISE, 10)
    order = [2, 0]
    assert torch.equal(predict_draws(Noisy(), X[order], NOISE.take(order), 10), chosen[order])
    assert torch.equal(predict_draws(Noisy(), X, NOISE, 4), chosen[:, :4])
    for i in range(3):
        assert torch.equal(predict_draws(Noisy(2), X[i : i + 1], NOISE.take([i]), 10)[0], chosen[i])


def test_purifier_that_changes_the_shape_is_refused():
    model = Purified(bayes(), lambda x, noise: x[:, :, 1:])
    with pytest.raises(ValueError, match="the purifier must return images of the shape"):
        model(torch.zeros(2, 1, 4, 4), Noise.of(0, range(2)))


def test_votes_of_a_real_defense_do_not_depend_on_the_batch():
    data = Blobs(6)
    x = torch.stack([data[i][0] for i in range(6)])
    x = 0.5 + 0.02 * (x - 0.5)  # near the decision boundary, so that draws disagree
    model, noise = Purified(bayes(), DiffPure(mixture(), t=0.3, steps=5)), Noise.of(0, range(6))
    chosen = predict_draws(model, x, noise, 12)
    assert 0.1 < float(chosen.double().mean()) < 0.9
    assert torch.equal(predict_draws(Batched(model, 12), x, noise, 12), chosen)
    order = [5, 2, 3]
    assert torch.equal(predict_draws(model, x[order], noise.take(order), 12), chosen[order])


def test_voting_builds_no_graph():
    seen = []

    def model(x, noise):
        seen.append(torch.is_grad_enabled())
        return x.flatten(1)

    predict_draws(model, X.clone().requires_grad_(), NOISE, 2)
    assert seen
    assert not any(seen)


def test_majority_vote_breaks_ties_by_the_lowest_class():
    chosen = torch.tensor(
        [
            [2, 2, 1, 0],
            [1, 1, 2, 2],  # a tie: the lowest class wins
            [3, 2, 1, 0],
            [3, 3, 3, 3],
            [0, 3, 3, 0],
        ]
    )
    assert majority_class(chosen, 4).tolist() == [2, 1, 0, 3, 0]
    assert majority_class(chosen, 7).tolist() == [2, 1, 0, 3, 0]
    assert majority_class(chosen[:, :1], 4).tolist() == [2, 1, 3, 3, 0]
