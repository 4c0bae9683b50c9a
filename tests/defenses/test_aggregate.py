"""Tests of aggregation over several purification paths."""

from typing import Any

import pytest
import torch
from torch import nn

from unfool.attacks.views import Batched, bpda, classifier_only
from unfool.defenses.aggregate import Aggregated, By, aggregate
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import (
    Purified,
    majority_class,
    majority_vote,
    predict_draws,
)
from unfool.noise import Noise
from unfool.protocols import Defended
from unfool.toy.blobs import Blobs, bayes, mixture

LOGITS = torch.tensor([[[4.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])  # (R, B, K)


def images(size: int) -> torch.Tensor:
    data = Blobs(size)
    return torch.stack([data[i][0] for i in range(size)])


def model(paths: int, by: By = "softmax") -> Aggregated:
    purify = DiffPure(mixture(), t=0.3, steps=3, sampler="ddpm")
    return Aggregated(Purified(bayes(), purify), paths=paths, by=by)


def test_aggregation_by_logits_softmax_and_votes():
    assert aggregate(LOGITS, "logits").argmax(1).tolist() == [0]
    soft = aggregate(LOGITS, "softmax")
    assert torch.allclose(soft.exp(), LOGITS.softmax(2).mean(0))
    shares = aggregate(LOGITS, "votes")
    assert torch.allclose(shares, torch.tensor([[1 / 3, 2 / 3, 0]]), atol=1e-7)


def test_votes_have_the_gradient_of_the_mean_probability():
    logits = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(aggregate(logits, "votes")[0, 1], logits)
    (expected,) = torch.autograd.grad(logits.softmax(2).mean(0)[0, 1], logits)
    assert torch.allclose(slope, expected)
    assert float(slope.abs().max()) > 0.05


def test_paths_are_independent_and_the_first_is_the_plain_model():
    x, noise = images(4), Noise.of(0, range(4))
    single = model(1, "logits")
    assert torch.equal(single(x, noise), single.model(x, noise))
    paths = [single.model(x, noise), *(single.model(x, noise.child("path", i)) for i in (1, 2))]
    assert not torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[1], paths[2])
    assert torch.equal(model(3, "logits")(x, noise), torch.stack(paths).mean(0))


def test_logits_of_an_image_do_not_depend_on_its_batch():
    x, noise, whole = images(4), Noise.of(0, range(4)), model(3)
    alone = torch.cat([whole(x[i : i + 1], noise.take([i])) for i in range(4)])
    assert torch.allclose(alone, whole(x, noise), atol=1e-5)


def test_attack_views_apply_to_aggregated_models():
    x, noise, whole = images(2), Noise.of(0, range(2)), model(3)
    assert isinstance(whole, Defended)
    assert torch.allclose(bpda(whole)(x, noise), whole(x, noise), atol=1e-5)
    assert torch.equal(classifier_only(whole)(x, noise), bayes()(x, noise))
    same = whole.with_purifier(whole.purifier)
    assert (same.paths, same.by) == (3, "softmax")
    assert torch.equal(same(x, noise), whole(x, noise))


def test_knowing_the_reverse_noise_reveals_it_for_every_path():
    x, secret = images(2), Noise.of(0, range(2))
    seen = []

    class Spy(nn.Module):
        def forward(self, x, noise):
            seen.append(noise.child("reverse").keys)
            return x

    spied = Aggregated(Purified(bayes(), Spy()), paths=3)
    spied(x, secret)
    theirs, seen[:] = list(seen), []
    spied(x, Noise.of(1, range(2)).with_known_noise(secret, ["reverse"]).for_query(0))
    assert seen == theirs
    assert len(set(theirs)) == 3


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="paths must be 1 or more, not 0"):
        model(0)
    with pytest.raises(ValueError, match=r"by .*votes.* 'sum'"):
        model(2, "sum")  # pyright: ignore[reportArgumentType]


# ----------------------------------------------------------------------- curtailed votes


class Ballots:
    """A classifier whose prediction for image i in stream j is entry (i, j) of a table."""

    def __init__(self, table: torch.Tensor, classes: int):
        self.table, self.classes, self.asked = table, classes, 0
        self.place = {}

    def streams(self) -> list[Noise]:
        streams = [Noise.of(j, range(len(self.table))) for j in range(self.table.shape[1])]
        for j, stream in enumerate(streams):
            self.place |= {key: (i, j) for i, key in enumerate(stream.keys)}
        return streams

    def __call__(self, x, noise):
        self.asked += len(x)
        answers = torch.stack([self.table[self.place[key]] for key in noise.keys])
        return nn.functional.one_hot(answers, self.classes).double()


@pytest.mark.parametrize("draws", [1, 2, 3, 4, 5])
def test_curtailed_vote_matches_the_full_vote_for_all_ballots(draws):
    table = torch.cartesian_prod(*[torch.arange(3)] * draws).view(-1, draws)  # all possible ballots
    ballots = Ballots(table, 3)
    chosen = majority_vote(ballots, torch.zeros(len(table), 1, 1, 1), ballots.streams())
    assert torch.equal(chosen, majority_class(table, 3))
    assert ballots.asked < table.numel() or draws == 1


def test_unanimous_vote_stops_after_about_half_the_draws():
    for draws, first, needed in ((10, 0, 5), (10, 2, 6), (9, 0, 5), (9, 2, 5)):
        ballots = Ballots(torch.full((1, draws), first), 3)
        majority_vote(ballots, torch.zeros(1, 1, 1, 1), ballots.streams())
        assert (
            ballots.asked == needed
        )  # the lowest class wins ties, so half of the votes suffice for it


def test_curtailing_a_voting_model_saves_calls_and_keeps_predictions():
    voting = model(9, "votes")
    x, noise = images(6), Noise.of(0, range(6))
    calls = []
    inner: Any = voting.model
    inner.classifier.register_forward_hook(lambda _, given, out: calls.append(len(out)))
    whole = torch.stack([voting(x, noise.child("vote", i)).argmax(1) for i in range(3)], 1)
    dear = sum(calls)
    for judged in (voting, Batched(voting, 4)):
        calls.clear()
        assert torch.equal(predict_draws(judged, x, noise, 3), whole)
        assert sum(calls) < 0.8 * dear
    mean = model(3, "logits")
    assert torch.equal(mean.decide(x, noise), mean(x, noise).argmax(1))
