"""Readers on arbitrary bytes: they return the contents, or raise one clear error that names the file."""

import gzip
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from unfool.data import image_files
from unfool.data.arrays import npz
from unfool.data.cifar import cifar10
from unfool.data.image_files import decode
from unfool.data.mnist import mnist
from unfool.models.checkpoints import read_state

FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
PIXELS = (np.arange(6 * 5 * 3) * 7 % 256).astype(np.uint8).reshape(6, 5, 3)
DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3
)


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    return buffer.getvalue()


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}, buffer)
    return buffer.getvalue()


def idx(rank: int, *sizes: int) -> bytes:
    count = int(np.prod(sizes))
    return struct.pack(f">i{rank}I", 0x800 + rank, *sizes) + bytes(i % 10 for i in range(count))


PICTURES = {form: picture(form) for form in ("PNG", "JPEG", "BMP", "WEBP")}
ARRAYS = archive(images=np.zeros((3, 4, 4, 1), np.uint8), labels=np.array([0, 1, 1]))
WEIGHTS = {"w.safetensors": save({"a.weight": np.ones((2, 3), np.float32)}), "w.pt": torch_file()}


def damaged(content: bytes, changes, keep: float) -> bytes:
    """Change some bytes, and keep only the first part."""
    made = bytearray(content)
    for place, change in changes:
        made[int(place * len(made))] ^= change
    return bytes(made[: int(keep * len(made)) + 1])


def read_or_refused(call, path):
    """Return what a reader returns, or None if it refuses the file in an error that names it."""
    try:
        return call(path)
    except ValueError as error:
        said = str(error)
    assert path.name in said
    assert len(said) < 1500
    return None


KEEP = st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.3])


@FILES
@given(st.binary(max_size=80), st.sampled_from(sorted(PICTURES)))
def test_arbitrary_bytes_are_an_image_or_refused(tmp_path, tail, form):
    path = tmp_path / "any.png"
    for content in (tail, PICTURES[form][:16] + tail):
        path.write_bytes(content)
        found = read_or_refused(decode, path)
        assert found is None or found.mode == "RGB"


@FILES
@given(st.sampled_from(sorted(PICTURES)), DAMAGE, KEEP)
def test_damaged_image_is_read_or_refused(tmp_path, form, changes, keep):
    path = tmp_path / "damaged.png"
    path.write_bytes(damaged(PICTURES[form], changes, keep))
    found = read_or_refused(image_files.read, path)
    if found is not None:
        assert found.dtype == torch.float32
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


@FILES
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda b: b"PK\3\4" + b)))
def test_arbitrary_bytes_are_refused_as_npz(tmp_path, content):
    path = tmp_path / "any.npz"
    path.write_bytes(content)
    assert read_or_refused(npz, path) is None


@FILES
@given(DAMAGE, KEEP)
def test_damaged_npz_holds_the_saved_arrays_or_is_refused(tmp_path, changes, keep):
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged(ARRAYS, changes, keep))
    found = read_or_refused(npz, path)
    if found is not None:  # the damage hit a date, say: a checksum protects the contents
        assert not found.images.any()
        assert found.labels.tolist() == [0, 1, 1]


@FILES
@given(
    st.sampled_from(["u1", "i8", "f4", "f8", "?", "c8", "U3"]),
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from(["u1", "i8", "u8", "f4", "?", "U2"]),
    st.lists(st.integers(0, 4), max_size=2),
    st.sampled_from([0, 1, -1, 300, 2**62]),
)
def test_arbitrary_arrays_are_a_data_set_or_refused(
    tmp_path, kind, shape, label_kind, labels, value
):
    path = tmp_path / "arrays.npz"
    with np.errstate(all="ignore"):
        y = np.full(labels, value % 256 if label_kind == "u1" else value).astype(label_kind)
    path.write_bytes(archive(images=np.ones(shape).astype(kind), labels=y))
    found = read_or_refused(npz, path)
    if found is not None:
        assert len(found) == len(found.images) == shape[0]
        image, label = found[0]
        assert image.dtype == torch.float32
        assert 0 <= label < len(found.classes)


@FILES
@given(st.binary(max_size=40), st.booleans(), DAMAGE)
def test_arbitrary_bytes_are_mnist_or_refused(tmp_path, tail, packed, changes):
    pack = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    labels = tmp_path / f"t10k-labels-idx1-ubyte{end}"
    images = tmp_path / f"t10k-images-idx3-ubyte{end}"
    labels.write_bytes(pack(idx(1, 3)))
    for content in (tail, idx(3, 3, 2, 2)[:16] + tail, damaged(idx(3, 3, 2, 2), changes, 1.0)):
        images.write_bytes(pack(content))
        found = read_or_refused(lambda path: mnist(path.parent), images)
        assert found is None or len(found) == 3
        images.write_bytes(damaged(pack(idx(3, 3, 2, 2)), changes, 1.0))
        read_or_refused(lambda path: mnist(path.parent), images)
    for each in (labels, images):
        each.unlink()


@FILES
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda b: b"\x80\x02" + b)))
def test_arbitrary_bytes_are_refused_as_cifar(tmp_path, content):
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    assert read_or_refused(lambda path: cifar10(path.parent), path) is None


@FILES
@given(st.binary(max_size=80), st.sampled_from(sorted(WEIGHTS)), st.integers(0, 60))
def test_arbitrary_bytes_are_refused_as_weights(tmp_path, tail, name, keep):
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name][:keep] + tail)
    assert read_or_refused(read_state, path) is None


@FILES
@given(st.sampled_from(sorted(WEIGHTS)), DAMAGE, KEEP)
def test_damaged_weights_are_tensors_or_refused(tmp_path, name, changes, keep):
    path = tmp_path / name
    path.write_bytes(damaged(WEIGHTS[name], changes, keep))
    found = read_or_refused(read_state, path)
    assert found is None or all(isinstance(value, torch.Tensor) for value in found.values())


def test_undamaged_files_of_these_tests_are_read(tmp_path):
    for form, content in PICTURES.items():
        (tmp_path / f"a.{form}").write_bytes(content)
        assert image_files.read(tmp_path / f"a.{form}").shape == (3, 6, 5)
    (tmp_path / "a.npz").write_bytes(ARRAYS)
    assert len(npz(tmp_path / "a.npz")) == 3
    for name, content in WEIGHTS.items():
        (tmp_path / name).write_bytes(content)
        assert "a.weight" in read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["test_batch", "w.pt"])
def test_pickle_item_larger_than_memory_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.")
    read = read_state if name == "w.pt" else lambda path: cifar10(path.parent)
    with pytest.raises(ValueError, match=name):
        read(path)
