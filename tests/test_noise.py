"""Randomness as a value: what an image meets depends on its key alone."""

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


def test_noise_is_taken_of_images_there_are():
    with pytest.raises(ValueError, match=r"noise is for 3 images, .* image 3"):
        Noise.of(0, range(3)).take(range(4))


def blank(size: int, *shape: int) -> torch.Tensor:
    return torch.zeros(size, *(shape or SHAPE))


@pytest.mark.parametrize("make", [torch.tensor, np.array, list, tuple])
def test_a_mask_selects(make):
    noise = Noise.of(0, range(4)).with_known_noise(Noise.of(1, range(4)))
    assert noise.take(make([False, True, False, True])) == noise.take([1, 3])
    assert len(noise.take(make([False] * 4))) == 0
    with pytest.raises(ValueError, match=r"4 images.* 3"):
        noise.take(make([True, False, True]))
    with pytest.raises(TypeError, match=r"1\.5|1\.0"):
        noise.take(make([1.0, 1.5]))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_whole_number_of_numpy_is_the_same_seed(kind):
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
def test_what_is_no_whole_number_is_no_seed(odd):
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
def test_an_image_meets_the_same_numbers_in_any_company(draw):
    alone = torch.cat([draw(Noise.of(3, [i]).child("a", 1), blank(1)) for i in range(6)])
    together = Noise.of(3, range(6)).child("a", 1)
    assert torch.equal(draw(together, blank(6)), alone)
    order = [4, 0, 5, 5, 2]
    assert torch.equal(draw(Noise.of(3, order).child("a", 1), blank(5)), alone[order])
    assert torch.equal(draw(together.take(order), blank(5)), alone[order])
    assert torch.equal(draw(together.take(torch.tensor(order)), blank(5)), alone[order])
    assert torch.equal(draw(together, blank(6)), alone)  # and again


@pytest.mark.parametrize("draw", [Noise.normal, Noise.uniform])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_precision_sees_the_same_numbers(draw, dtype: torch.dtype):
    noise = Noise.of(0, [7, 8])
    single = draw(noise, blank(2))
    assert single.dtype == torch.float32
    other = draw(noise, blank(2).to(dtype))
    assert other.dtype == dtype
    assert torch.equal(other, single.to(dtype))


def test_memory_format_of_the_images_does_not_matter():
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


def test_streams_have_keys_of_their_own():
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


def test_what_differs_above_the_lowest_32_bits_still_differs():
    low, high = Noise((5,)), Noise((5 + (7 << 32),))
    assert not torch.equal(low.normal(blank(1)), high.normal(blank(1)))


def test_streams_are_independent():
    """Neighbors in every sense (seed, index, name, copy, query) are uncorrelated."""
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
    limit = -stats.norm.ppf(1e-4 / pairs)  # of the largest of them all
    assert float(correlation.abs().max()) * size**0.5 < limit
    assert float(correlation.square().mean()) * size == pytest.approx(1, abs=0.05)


def test_normal_numbers_are_normal_and_uniform_ones_uniform():
    noise = Noise.of(0, range(400))
    # small images and large ones are filled by different code in torch
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


def test_copies_stand_in_a_row_and_have_streams_of_their_own():
    noise = Noise.of(0, [3, 4])
    copies = noise.repeat(3)
    assert len(set(copies.keys)) == 6
    assert copies.keys[:3] == Noise.of(0, [3]).repeat(3).keys
    assert copies.keys[3:] == Noise.of(0, [4]).repeat(3).keys
    assert copies.keys[:2] == Noise.of(0, [3]).repeat(2).keys  # more copies leave these alone


def test_fresh_noise_never_repeats():
    assert len(set(Noise.fresh(50).keys) | set(Noise.fresh(50).keys)) == 100


def test_sizes_must_agree():
    noise = Noise.of(0, [0, 1])
    with pytest.raises(ValueError, match=r"noise is for 2 images, .* 3"):
        noise.normal(blank(3))
    with pytest.raises(ValueError, match=r"for 2 images and .* 1"):
        noise.with_known_noise(Noise.of(0, [0]))


def test_who_was_told_nothing_draws_afresh_at_each_turn_and_copy():
    noise = Noise.of(0, [0, 1])
    keys = [key for query_index in range(5) for key in noise.for_query(query_index, 4).keys]
    assert len(set(keys)) == len(keys) == 5 * 4 * 2
    assert noise.for_query(2, 4) == noise.for_query(2, 4)


def test_who_knows_a_stream_knows_its_copies():
    secret, own = Noise.of(0, [0, 1]), Noise.of(1, [0, 1])
    told = own.with_known_noise(secret, ["forward"]).for_query(3)
    assert told.repeat(3).child("forward").keys == secret.repeat(3).child("forward").keys
    assert len(set(told.repeat(3).child("reverse").keys)) == 6


def streams(noise: Noise) -> dict[str, Noise]:
    """What a defense draws from, as `Purified` with `DiffPure` does."""
    inner = noise.child("purify")
    return {
        "forward": inner.child("forward"),
        "reverse 0": inner.child("reverse").child(0),
        "reverse 1": inner.child("reverse").child(1),
        "classify": noise.child("classify"),
    }


@pytest.mark.parametrize("told", ["forward", "reverse"])
def test_who_knows_a_stream_meets_exactly_it_and_fresh_others(told: str):
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


def test_what_is_told_survives_take_and_what_an_attacker_folds_before():
    secret = Noise.of(0, [0, 1, 2]).child("verdict")
    plain = Noise.of(1, [0, 1, 2]).with_known_noise(secret, ["forward"])
    for attacker in (
        plain.child("restart", 3),
        plain.child("forward"),  # his own name for something, not the defense's stream
        plain.child("purify", "forward", "reverse"),
    ):
        drawn = attacker.for_query(4).child("purify", "forward")
        assert drawn == secret.child("purify", "forward")
        assert attacker.keys != plain.keys
    drawn = plain.take([2, 0]).for_query(0, 2).take([1, 2]).child("purify", "forward")
    assert drawn == secret.take([2, 0]).child("purify", "forward")
    # his own numbers, for a start say, are not those of the defense
    assert plain.child("forward").keys != secret.child("forward").keys


def test_names_below_a_stream_that_is_not_told_are_found():
    secret, mine = Noise.of(0, [0]), Noise.of(1, [0])
    drawn = mine.with_known_noise(secret, ["guide"]).for_query(0).child("purify", "reverse", 7)
    assert drawn.child("guide") == secret.child("purify", "reverse", 7, "guide")
    assert drawn.keys != secret.child("purify", "reverse", 7).keys


@pytest.fixture(scope="module")
def defended():
    data = Blobs(4)
    x = torch.stack([data[i][0] for i in range(4)])
    return Purified(bayes(), DiffPure(mixture(), t=0.1, steps=4)), x


def test_who_knows_all_sees_a_deterministic_model(defended):
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


def test_who_knows_both_streams_of_diffpure_knows_all_of_it(defended):
    model, x = defended
    secret = Noise.of(0, range(4)).child("verdict")
    attacker = Noise.of(1, range(4)).with_known_noise(secret, ["forward", "reverse"])
    assert torch.equal(model(x, attacker.for_query(9)), model(x, secret))
    half = Noise.of(1, range(4)).with_known_noise(secret, ["forward"])
    assert not torch.equal(model(x, half.for_query(9)), model(x, secret))


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_a_pool_has_exactly_its_size(copies: int):
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


def test_a_pool_of_one_stream_leaves_the_others_fresh():
    secret = Noise.of(0, [0]).child("verdict")
    attacker = Noise.of(1, [0]).with_known_noise(secret, ["forward"], pool=3)
    drawn = [attacker.for_query(query_index) for query_index in range(9)]
    assert {n.child("purify", "forward") for n in drawn} == {
        secret.child("pool", p, "purify", "forward") for p in range(3)
    }
    assert len({n.child("purify", "reverse").keys for n in drawn}) == 9


def test_permutation_is_one_and_depends_on_all_arguments():
    order = permutation(100, 0, "epoch", 1)
    assert sorted(order) == list(range(100))
    assert order == permutation(100, 0, "epoch", 1)
    others = [permutation(100, 1, "epoch", 1), permutation(100, 0, "epoch", 2)]
    assert order not in [*others, list(range(100))]


def test_seed_torch_fixes_the_first_weights():
    weights = []
    for seed in (0, 0, 1):
        seed_torch(seed, "network")
        weights.append(torch.nn.Linear(3, 3).weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_threads_draw_the_same_numbers(monkeypatch):
    """A large batch is drawn by several threads; each image has a stream of its own."""
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
