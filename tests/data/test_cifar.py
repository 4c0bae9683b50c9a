"""CIFAR-10 in both official layouts: small files, and the real ones if they are available."""

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from unfool.data import cifar
from unfool.data.cifar import cifar10

N = 6
LABELS = np.array([3, 0, 9, 1, 2, 7], np.uint8)
PIXELS = (np.arange(N * 3072) * 7 % 251).astype(np.uint8).reshape(N, 3072)
FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


PurePickler: Any = pickle._Pickler  # pyright: ignore[reportAttributeAccessIssue]


class Python2(PurePickler):
    """A pickler that writes bytes as Python 2 wrote strings, as in the official files."""

    dispatch: ClassVar[dict[type, Any]] = dict(PurePickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(content)) + content)

    dispatch[bytes] = save_bytes


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    Python2(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")


def binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = np.concatenate([LABELS[:, None], PIXELS], axis=1)
    for i, name in enumerate(FILES):
        (folder / f"{name}.bin").write_bytes(np.roll(records, i, axis=0).tobytes())


def python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(FILES):
        table = {
            b"batch_label": b"training batch",
            b"labels": np.roll(LABELS, i).tolist(),
            b"data": np.roll(PIXELS, i, axis=0),
            b"filenames": [b"a.png"] * N,
        }
        (folder / name).write_bytes(pickled(table))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_IMAGES", N)


@pytest.mark.parametrize("inside", [".", "cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"])
@pytest.mark.parametrize("write", [binary, python])
def test_both_layouts_give_the_same_images(
    tmp_path: Path, write: Callable[[Path], None], inside: str
):
    write(tmp_path / inside)
    test, train = cifar10(tmp_path), cifar10(tmp_path, "train")
    assert len(test) == N
    assert len(train) == 5 * N
    assert test.shape == (3, 32, 32)
    assert test.classes[3] == "cat"
    assert train.labels[:N].tolist() == LABELS.tolist()
    assert train.labels[N : 2 * N].tolist() == np.roll(LABELS, 1).tolist()
    assert torch.equal(train.images[0], torch.from_numpy(PIXELS[0]).view(3, 32, 32))
    assert test.labels.tolist() == np.roll(LABELS, 5).tolist()
    assert test[0][0][1, 2, 3] == PIXELS[1, 1024 + 2 * 32 + 3] / np.float32(255)


@pytest.mark.parametrize("protocol", [3, 4])
def test_files_pickled_by_python_3_are_read(tmp_path: Path, protocol: int):
    table = {"labels": LABELS.tolist(), "data": PIXELS}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(table, protocol))
    assert cifar10(tmp_path).labels.tolist() == LABELS.tolist()


def test_missing_files_and_unknown_split_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 .*UNFOOL_DATA"):
        cifar10(tmp_path)
    binary(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    assert len(cifar10(tmp_path)) == N
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin is missing"):
        cifar10(tmp_path, "train")
    with pytest.raises(ValueError, match="'train' or 'test', not 'val'"):
        cifar10(tmp_path, "val")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [0, 1000, N * 3073 - 1, N * 3073 + 1])
def test_binary_file_of_wrong_size_is_refused(tmp_path: Path, size: int):
    file = tmp_path / "test_batch.bin"
    file.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"test_batch\.bin .*{size} .*{N * 3073}"):
        cifar10(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path: Path):
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) * N * 3073)
    with pytest.raises(ValueError, match=r"test_batch\.bin .* 6 .* 9"):
        cifar10(tmp_path)


def test_truncated_pickle_is_refused(tmp_path: Path):
    python(tmp_path)
    file = tmp_path / "test_batch"
    whole = file.read_bytes()
    for size in (0, 1, 50, 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{file}.* {size} bytes"):
            cifar10(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        [1, 2],
        {"labels": LABELS.tolist()},
        {"labels": ["a"], "data": PIXELS},
        {"labels": LABELS.tolist(), "data": PIXELS[:, :5]},
        {"labels": LABELS.tolist(), "data": PIXELS / 2},
        {"labels": LABELS.tolist(), "data": "nothing"},
        {"labels": [*LABELS.tolist(), 1], "data": PIXELS},
        {"labels": [10] * N, "data": PIXELS},
    ],
)
def test_pickle_with_wrong_contents_is_refused(tmp_path: Path, table: Any):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(table, 4))
    with pytest.raises(ValueError, match=r"test_batch .*fetch it again"):
        cifar10(tmp_path)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_with_code_is_refused_without_running_it(tmp_path: Path, protocol: int):
    table = {"data": PIXELS, "labels": LABELS.tolist(), "more": Evil(tmp_path / "ran")}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(table, protocol))
    with pytest.raises(ValueError, match="which is code"):
        cifar10(tmp_path)
    assert not (tmp_path / "ran").exists()


def archive(tmp_path: Path) -> Path:
    binary(tmp_path / "source")
    file = tmp_path / "cifar.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(tmp_path / "source", "cifar-10-batches-bin")
    return file


def test_download_happens_only_on_request_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, folder = archive(tmp_path), tmp_path / "data"
    monkeypatch.setattr(cifar, "URL", file.as_uri())
    monkeypatch.setattr(cifar, "MD5", md5(file.read_bytes()).hexdigest())
    with pytest.raises(FileNotFoundError):
        cifar10(folder)
    assert not folder.exists()
    assert len(cifar10(folder, "train", download=True)) == 5 * N
    assert [p.name for p in folder.iterdir()] == ["cifar-10-batches-bin"]
    file.unlink()
    assert len(cifar10(folder, download=True)) == N


def test_failed_downloads_raise_errors_and_leave_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, folder = archive(tmp_path), tmp_path / "data"
    monkeypatch.setattr(cifar, "URL", file.as_uri())
    with pytest.raises(ValueError, match=f"md5 .*{cifar.MD5}"):
        cifar10(folder, download=True)
    monkeypatch.setattr(cifar, "URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(FileNotFoundError, match="could not download file:"):
        cifar10(folder, download=True)
    assert list(folder.iterdir()) == []


def test_real_files_have_expected_sizes_labels_and_mean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the real files have their full length
    folder = os.environ.get("UNFOOL_DATA")
    if not folder:
        pytest.skip("set UNFOOL_DATA to a folder with CIFAR-10 to test on the real files")
    test = cifar10(Path(folder))
    assert len(test) == 10_000
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes[test[0][1]] == "cat"
    mean = test.images.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=1e-4)
