"""Data sets of the Hugging Face hub, by the library `datasets` if it is installed."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as Picture

from unfool import spec as specs
from unfool.cli.main import run
from unfool.data import fetch, huggingface
from unfool.data.hub_table import HubImages
from unfool.results.run_folder import Run


class Image:
    """Stub for the type of an image column, with the name that it has in `datasets`."""


class ClassLabel:
    """Stub for the type of a label column, likewise."""

    names = ("cat", "dog")


class Table:
    """Stub for `datasets.Dataset`: columns with types, rows, and a length."""

    def __init__(self, labels=(0, 1), **features):
        self.features = features or {"img": Image(), "label": ClassLabel(), "id": object()}
        colors = [(255, 0, 0), (0, 51, 0)]
        self.columns = {
            name: list(labels)
            if "label" in name
            else [Picture.new("RGB", (6, 4), c) for c in colors]
            for name in self.features
        }

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}


@pytest.mark.parametrize("picture", [Picture.new("RGBA", (6, 4)), Picture.new("I;16", (6, 4))])
def test_images_that_would_lose_transparency_or_bits_are_refused(picture):
    table = Table()
    table.columns["img"][1] = picture
    with pytest.raises(ValueError, match=r"row 1 .*(transparent|8 bits)"):
        HubImages(table)[1]


@pytest.mark.parametrize("label", [1.7, "dog", None])
def test_label_that_is_no_integer_is_refused(label):
    with pytest.raises(ValueError, match="row 1 has"):
        HubImages(Table(labels=[0, label]))[1]
    with pytest.raises(ValueError, match="row 1 has"):
        HubImages(Table(labels=[0, label], img=Image(), label=object()), label="label")


def test_columns_are_found_by_their_types():
    data = HubImages(Table())
    x, y = fetch(data, range(2))
    assert x.shape == (2, 3, 4, 6)
    assert torch.allclose(x[:, :, 0, 0], torch.tensor([[1.0, 0, 0], [0, 0.2, 0]]))
    assert y.tolist() == [0, 1]
    assert data.classes == ["cat", "dog"]
    assert HubImages(Table(), size=3).shape == (3, 3, 3)


def test_columns_that_are_not_unique_must_be_named():
    two = {"fine_label": ClassLabel(), "coarse_label": ClassLabel(), "image": Image()}
    with pytest.raises(ValueError, match=r"ClassLabel .*fine_label.*`label`"):
        HubImages(Table(**two))
    assert len(HubImages(Table(**two), label="fine_label")) == 2
    with pytest.raises(ValueError, match=r"no column 'fine'.*fine_label"):
        HubImages(Table(**two), label="fine")
    plain = Table(labels=(0, 3), image=Image(), label=object())
    assert HubImages(plain, label="label").classes == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="0 columns of the type ClassLabel"):
        HubImages(plain)


def test_row_without_label_is_refused():
    with pytest.raises(ValueError, match="row 1 has no label"):
        HubImages(Table(labels=(0, -1)))[1]


def test_missing_library_is_refused_with_install_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"datasets.*pip install 'unfool\[hub\]'"):
        huggingface("owner/name")


def test_folder_saved_by_datasets_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [Picture.new("RGB", (6, 4), (255, 0, 0)), Picture.new("L", (6, 4), 51)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0]}, features=features)
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "set"))
    data = huggingface(str(tmp_path / "set"))
    x, y = fetch(data, range(2))
    assert y.tolist() == [1, 0]
    assert torch.allclose(x[1], torch.tensor(0.2))
    with pytest.raises(ValueError, match=r"no split 'tset'.*'test'"):
        huggingface(str(tmp_path / "set"), split="tset")


def test_network_is_not_used_without_download(monkeypatch):
    pytest.importorskip("datasets")
    asked = []

    def resolve(host, *_, **__):
        asked.append(host)
        raise OSError(f"no network, and {host} was asked")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ValueError, match=r"nobody/nothing.*`download: true`"):
        huggingface("nobody/nothing")
    assert not asked


def test_folders_of_parquet_or_image_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    red, gray = Picture.new("RGB", (6, 4), (255, 0, 0)), Picture.new("RGB", (6, 4), (51, 51, 51))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    columns = {"image": [gray, red], "label": [0, 1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet"))
    for name, picture in (("cat", gray), ("dog", red)):
        home = tmp_path / "pictures" / "test" / name
        home.mkdir(parents=True)
        picture.save(home / "0.png")
    for folder in ("parquet", "pictures"):
        part = {"name": "huggingface", "path": str(tmp_path / folder)}
        data = specs.build("data", specs.check_data(part, None))
        x, y = fetch(data, range(2))
        assert (list(data.classes), y.tolist()) == (["cat", "dog"], [0, 1])
        assert torch.allclose(x[0], torch.tensor(0.2))
        with pytest.raises(specs.SpecError, match=r'"train".*test'):
            specs.build("data", specs.check_data({**part, "split": "train"}, None))


def test_copied_folder_continues_the_run_and_other_images_are_refused(
    elsewhere, mistake, monkeypatch
):
    """A stub for `datasets` reads the images of a folder; everything else is a complete run."""

    def load_from_disk(path):
        table = Table(labels=(0, 1))
        table.columns["img"] = [
            Picture.open(p).convert("RGB") for p in sorted(Path(path).rglob("*.png"))
        ]
        return table

    library = SimpleNamespace(load_from_disk=load_from_disk)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x, noise=None):\n"
        "        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)\n"
    )
    for place in ("a", "b", "c"):
        (elsewhere / place / "data").mkdir(parents=True)
        (elsewhere / place / "dataset_info.json").write_text("{}")
        for number, level in enumerate((200, 90 if place == "c" else 10)):
            picture = Picture.new("RGB", (8, 8), (level, level, level))
            picture.save(elsewhere / place / "data" / f"{number}.png")
    sizes = [sum(p.stat().st_size for p in (elsewhere / c).rglob("*.png")) for c in "ac"]
    assert sizes[0] == sizes[1], "so that only the images tell the folders apart"

    def command(place):
        told = {
            "data": f"{{name: huggingface, path: {place}}}",
            "classifier": "{name: 'own:Net'}",
            "attacks": "[]",
        }
        sets = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
        (elsewhere / "mine.yaml").write_text("threat: {norm: linf, eps: 0.01}\n")
        return ["evaluate", "mine.yaml", "--out", "run", "--quiet", *sets]

    assert run(command("a")) == 0
    asked = Run.open(elsewhere / "run").manifest
    before = sorted((elsewhere / "run" / "outcomes").iterdir())
    assert run(command("b")) == 0
    assert Run.open(elsewhere / "run").manifest == asked
    assert sorted((elsewhere / "run" / "outcomes").iterdir()) == before
    assert "other images" in mistake(*command("c"))
