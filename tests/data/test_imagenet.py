"""ImageNet, its subsets, and Tiny-ImageNet, in folders of tiny images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unfool.data import fetch, imagenet, tiny_imagenet
from unfool.data.image_files import resize_and_crop
from unfool.spec.identity import identity

WNIDS = [f"n{i:08}" for i in range(1000)]


def paint(file: Path, value: int = 100, width: int = 12, height: int = 10) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, 0, 0)).save(file)


@pytest.fixture
def three(tmp_path):
    """Write three classes of two images each, and the index of all 1000 classes."""
    for number in (5, 0, 999):
        for i in (2, 10):
            paint(tmp_path / "val" / WNIDS[number] / f"{WNIDS[number]}_{i}.png", number % 256)
    table = {str(i): [wnid, f"name {i}"] for i, wnid in enumerate(WNIDS)}
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(table))
    return tmp_path


OPTIONS: dict[str, Any] = {"size": 4, "shorter": 6}


def test_labels_are_imagenet_numbers_even_if_classes_are_missing(three):
    data = imagenet(three, **OPTIONS)
    assert data.labels == [0, 0, 5, 5, 999, 999]
    assert (len(data.classes), data.classes[5]) == (1000, "name 5")
    x, y = fetch(data, range(6))
    assert x.shape == (6, 3, 4, 4)
    assert torch.allclose(x[:, 0, 0, 0], (y % 256) / 255)
    assert data.shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["LOC_synset_mapping.txt", "synset_words.txt"])
def test_other_index_files_are_read(three, name):
    (three / "imagenet_class_index.json").unlink()
    (three / name).write_text(
        "".join(f"{wnid} first {i}, second\n" for i, wnid in enumerate(WNIDS))
    )
    data = imagenet(three, **OPTIONS)
    assert data.labels == [0, 0, 5, 5, 999, 999]
    assert data.classes[999] == "first 999"


def test_all_class_folders_are_required_without_an_index(three, monkeypatch):
    (three / "imagenet_class_index.json").unlink()
    with pytest.raises(ValueError, match=r"3 of .*1000.*imagenet_class_index\.json"):
        imagenet(three, **OPTIONS)
    for wnid in WNIDS:
        (three / "val" / wnid).mkdir(exist_ok=True)
    assert imagenet(three, **OPTIONS).labels == [0, 0, 5, 5, 999, 999]


def test_subset_keeps_imagenet_labels_or_gets_its_own(three, tmp_path):
    chosen = tmp_path / "chosen.txt"
    chosen.write_text(f"{WNIDS[999]}\n{WNIDS[0]}\n")
    data = imagenet(three, subset=str(chosen), **OPTIONS)
    assert data.labels == [0, 0, 999, 999]
    data = imagenet(three, subset=str(chosen), labels="subset", **OPTIONS)
    assert data.labels == [1, 1, 0, 0]
    assert data.classes == ["name 999", "name 0"]
    (three / "imagenet_class_index.json").unlink()
    assert imagenet(three, subset=str(chosen), labels="subset", **OPTIONS).labels == [1, 1, 0, 0]
    chosen.write_text(f"{WNIDS[7]}\n")
    with pytest.raises(ValueError, match=f"lacks 1 of the 1 classes .*{WNIDS[7]}"):
        imagenet(three, subset=str(chosen), **OPTIONS)


@pytest.mark.parametrize(("subset", "count"), [("imagenet-30", 30), ("imagenet-100", 100)])
def test_known_subsets_require_all_their_classes(tmp_path, subset, count):
    with pytest.raises(FileNotFoundError, match="ImageNet is not in"):
        imagenet(tmp_path, subset=subset)
    paint(tmp_path / "n02701002" / "a.png")
    with pytest.raises(ValueError, match=rf"lacks {count - 1} of the {count} classes"):
        imagenet(tmp_path, subset=subset)


def test_listed_images_are_read_in_order(three, tmp_path):
    chosen = tmp_path / "pictures.txt"
    chosen.write_text(f"{WNIDS[999]}_2.png\n{WNIDS[0]}/{WNIDS[0]}_10.png\n")
    data = imagenet(three, pictures=chosen, **OPTIONS)
    assert data.labels == [999, 0]
    spec = {"data": {"name": "imagenet", "pictures": str(chosen)}}
    before = identity(spec)
    chosen.write_text(f"{WNIDS[999]}_2.png\nnowhere.png\n")
    assert identity(spec) != before
    with pytest.raises(ValueError, match=r"pictures\.txt: .*'nowhere\.png' is not there"):
        imagenet(three, pictures=chosen, **OPTIONS)
    paint(three / "val" / WNIDS[5] / f"{WNIDS[999]}_2.png")
    chosen.write_text(f"{WNIDS[999]}_2.png\n")
    with pytest.raises(ValueError, match="the name of 2 images"):
        imagenet(three, pictures=chosen, **OPTIONS)


def test_images_are_resized_by_shorter_side_and_cropped(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 30:50] = 255
    (tmp_path / WNIDS[0]).mkdir()
    Image.fromarray(pixels).save(tmp_path / WNIDS[0] / "a.png")
    (tmp_path / "chosen.txt").write_text(WNIDS[0])
    given: dict[str, Any] = {"subset": str(tmp_path / "chosen.txt"), "labels": "subset"}
    cut, _ = imagenet(tmp_path, size=20, shorter=40, **given)[0]
    assert torch.equal(cut, torch.ones(3, 20, 20))
    whole, _ = imagenet(tmp_path, size=20, shorter=None, **given)[0]
    assert whole[:, 0, 0].sum() == 0
    with pytest.raises(ValueError, match=r"size .* not 50"):
        imagenet(tmp_path, size=50, shorter=40, **given)


def test_longer_side_is_rounded_down_as_in_torchvision():
    """40 / 24 x 31 is 51.67; torchvision takes 51, and cuts from round((51 - 20) / 2) = 16."""
    picture = Image.fromarray(np.arange(24 * 31, dtype=np.uint8).reshape(24, 31))
    resized = picture.resize((51, 40), Image.Resampling.BICUBIC)
    wanted = resized.crop((16, 10, 36, 30))
    assert resize_and_crop(picture, 20, 20, 40).tobytes() == wanted.tobytes()


def test_invalid_options_and_indices_are_refused(three, tmp_path):
    with pytest.raises(ValueError, match=r"labels: subset .* `subset`"):
        imagenet(three, labels="subset")
    with pytest.raises(ValueError, match=r"split .*val, train.* 'test'"):
        imagenet(three, split="test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.txt; `subset` is imagenet-30.* WordNet ID"
    ):
        imagenet(three, subset="nowhere.txt")
    (three / "words.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"'dog'.* WordNet ID"):
        imagenet(three, subset=str(three / "words.txt"))
    (three / "val" / "n99999999").mkdir()
    with pytest.raises(ValueError, match=r"n99999999 .* not in the index"):
        imagenet(three, **OPTIONS)
    (three / "imagenet_class_index.json").write_text('{"0": ["n00000000", "a"]}')
    with pytest.raises(ValueError, match=r"imagenet_class_index\.json .*1000 .* 1"):
        imagenet(three, **OPTIONS)


@pytest.fixture
def tiny(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    for i, wnid in enumerate(WNIDS[:2]):
        paint(home / "train" / wnid / "images" / f"{wnid}_0.JPEG", width=64, height=64)
        paint(home / "val" / "images" / f"val_{i}.JPEG", width=64, height=64)
    (home / "wnids.txt").write_text(f"{WNIDS[1]}\n{WNIDS[0]}\n")
    (home / "words.txt").write_text(f"{WNIDS[0]}\tcat, feline\n{WNIDS[1]}\tdog\n")
    rows = [f"val_0.JPEG\t{WNIDS[1]}\t0\t0\t1\t1\n", f"val_1.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n"]
    (home / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


def test_tiny_imagenet_is_read_as_published_and_sorted_by_class(tiny):
    data = tiny_imagenet(tiny)
    assert data.labels == [1, 0]
    assert data.classes == ["cat", "dog"]
    assert data[0][0].shape == (3, 64, 64)
    assert tiny_imagenet(tiny, "train").labels == [0, 1]
    home = tiny / "tiny-imagenet-200"
    (home / "val" / "val_annotations.txt").unlink()
    for i, wnid in ((0, WNIDS[1]), (1, WNIDS[0])):
        (home / "val" / wnid).mkdir()
        (home / "val" / "images" / f"val_{i}.JPEG").rename(home / "val" / wnid / f"val_{i}.JPEG")
    data = tiny_imagenet(tiny)
    assert [file.name for file in data.files] == ["val_1.JPEG", "val_0.JPEG"]
    assert data.labels == [0, 1]


def test_incomplete_tiny_imagenet_is_refused(tiny, tmp_path):
    home = tiny / "tiny-imagenet-200"
    (home / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(ValueError, match=r"val_annotations\.txt.*'val_1\.JPEG"):
        tiny_imagenet(tiny)
    (home / "wnids.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Tiny-ImageNet is not in"):
        tiny_imagenet(tiny)
