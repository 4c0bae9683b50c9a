"""The tally of votes that the commands and the service share."""

import pytest
import torch

from unfool.api.apply import tally
from unfool.defenses.purified_classifier import majority_class
from unfool.noise import Noise


def test_tally_returns_the_majority_and_all_counts():
    votes = (Noise.of(0, range(50)).uniform(torch.empty(50, 6)) * 4).long()
    found = tally(votes, 9)
    assert [each.winner for each in found] == majority_class(votes, 9).tolist()
    for each, row in zip(found, votes, strict=True):
        counts = torch.bincount(row, minlength=9)
        assert each.counts == counts.tolist()
        assert each.votes == counts.max()
        assert each.undecided == (int((counts == counts.max()).sum()) > 1)
    assert {each.undecided for each in found} == {True, False}


@pytest.mark.parametrize("classes", [0, 3])
def test_votes_beyond_the_known_classes_are_counted(classes):
    assert tally(torch.tensor([[4, 4, 1]]), classes)[0].counts == [0, 1, 0, 0, 2]
