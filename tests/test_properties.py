"""Properties of threats and noise, on generated images and keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfool.noise import Noise, permutation
from unfool.threat import Threat

SIDES, SEEDS = st.integers(1, 5), st.integers(-(2**70), 2**70)
INDICES = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)
THREATS = st.one_of(
    st.builds(Threat, st.sampled_from(["linf", "l0"]), st.floats(0, 1)),
    st.builds(Threat, st.just("l2"), st.floats(0, 1e6)),
)
WILD = [0.0, -0.0, 1.0, 1e-40, -1e30, 1e30, float("inf"), -float("inf")]


@st.composite
def images(draw):
    """A batch of images in [0, 1], and a tensor of the same shape with any values but NaN."""
    shape = (draw(st.integers(1, 4)), draw(st.sampled_from([1, 3])), draw(SIDES), draw(SIDES))
    noise = Noise.of(draw(st.integers(0, 10**6)), range(shape[0]))
    x = noise.uniform(torch.empty(shape))
    if draw(st.booleans()):
        x = x.round()
    scale = draw(st.sampled_from([0.0, 1e-7, 0.1, 3.0, 1e20]))
    far = x + scale * noise.child("far").normal(x)
    if draw(st.booleans()):
        far.view(-1)[draw(st.integers(0, far.numel() - 1))] = draw(st.sampled_from(WILD))
    return x, far


@given(THREATS, images())
def test_projection_is_allowed_and_idempotent(threat, pair):
    x, far = pair
    near = threat.project(x, far)
    assert threat.allows(x, near, slack=1e-6 * (1 + threat.eps)).all()
    assert torch.allclose(threat.project(x, near), near, rtol=0, atol=1e-6)
    assert torch.equal(threat.project(x, x), x)


@given(THREATS, images(), SEEDS)
def test_random_images_of_a_threat_are_allowed(threat, pair, seed):
    x, _ = pair
    noise = Noise.of(seed, range(len(x)))
    for made in (threat.start(x, noise), threat.random_at_full_budget(x, noise)):
        assert threat.allows(x, made, slack=1e-6 * (1 + threat.eps)).all()


@given(THREATS, images(), st.permutations(range(4)))
def test_threat_operations_do_not_depend_on_the_batch(threat, pair, order):
    x, far = pair
    order = [place for place in order if place < len(x)]
    noise = Noise.of(3, range(len(x)))
    for make in (
        lambda a, b, n: threat.project(a, b),
        lambda a, b, n: threat.start(a, n),
        lambda a, b, n: threat.random_at_full_budget(a, n),
    ):
        whole = make(x, far, noise)
        some = make(x[order], far[order], noise.take(order))
        assert torch.allclose(some, whole[order], rtol=0, atol=1e-6)


@given(SEEDS, INDICES, st.data())
def test_noise_does_not_depend_on_batch_or_order(seed, indices, data):
    places = data.draw(st.lists(st.integers(0, len(indices) - 1), max_size=8))
    shape = (data.draw(SIDES), data.draw(SIDES))
    noise = Noise.of(seed, indices).child("a", 1)
    some = Noise.of(seed, [indices[place] for place in places]).child("a", 1)
    assert noise.take(places) == some
    for draw in ("normal", "uniform"):
        whole = getattr(noise, draw)(torch.empty(len(indices), *shape))
        part = getattr(some, draw)(torch.empty(len(places), *shape))
        assert torch.equal(part, whole[places])


@given(SEEDS, INDICES, st.data())
def test_mask_takes_the_same_noise_as_its_positions(seed, indices, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(indices), max_size=len(indices)))
    noise = Noise.of(seed, indices)
    places = [i for i, taken in enumerate(mask) if taken]
    assert noise.take(mask) == noise.take(torch.tensor(mask)) == noise.take(places)


@given(SEEDS, INDICES, st.integers(1, 4), st.integers(0, 9))
def test_joining_parts_of_a_batch_restores_it(seed, indices, copies, query_index):
    noise = Noise.of(seed, indices)
    cut = len(indices) // 2
    parts = [noise.take(range(cut)), noise.take(range(cut, len(indices)))]
    assert Noise.join(parts) == noise
    asked = [part.for_query(query_index, copies) for part in parts]
    assert Noise.join(asked) == noise.for_query(query_index, copies)
    told = noise.for_query(query_index, copies)
    assert len(set(told.keys)) == copies * len(set(indices)), "no two copies share their draws"


@given(st.one_of(st.floats(), st.booleans(), st.text(), st.none()))
def test_seeds_that_are_no_integers_are_refused(seed):
    for make in (lambda: Noise.of(seed, [0]), lambda: permutation(3, seed)):
        with pytest.raises(TypeError, match="whole numbers"):
            make()


@given(st.integers(0, 50), SEEDS)
def test_permutation_holds_each_index_once(size, seed):
    assert sorted(permutation(size, seed, "order")) == list(range(size))
