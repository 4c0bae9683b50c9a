"""Images in folders."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfool.data import fetch, image_files
from unfool.data.folder import Folder


def paint(
    file: Path, width: int = 6, height: int = 4, color: tuple[int, ...] = (255, 0, 51)
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(file)


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path: Path):
    for name in ("dog/b.png", "dog/a.PNG", "cat/z.bmp", "cat/y.webp", "cat/x.JPG", "cat/w.jpeg"):
        paint(tmp_path / name)
    for name in ("dog/notes.txt", "dog/.hidden.png"):
        (tmp_path / name).write_text("no picture")
    paint(tmp_path / "loose.png")
    data = Folder(tmp_path)
    assert list(data.classes) == ["cat", "dog"]
    assert [p.name for p in data.files] == [
        "w.jpeg",
        "x.JPG",
        "y.webp",
        "z.bmp",
        "a.PNG",
        "b.png",
    ]
    assert [data[i][1] for i in range(len(data))] == [0, 0, 0, 0, 1, 1]
    with pytest.raises(IndexError):
        data[6]


def three_classes(folder: Path) -> Path:
    for name in ("0/a", "0/b", "1/a", "1/b", "2/a"):
        paint(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("change", ["empty", "tif", "links", "deeper"])
def test_class_folder_without_images_is_refused(tmp_path: Path, change: str):
    three_classes(tmp_path)
    for file in list((tmp_path / "1").iterdir()):
        if change == "tif":
            file.rename(file.with_suffix(".tif"))
            continue
        file.unlink()
        if change == "links":
            file.symlink_to(tmp_path / "gone.png")
        elif change == "deeper":
            paint(tmp_path / "1" / "below" / file.name)
    with pytest.raises(FileNotFoundError, match=f"sub-folder {tmp_path / '1'} ") as told:
        Folder(tmp_path)
    holds = {"empty": "is empty", "tif": "2 .tif", "links": "2 broken link", "deeper": ""}
    assert holds[change] in str(told.value)


@pytest.mark.parametrize("name", [".thumbnails", ".ipynb_checkpoints", "__MACOSX", ".git"])
def test_hidden_folders_are_ignored(tmp_path: Path, name: str, capsys: pytest.CaptureFixture):
    three_classes(tmp_path)
    paint(tmp_path / name / "a.png")
    paint(tmp_path / "0" / "._a.png")
    data = Folder(tmp_path)
    assert list(data.classes) == ["0", "1", "2"]
    assert data.labels == [0, 0, 1, 1, 2]
    assert capsys.readouterr().err == ""


def test_skipped_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    three_classes(tmp_path)
    for name in ("0/c.tif", "0/d.TIF", "1/e.ppm", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "2" / "gone.png").symlink_to(tmp_path / "nowhere")
    paint(tmp_path / "loose.png")
    paint(tmp_path / "2" / "deeper" / "x.png")
    Folder(tmp_path)
    said = capsys.readouterr().err
    for part in (
        str(tmp_path),
        "2 .tif",
        "1 .ppm",
        "1 .txt",
        "1 broken link",
        "2 .png in other places",
    ):
        assert part in said


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_image_in_folder_is_refused(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 255))
    image.convert(mode if mode != "PA" else "P").save(tmp_path / "a.png")
    assert Folder(tmp_path)[0][0].min() == 1
    image.putpixel((1, 1), (255, 255, 255, 0))
    if mode == "PA":
        image.convert("P").save(tmp_path / "a.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png .*transparent"):
        Folder(tmp_path)[0]


def test_pixels_equal_those_of_the_file(tmp_path: Path):
    pixels = (np.arange(4 * 6 * 3) * 3).astype(np.uint8).reshape(4, 6, 3)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "a.png")
    image, _ = Folder(tmp_path)[0]
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert Folder(tmp_path).shape == (3, 4, 6)


def test_all_image_modes_are_converted_to_requested_channels(tmp_path: Path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        ending = "jpg" if mode == "CMYK" else "png"
        image = Image.new("L", (5, 5)).convert("RGBA")  # opaque
        image.convert(mode).save(tmp_path / f"{mode}.{ending}")
    x, _ = fetch(Folder(tmp_path), range(6))
    assert x.shape == (6, 3, 5, 5)
    x, _ = fetch(Folder(tmp_path, gray=True), range(6))
    assert x.shape == (6, 1, 5, 5)


def test_flat_folder_has_one_class_or_classes_from_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("n01_tench.png", "n02_brown_bear.png", "n03_tench.png", "plain.png"):
        paint(tmp_path / "photos" / name)
    assert list(Folder(tmp_path / "photos").classes) == ["photos"]
    monkeypatch.chdir(tmp_path / "photos")
    assert list(Folder(Path()).classes) == ["photos"]
    data = Folder(tmp_path / "photos", label="name")
    assert list(data.classes) == ["brown_bear", "plain", "tench"]
    assert data.labels == [2, 0, 2, 1]


@pytest.mark.parametrize("size", [3, 4, 9, (2, 5), (8, 3), (1, 1)])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (300, 2), (1, 1)])
def test_size_is_exact_for_any_image(
    tmp_path: Path, size: int | tuple[int, int], shape: tuple[int, int]
):
    paint(tmp_path / "a.png", *shape)
    image, _ = Folder(tmp_path, size=size)[0]
    height, width = (size, size) if isinstance(size, int) else size
    assert image.shape == (3, height, width)
    assert torch.allclose(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_size_keeps_the_center(tmp_path: Path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(Folder(tmp_path, size=4)[0][0], torch.full((3, 4, 4), 200 / 255))


def test_images_of_different_sizes_require_a_size(tmp_path: Path):
    paint(tmp_path / "a.png", 6, 4)
    paint(tmp_path / "b.png", 4, 6)
    with pytest.raises(ValueError, match=r"image 1 is 3x6x4.* 3x4x6.* `size`"):
        fetch(Folder(tmp_path), [0, 1])
    assert fetch(Folder(tmp_path, size=4), [0, 1])[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L", "RGB"])
def test_partly_transparent_image_is_refused(tmp_path: Path, mode: str):
    """A white digit drawn in the alpha channel vanishes on white, and without that channel."""
    place = tmp_path / "digit.png"
    if mode in ("LA", "RGBA"):
        picture = Image.new(mode, (5, 5), (255,) * len(mode))
        picture.putpixel((2, 2), (255,) * (len(mode) - 1) + (254,))
        picture.save(place)
    else:  # one color is declared transparent
        blank = Image.new(mode, (5, 5), 0)
        blank.save(place, transparency=(0, 0, 0) if mode == "RGB" else 0)
    with pytest.raises(ValueError, match=r"digit\.png.*transparent"):
        image_files.read(place)
    picture = Image.open(place).convert("RGBA")
    picture.putalpha(255)
    picture.save(place)
    assert image_files.read(place).shape == (3, 5, 5)


def test_class_name_outside_utf_8_is_refused(tmp_path: Path):
    try:
        paint(tmp_path / os.fsdecode(b"na\xefve") / "a.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system allows only UTF-8")
    with pytest.raises(ValueError, match=r"na\\udcefve.*rename"):
        Folder(tmp_path)


def test_damaged_images_are_refused_when_read(tmp_path: Path):
    paint(tmp_path / "a.png", 60, 40)
    paint(tmp_path / "b.jpg", 60, 40)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "c.png")
    png, jpg = (tmp_path / "a.png").read_bytes(), (tmp_path / "b.jpg").read_bytes()
    for a, b in (
        (b"", b""),
        (png[:60], jpg[:200]),
        (png[: len(png) // 2], jpg[: len(jpg) // 2]),
        (jpg, png),
    ):
        (tmp_path / "a.png").write_bytes(a)
        (tmp_path / "b.jpg").write_bytes(b)
        data = Folder(tmp_path)
        for i, name in enumerate(("a.png", "b.jpg", "c.png")):
            if a is jpg and i < 2:
                assert data[i][0].shape == (3, 40, 60)  # a wrong extension does not matter
                continue
            with pytest.raises(ValueError, match=f"image .*{name} cannot be read"):
                data[i]


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4), (4, 2), (0, 1)])
def test_images_of_16_bits_are_refused(tmp_path: Path, color: int, channels: int):
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = (b"\0" + b"\x80\xff" * (channels - 1) + b"\xff\xff") * 2  # opaque
    head = struct.pack(">IIBBBBB", 1, 2, 16, color, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"deep\.png.*more than 8 bits"):
        image_files.read(tmp_path / "deep.png")


def test_invalid_folders_and_options_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*UNFOOL_DATA"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there are no images"):
        Folder(tmp_path)
    paint(tmp_path / "a.png")
    for size in (0, (4, 0)):
        with pytest.raises(ValueError, match="size must be 1 or more"):
            Folder(tmp_path, size=size)
    with pytest.raises(ValueError, match="label must be 'folder' or 'name'"):
        Folder(tmp_path, label="class")  # pyright: ignore[reportArgumentType]


def test_real_photos_are_read_with_their_classes():
    root = os.environ.get("UNFOOL_DATA")
    if not root or not (Path(root) / "photos").is_dir():
        pytest.skip("set UNFOOL_DATA to a folder with `photos` to test on real pictures")
    data = Folder(Path(root) / "photos", size=64, label="name")
    x, y = fetch(data, range(len(data)))
    assert x.shape == (24, 3, 64, 64)
    assert data.classes[int(y[5])] == "German_short-haired_pointer"
    assert (x.std((1, 2, 3)) > 0.05).all()


@pytest.mark.parametrize(("names", "told"), [(range(11), True), (range(10), False), ("ab", False)])
def test_numeric_class_names_sorted_as_text_print_a_message(tmp_path: Path, capsys, names, told):
    for name in names:
        paint(tmp_path / str(name) / "x.png")
    Folder(tmp_path)
    assert ("0, 1, 10, 2" in capsys.readouterr().err) is told


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animated_image_is_refused(tmp_path: Path, ending: str):
    first, second = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=rf"a\.{ending} .*2 frames"):
        Folder(tmp_path)[0]
