"""Randomness as a value.

A `Noise` holds one key per image, and its draws depend on the keys alone: not on the batch that an
image is in, on the process, or on earlier draws. So a run can be resumed, split over machines,
replayed by an attacker who knows the randomness, or recomputed in the backward pass of a gradient,
and every image gets the same noise. Numbers are drawn in float32 on the CPU, by a counter-based
generator (Philox) with the image's key, and then moved to the device, so that they are the same on
every device and in every precision.

This is the only module that may draw random numbers.
"""

import os
import random
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from html import escape
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

StreamName = int | str
Draw = Callable[[np.random.Generator, np.ndarray], Any]
MIN_NUMBERS_PER_THREAD = 2**16  # a thread draws at least so many numbers, in about a millisecond
_DRAW_COUNT = [0]  # how often this process has drawn noise


@dataclass(frozen=True)
class KnownNoise:
    """What an attacker knows of the defense's noise: the streams `names` of `keys`.

    Without names, the attacker knows all of it. With `pool`, the defense draws from `pool` fixed
    paths, which are known. With `options`, each single draw of the defense is one of `options`
    known ones, but the attacker does not know which. `in_use` is True once the defense begins to draw
    (see `Noise.for_query`).
    """

    keys: tuple[int, ...]
    names: frozenset[str]
    pool: int = 0
    options: int = 0
    in_use: bool = False


@dataclass(frozen=True)
class Noise:
    """One independent stream of random numbers per image of a batch.

    Attributes:
        keys: A 64-bit key per image.
        known_noise: What an attacker knows of the defense's noise; None for everyone else.
    """

    keys: tuple[int, ...]
    known_noise: KnownNoise | None = None

    @classmethod
    def of(cls, seed: int, indices: Iterable[int]) -> "Noise":
        """The noise of the images at `indices` of a data set, for one seed.

        Raises:
            TypeError: The seed or an index is not a whole number.
        """
        seed = _to_int(seed)
        return cls(tuple(_key(seed, _to_int(index)) for index in _to_sequence(indices)))

    @classmethod
    def fresh(cls, size: int) -> "Noise":
        """Noise for `size` images that cannot be repeated."""
        return cls(tuple(secrets.randbits(64) for _ in range(size)))

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        known_text = "" if self.known_noise is None else ", known to an attacker"
        return f"<Noise for {len(self)} image{'' if len(self) == 1 else 's'}{known_text}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def child(self, *path: StreamName) -> "Noise":
        """The stream `path` below this one, named by strings and whole numbers.

        Raises:
            TypeError: A name is neither a string nor a whole number.
        """
        noise = self
        for name in path:
            noise = noise._step(_name(name))
        return noise

    def _step(self, name: StreamName) -> "Noise":
        known = self.known_noise
        if known is not None and known.in_use:
            known_keys = tuple(_key(key, name) for key in known.keys)
            if name in known.names:
                return Noise(known_keys)
            known = replace(known, keys=known_keys)
        return Noise(tuple(_key(key, name) for key in self.keys), known)

    def repeat(self, copies: int) -> "Noise":
        """Repeat every image `copies` times in a row, each copy with its own stream."""
        known = self.known_noise
        if known is not None and known.in_use:  # the defense's own copies
            known = replace(known, keys=_copies(known.keys, copies))
        elif known is not None:
            known = replace(known, keys=tuple(k for k in known.keys for _ in range(copies)))
        return Noise(_copies(self.keys, copies), known)

    def take(self, which: Iterable[int] | Tensor) -> "Noise":
        """The noise of the images at positions `which` of this batch.

        Args:
            which: Positions in the batch; or a mask with one bool per image.

        Raises:
            TypeError: A position is not a whole number.
            ValueError: A position lies beyond the batch, or the mask has another length.
        """
        positions = _to_sequence(which)
        if positions and all(isinstance(position, bool | np.bool_) for position in positions):
            if len(positions) != len(self.keys):
                raise ValueError(
                    f"the mask must have one entry for each of the noise's {len(self.keys)} "
                    f"images, not {len(positions)}"
                )
            chosen = [i for i, is_taken in enumerate(positions) if is_taken]
        else:
            chosen = [_to_int(position) for position in positions]
        if chosen and max(chosen) >= len(self.keys):
            raise ValueError(
                f"the noise is for {len(self.keys)} images, numbered from 0, and image "
                f"{max(chosen)} was asked for"
            )
        known = self.known_noise
        if known is not None:
            known = replace(known, keys=tuple(known.keys[i] for i in chosen))
        return Noise(tuple(self.keys[i] for i in chosen), known)

    @classmethod
    def join(cls, parts: Sequence["Noise"]) -> "Noise":
        """Concatenate the noise of batches that all have the same part known, or none."""
        first, keys = parts[0], tuple(key for part in parts for key in part.keys)
        if first.known_noise is None:
            return Noise(keys)
        known_keys = tuple(
            key for part in parts if part.known_noise for key in part.known_noise.keys
        )
        return Noise(keys, replace(first.known_noise, keys=known_keys))

    def pooled(self, path_numbers: Sequence[int]) -> "Noise":
        """One of a pool of fixed paths per image: number `path_numbers[i]` for image i."""
        keys = (
            _key(_key(key, "pool"), number)
            for key, number in zip(self.keys, path_numbers, strict=True)
        )
        return Noise(tuple(keys))

    def with_known_noise(
        self, secret: "Noise", names: Collection[str] = (), pool: int = 0, options: int = 0
    ) -> "Noise":
        """The noise of an attacker who knows part of `secret`, the defense's own noise.

        Args:
            secret: The noise that the defense will be called with, for the same images.
            names: The streams that the attacker knows (`"forward"`, `"reverse"`, ...); without
                names, all of them.
            pool: If positive, the defense draws from this many fixed paths (`pooled`), all known
                to the attacker.
            options: If positive, each single draw of the defense is one of this many fixed ones.
        """
        if len(secret) != len(self):
            raise ValueError(
                f"the attacker's noise is for {len(self)} images and the defense's for "
                f"{len(secret)}: both must be for the same images"
            )
        return replace(self, known_noise=KnownNoise(secret.keys, frozenset(names), pool, options))

    def for_query(self, query_index: int, copies: int = 1) -> "Noise":
        """The noise that an attacker uses in query number `query_index`.

        It has every image `copies` times in a row. Streams that are not known (`with_known_noise`)
        are fresh for each query and copy; known streams equal the defense's own. A defense whose
        noise is partly fixed also draws in this way for its own answers, in queries of its own.
        """
        query_noise = self.child("draw", query_index).repeat(copies)
        known = query_noise.known_noise
        if known is None:
            return query_noise
        keys = known.keys
        if known.pool:
            first = query_index * copies
            path_numbers = [(first + c) % known.pool for c in range(copies)] * len(self)
            keys = Noise(keys).pooled(path_numbers).keys
        if not known.names and not known.options:
            return Noise(keys)
        return replace(query_noise, known_noise=replace(known, keys=keys, pool=0, in_use=True))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, shaped like `like` (B, ...), on its device."""
        return self._fill(like, _standard_normal)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), shaped like `like` (B, ...), on its device."""
        return self._fill(like, lambda source, out: source.random(out=out, dtype="f4"))

    def drawn_ahead(self, like: Tensor) -> "Noise":
        """Return the same noise while a thread begins to draw what `normal(like)` will return.

        For a GPU: the CPU draws the numbers while this thread still launches earlier work.
        """
        drawing = _drawing_thread(os.getpid()).submit(self._on_host, like, _standard_normal)
        return _DrawnAhead(self.keys, self.known_noise, drawing)

    def _fill(self, like: Tensor, draw: Draw) -> Tensor:
        return self._on_host(like, draw).to(like, non_blocking=True)

    def _on_host(self, like: Tensor, draw: Draw) -> Tensor:
        if len(like) != len(self.keys):
            raise ValueError(
                f"the noise is for {len(self.keys)} images, and the batch has {len(like)}: "
                "noise.take(which) selects the noise of some images"
            )
        _DRAW_COUNT[0] += 1
        out = np.empty((len(like), like[0].numel() if len(like) else 0), dtype=np.float32)
        keys, threads = self._drawn_keys(), torch.get_num_threads()
        parts = min(threads, out.size // MIN_NUMBERS_PER_THREAD)
        if parts > 1:  # NumPy releases the interpreter's lock while it draws
            edges = [len(keys) * i // parts for i in range(parts + 1)]
            spans = [slice(low, high) for low, high in pairwise(edges)]
            pool = thread_pool(threads, os.getpid())
            list(pool.map(lambda span: _write(out[span], keys[span], draw), spans))
        else:
            _write(out, keys, draw)
        drawn = torch.from_numpy(out).view(like.shape)
        # A copy from pinned memory does not wait for the device to finish earlier work.
        return drawn.pin_memory() if like.is_cuda else drawn

    def _drawn_keys(self) -> tuple[int, ...]:
        known = self.known_noise
        if known is None or not (known.in_use and known.options):
            return self.keys
        pairs = zip(known.keys, self.keys, strict=True)
        return tuple(
            _key(known_key, "option", own_key % known.options) for known_key, own_key in pairs
        )


@dataclass(frozen=True, repr=False)
class _DrawnAhead(Noise):
    """Noise whose standard normal numbers are being drawn (`Noise.drawn_ahead`)."""

    drawing: Future[Tensor] | None = None

    def normal(self, like: Tensor) -> Tensor:
        """The numbers that were drawn ahead, or as `Noise.normal` for another shape."""
        if self.drawing is None or (drawn := self.drawing.result()).shape != like.shape:
            return super().normal(like)
        return drawn.to(like, non_blocking=True)


def _standard_normal(source: np.random.Generator, out: np.ndarray) -> None:
    source.standard_normal(out=out, dtype="f4")


def _write(out: np.ndarray, keys: Sequence[int], draw: Draw) -> None:
    """Fill each row of `out` from the stream of its key."""
    bits = np.random.Philox(key=0)
    source, start = np.random.Generator(bits), bits.state
    for image, key in zip(out, keys, strict=True):
        start["state"]["key"][0] = key
        bits.state = start
        draw(source, image)


@lru_cache
def thread_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads to draw in, per process, because a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads)


def drawn_so_far() -> tuple[object, ...]:
    """Return a value that changes whenever noise, or a number of a global generator, is drawn."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        _DRAW_COUNT[0],
        *(s.numpy().tobytes() for s in states),
        repr(numpy_state),
        random.getstate(),
    )


@lru_cache
def _drawing_thread(process: int) -> ThreadPoolExecutor:
    """The thread that draws ahead. It may wait for `thread_pool`, so it must not be part of it."""
    return ThreadPoolExecutor(1)


def permutation(size: int, seed: int, *path: StreamName) -> list[int]:
    """Return the numbers 0 .. size - 1 in an order that depends only on the arguments."""
    source = torch.Generator().manual_seed(_key(_to_int(seed), *map(_name, path)))
    return torch.randperm(size, generator=source).tolist()


def seed_torch(seed: int, *path: StreamName) -> None:
    """Seed torch's global generators, for the initial weights of a network and for dropout."""
    torch.manual_seed(_key(_to_int(seed), *map(_name, path)))


@contextmanager
def seeded(noise: Noise) -> Iterator[None]:
    """Seed the global generators of torch, NumPy, and Python by `noise`, and restore them after.

    This makes third-party code, which draws from them, repeatable for the same batch of images.
    """
    seed, python_state, numpy_state = _key(*noise.keys), random.getstate(), np.random.get_state()  # noqa: NPY002
    _DRAW_COUNT[0] += 1
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _to_sequence(values: Iterable[Any] | Tensor) -> Sequence[Any]:
    if isinstance(values, Tensor | np.ndarray):
        return values.tolist()
    return values if isinstance(values, range | list | tuple) else list(values)


def _to_int(value: Any) -> int:
    """Convert a whole number of Python or NumPy to an int, so that equal ones give equal keys."""
    if type(value) is int:
        return value
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"seeds, indices, and stream numbers must be whole numbers, not {value!r}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(
            f"seeds, indices, and stream numbers must be whole numbers, not {value!r}"
        ) from None


def _name(value: Any) -> StreamName:
    return str(value) if isinstance(value, str) else _to_int(value)


def _copies(keys: Sequence[int], copies: int) -> tuple[int, ...]:
    return tuple(_key(key, "copy", i) for key in keys for i in range(copies))


def _key(*path: StreamName) -> int:
    return int.from_bytes(blake2b(repr(path).encode(), digest_size=8).digest(), "little")
