"""Noise as a value: the random numbers of an image depend on its key alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from unfool import noise
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified
from unfool.noise import Noise, permutation, seed_torch
from unfool.toy.blobs import Blobs, bayes, mixture

SHAPE = (1, 5, 5)


def test_take_refuses_images_beyond_the_batch():
    with pytest.raises(ValueError, match=r"noise is for 3 images, .* image 3"):
        Noise.of(0, range(3)).take(range(4))


def blank(size: int, *shape: int) -> torch.Tensor:
    return torch.zeros(size, *(shape or SHAPE))


@pytest.mark.parametrize("make", [torch.tensor, np.array, list, tuple])
def test_take_accepts_a_boolean_mask(make):
    noise = Noise.of(0, range(4)).with_known_noise(Noise.of(1, range(4)))
    assert noise.take(make([False, True, False, True])) == noise.take([1, 3])
    assert len(noise.take(make([False] * 4))) == 0
    with pytest.raises(ValueError, match=r"4 images.* 3"):
        noise.take(make([True, False, True]))
    with pytest.raises(TypeError, match=r"1\.5|1\.0"):
        noise.take(make([1.0, 1.5]))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_integers_are_the_same_seeds_as_python_integers(kind):
    noise, one = Noise.of(0, range(4)), kind(1)
    assert Noise.of(kind(0), np.arange(4, dtype=kind)) == noise
    assert Noise.of(kind(0), [kind(i) for i in range(4)]) == noise
    assert noise.child("a", one) == noise.child("a", 1)
    assert noise.child(np.str_("a")) == noise.child("a")
    assert noise.for_query(one, one) == noise.for_query(1, 1)
    assert noise.take([one]) == noise.take([1])
    assert permutation(5, one, "subset", one) == permutation(5, 1, "subset", 1)
    seed_torch(one)
    drawn = torch.nn.Linear(2, 2).weight
    seed_torch(1)
    assert torch.equal(torch.nn.Linear(2, 2).weight, drawn)


@pytest.mark.parametrize("odd", [1.0, True, np.True_, np.float64(1), None])
def test_seed_that_is_no_integer_is_refused(odd):
    noise = Noise.of(0, range(4))
    for make in (
        lambda: Noise.of(odd, range(4)),
        lambda: Noise.of(0, [odd]),
        lambda: noise.child("a", odd),
        lambda: noise.for_query(odd),
        lambda: permutation(5, odd),
        lambda: seed_torch(odd),
    ):
        with pytest.raises(TypeError, match=str(odd)):
            make()


@pytest.mark.parametrize("draw", [Noise.normal, Noise.uniform])
def test_noise_of_an_image_does_not_depend_on_the_batch(draw):
    alone = torch.cat([draw(Noise.of(3, [i]).child("a", 1), blank(1)) for i in range(6)])
    together = Noise.of(3, range(6)).child("a", 1)
    assert torch.equal(draw(together, blank(6)), alone)
    order = [4, 0, 5, 5, 2]
    assert torch.equal(draw(Noise.of(3, order).child("a", 1), blank(5)), alone[order])
    assert torch.equal(draw(together.take(order), blank(5)), alone[order])
    assert torch.equal(draw(together.take(torch.tensor(order)), blank(5)), alone[order])
    assert torch.equal(draw(together, blank(6)), alone)  # a second call returns the same


@pytest.mark.parametrize("draw", [Noise.normal, Noise.uniform])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_noise_is_the_same_in_every_precision(draw, dtype: torch.dtype):
    noise = Noise.of(0, [7, 8])
    single = draw(noise, blank(2))
    assert single.dtype == torch.float32
    other = draw(noise, blank(2).to(dtype))
    assert other.dtype == dtype
    assert torch.equal(other, single.to(dtype))


def test_noise_does_not_depend_on_the_memory_format():
    like = blank(2, 3, 8, 8)
    noise = Noise.of(0, [0, 1])
    strided = like.contiguous(memory_format=torch.channels_last)
    assert torch.equal(noise.normal(strided), noise.normal(like))


def test_names_are_paths():
    noise = Noise.of(0, [0, 1])
    assert noise.child("a", 1, "b") == noise.child("a").child(1).child("b")
    assert noise.child() == noise
    paths = [(), ("a",), (1,), ("1",), ("a", 1), (1, "a"), ("a1",), ("a", "1"), ("copy", 0)]
    keys = {key for path in paths for key in noise.child(*path).keys}
    assert len(keys) == 2 * len(paths)


def test_streams_have_distinct_keys():
    found: list[int] = []
    for seed in range(5):
        noise = Noise.of(seed, range(20))
        found += noise.keys + noise.repeat(4).keys
        for query_index in range(4):
            found += noise.for_query(query_index, 3).keys
            found += noise.child("restart", query_index).keys
            found += noise.child(query_index).keys
            found += noise.child(query_index, "guide").keys
    assert len(set(found)) == len(found) == 5 * 20 * (1 + 4 + 4 * (3 + 3))


def test_keys_that_differ_only_in_high_bits_give_different_noise():
    low, high = Noise((5,)), Noise((5 + (7 << 32),))
    assert not torch.equal(low.normal(blank(1)), high.normal(blank(1)))


def test_streams_are_independent():
    """Streams that differ in one of seed, index, name, copy, or query are uncorrelated."""
    base = Noise.of(0, range(40))
    streams = [
        base,
        Noise.of(1, range(40)),
        base.child("forward"),
        base.child("reverse", 0),
        base.child("reverse", 1),
        base.for_query(0),
        base.for_query(1),
        base.take(range(10)).repeat(4),
    ]
    size = 4000
    rows = torch.cat([s.normal(blank(40, size)) for s in streams]).double()
    correlation = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    pairs = len(rows) * (len(rows) - 1) / 2
    limit = -stats.norm.ppf(1e-4 / pairs)  # for the maximum over all pairs
    assert float(correlation.abs().max()) * size**0.5 < limit
    assert float(correlation.square().mean()) * size == pytest.approx(1, abs=0.05)


def test_normal_and_uniform_draws_have_their_distributions():
    noise = Noise.of(0, range(400))
    # torch fills small and large tensors by different code
    for shape in ((3,), (5, 50)):
        normal = noise.normal(blank(400, *shape)).flatten().numpy()
        uniform = noise.uniform(blank(400, *shape)).flatten().numpy()
        assert stats.kstest(normal, "norm").pvalue > 1e-3
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3
        assert uniform.min() >= 0
        assert uniform.max() < 1
    n = len(normal)
    assert abs(normal.mean()) < 4 / n**0.5
    assert abs(normal.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(normal)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(normal)) < 4 * (24 / n) ** 0.5


def test_copies_of_an_image_are_adjacent_and_have_distinct_streams():
    noise = Noise.of(0, [3, 4])
    copies = noise.repeat(3)
    assert len(set(copies.keys)) == 6
    assert copies.keys[:3] == Noise.of(0, [3]).repeat(3).keys
    assert copies.keys[3:] == Noise.of(0, [4]).repeat(3).keys
    assert copies.keys[:2] == Noise.of(0, [3]).repeat(2).keys  # more copies keep these


def test_fresh_noise_never_repeats():
    assert len(set(Noise.fresh(50).keys) | set(Noise.fresh(50).keys)) == 100


def test_noise_for_another_batch_size_is_refused():
    noise = Noise.of(0, [0, 1])
    with pytest.raises(ValueError, match=r"noise is for 2 images, .* 3"):
        noise.normal(blank(3))
    with pytest.raises(ValueError, match=r"for 2 images and .* 1"):
        noise.with_known_noise(Noise.of(0, [0]))


def test_noise_without_known_streams_is_fresh_in_each_query_and_copy():
    noise = Noise.of(0, [0, 1])
    keys = [key for query_index in range(5) for key in noise.for_query(query_index, 4).keys]
    assert len(set(keys)) == len(keys) == 5 * 4 * 2
    assert noise.for_query(2, 4) == noise.for_query(2, 4)


def test_attacker_who_knows_a_stream_knows_its_copies():
    secret, own = Noise.of(0, [0, 1]), Noise.of(1, [0, 1])
    told = own.with_known_noise(secret, ["forward"]).for_query(3)
    assert told.repeat(3).child("forward").keys == secret.repeat(3).child("forward").keys
    assert len(set(told.repeat(3).child("reverse").keys)) == 6


def streams(noise: Noise) -> dict[str, Noise]:
    """The streams from which a defense draws, as `Purified` with `DiffPure` does."""
    inner = noise.child("purify")
    return {
        "forward": inner.child("forward"),
        "reverse 0": inner.child("reverse").child(0),
        "reverse 1": inner.child("reverse").child(1),
        "classify": noise.child("classify"),
    }


@pytest.mark.parametrize("told", ["forward", "reverse"])
def test_attacker_gets_the_known_stream_and_fresh_others(told: str):
    secret = Noise.of(0, [0, 1, 2]).child("verdict")
    attacker = Noise.of(0, [0, 1, 2]).child("search").with_known_noise(secret, [told])
    theirs, seen = streams(secret), []
    for query_index in range(3):
        mine = streams(attacker.for_query(query_index, copies=2))
        for name, stream in mine.items():
            if name.startswith(told):
                assert stream.take([0, 2, 4]) == theirs[name]
                assert stream.take([1, 3, 5]) == theirs[name]
                numbers = theirs[name].normal(blank(3)).repeat_interleave(2, 0)
                assert torch.equal(stream.normal(blank(6)), numbers)
            else:
                seen += stream.keys
    unknown = len([name for name in theirs if not name.startswith(told)])
    assert len(set(seen)) == len(seen) == 3 * 2 * 3 * unknown
    assert not set(seen) & {key for stream in theirs.values() for key in stream.keys}


def test_known_noise_survives_take_and_the_attackers_own_child_names():
    secret = Noise.of(0, [0, 1, 2]).child("verdict")
    plain = Noise.of(1, [0, 1, 2]).with_known_noise(secret, ["forward"])
    for attacker in (
        plain.child("restart", 3),
        plain.child("forward"),  # the attacker's own name, not the defense's stream
        plain.child("purify", "forward", "reverse"),
    ):
        drawn = attacker.for_query(4).child("purify", "forward")
        assert drawn == secret.child("purify", "forward")
        assert attacker.keys != plain.keys
    drawn = plain.take([2, 0]).for_query(0, 2).take([1, 2]).child("purify", "forward")
    assert drawn == secret.take([2, 0]).child("purify", "forward")
    # the attacker's own draws, such as for a random start, are not those of the defense
    assert plain.child("forward").keys != secret.child("forward").keys


def test_known_name_is_found_below_an_unknown_stream():
    secret, mine = Noise.of(0, [0]), Noise.of(1, [0])
    drawn = mine.with_known_noise(secret, ["guide"]).for_query(0).child("purify", "reverse", 7)
    assert drawn.child("guide") == secret.child("purify", "reverse", 7, "guide")
    assert drawn.keys != secret.child("purify", "reverse", 7).keys


@pytest.fixture(scope="module")
def defended():
    data = Blobs(4)
    x = torch.stack([data[i][0] for i in range(4)])
    return Purified(bayes(), DiffPure(mixture(), t=0.1, steps=4)), x


def test_attacker_who_knows_all_noise_sees_a_deterministic_model(defended):
    model, x = defended
    secret = Noise.of(0, range(4)).child("verdict")
    attacker = Noise.of(0, range(4)).child("search").with_known_noise(secret)
    truth = model(x, secret)
    for query_index in range(3):
        assert torch.equal(
            model(x, attacker.child("restart", query_index).for_query(query_index)), truth
        )
    copies = model(x.repeat_interleave(3, 0), attacker.for_query(5, copies=3))
    assert torch.equal(copies, truth.repeat_interleave(3, 0))
    ignorant = Noise.of(0, range(4)).child("search")
    assert not torch.equal(model(x, ignorant.for_query(0)), truth)
    assert not torch.equal(model(x, ignorant.for_query(0)), model(x, ignorant.for_query(1)))


def test_attacker_who_knows_both_streams_of_diffpure_sees_its_output(defended):
    model, x = defended
    secret = Noise.of(0, range(4)).child("verdict")
    attacker = Noise.of(1, range(4)).with_known_noise(secret, ["forward", "reverse"])
    assert torch.equal(model(x, attacker.for_query(9)), model(x, secret))
    half = Noise.of(1, range(4)).with_known_noise(secret, ["forward"])
    assert not torch.equal(model(x, half.for_query(9)), model(x, secret))


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_pool_has_exactly_its_size(copies: int):
    secret = Noise.of(0, [0, 1]).child("verdict")
    attacker = Noise.of(1, [0, 1]).with_known_noise(secret, pool=4)
    met: list[set[int]] = [set(), set()]
    for query_index in range(12):
        drawn = attacker.for_query(query_index, copies)
        assert drawn.known_noise is None
        for i in range(2):
            met[i] |= set(drawn.keys[i * copies : (i + 1) * copies])
    allowed = [set(secret.take([i]).child("pool", p).keys[0] for p in range(4)) for i in range(2)]
    assert met == allowed
    assert not met[0] & met[1]


def test_pool_of_one_stream_leaves_the_others_fresh():
    secret = Noise.of(0, [0]).child("verdict")
    attacker = Noise.of(1, [0]).with_known_noise(secret, ["forward"], pool=3)
    drawn = [attacker.for_query(query_index) for query_index in range(9)]
    assert {n.child("purify", "forward") for n in drawn} == {
        secret.child("pool", p, "purify", "forward") for p in range(3)
    }
    assert len({n.child("purify", "reverse").keys for n in drawn}) == 9


def test_permutation_is_complete_and_depends_on_seed_and_epoch():
    order = permutation(100, 0, "epoch", 1)
    assert sorted(order) == list(range(100))
    assert order == permutation(100, 0, "epoch", 1)
    others = [permutation(100, 1, "epoch", 1), permutation(100, 0, "epoch", 2)]
    assert order not in [*others, list(range(100))]


def test_seed_torch_fixes_initial_weights():
    weights = []
    for seed in (0, 0, 1):
        seed_torch(seed, "network")
        weights.append(torch.nn.Linear(3, 3).weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_multithreaded_draws_equal_single_threaded_ones(monkeypatch):
    """Several threads share a large batch, which is possible because each image has its own stream."""
    keys, like = Noise.of(3, range(37)), torch.empty(37, 3, 32, 32)
    alone = keys.normal(like), keys.uniform(like)
    monkeypatch.setattr(noise, "MIN_NUMBERS_PER_THREAD", 2**12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    asked = []
    pool = noise.thread_pool
    monkeypatch.setattr(noise, "thread_pool", lambda *of: asked.append(of) or pool(*of))
    assert torch.equal(keys.normal(like), alone[0])
    assert torch.equal(keys.uniform(like), alone[1])
    assert len(asked) == 2
