"""`unfool purify` and `unfool classify` on image files and arrays."""

import base64
import io
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from unfool.cli.main import run
from unfool.data import image_files
from unfool.toy.blobs import Blobs

TOY = ["--spec", "blobs", "--set", "purifier.steps=3"]


@pytest.fixture
def images(elsewhere):
    data = Blobs(size=5)
    stack = torch.stack([data[i][0] for i in range(5)])
    image_files.write(elsewhere / "in" / "gray.png", stack[0])
    colors = (np.arange(20 * 30 * 3).reshape(20, 30, 3) % 256).astype(np.uint8)
    Image.fromarray(colors).save(elsewhere / "in" / "wide.jpg")
    np.savez(
        elsewhere / "in" / "some.npz", images=stack.permute(0, 2, 3, 1).numpy(), labels=np.arange(5)
    )
    return elsewhere / "in"


def test_purified_files_keep_their_image_size(images, capsys):
    assert run(["purify", str(images), *TOY, "--out", "out"]) == 0
    made = capsys.readouterr().out.split()
    assert made == ["out/gray.png", "out/some.npz", "out/wide.png", "out/sheet.html"]
    assert image_files.read(images.parent / "out/gray.png", gray=True).shape == (1, 4, 4)
    assert image_files.read(images.parent / "out/wide.png").shape == (3, 20, 30)
    with np.load(images.parent / "out/some.npz") as file:
        assert file["images"].shape == (5, 4, 4, 1)
        assert file["images"].dtype == np.float32
        assert file["labels"].tolist() == [0, 1, 2, 3, 4]
        assert 0 <= file["images"].min() <= file["images"].max() <= 1


def test_purified_images_depend_on_the_seed_and_not_the_batch_size(images):
    for rows in (1, 64):
        out = f"out{rows}"
        assert (
            run(["purify", str(images / "some.npz"), *TOY, "--out", out, "--batch-size", str(rows)])
            == 0
        )
    one, many = (np.load(images.parent / f"out{rows}" / "some.npz")["images"] for rows in (1, 64))
    assert np.allclose(one, many, atol=1e-5)
    assert run(["purify", str(images / "some.npz"), *TOY, "--out", "seed", "--seed", "1"]) == 0
    assert not np.allclose(one, np.load(images.parent / "seed" / "some.npz")["images"], atol=1e-3)


def test_classify_prints_the_winner_of_the_votes(images, capsys):
    assert run(["classify", str(images / "some.npz"), *TOY, "--votes", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert [line.split("\t")[1] for line in lines] == ["dark", "bright", "dark", "bright", "dark"]
    assert lines[0].endswith("of 5 votes")


@pytest.mark.parametrize("verb", ["purify", "classify"])
def test_files_without_valid_images_are_refused(images, mistake, verb):
    (images / "broken.png").write_bytes(b"\x89PNG nothing")
    np.savez(images / "nan.npz", images=np.full((2, 4, 4, 1), np.nan, np.float32))
    np.savez(images / "flat.npz", images=np.zeros(7))
    (images / "half.npz").write_bytes((images / "some.npz").read_bytes()[:200])
    assert "broken.png cannot be read" in mistake(verb, images / "broken.png", *TOY)
    assert "without NaN" in mistake(verb, images / "nan.npz", *TOY)
    assert "an array `images`" in mistake(verb, images / "flat.npz", *TOY)
    assert "cannot be read as npz" in mistake(verb, images / "half.npz", *TOY)
    assert "there is no file" in mistake(verb, images / "none.png", *TOY)
    assert "is not an image file" in mistake(verb, __file__, *TOY)


def test_input_image_is_never_overwritten(images, mistake):
    before = (images / "gray.png").read_bytes()
    assert "name another folder" in mistake("purify", images / "gray.png", *TOY, "--out", images)
    assert (images / "gray.png").read_bytes() == before


def test_folder_structure_is_kept_and_name_clashes_are_refused(images, capsys, mistake):
    for sub in ("a", "b"):
        image_files.write(images.parent / "tree" / sub / "0.png", torch.zeros(1, 4, 4))
    assert run(["purify", "tree", *TOY, "--out", "tree/out"]) == 0
    assert run(["purify", "tree", *TOY, "--out", "tree/out"]) == 0, "what it made it leaves alone"
    made = sorted(str(p) for p in (images.parent / "tree/out").rglob("*.png"))
    assert [name.split("tree/")[1] for name in made] == ["out/a/0.png", "out/b/0.png"]
    said = mistake("purify", "tree/a/0.png", "tree/b/0.png", *TOY, "--out", "flat")
    assert "would both become" in said


@pytest.mark.parametrize("content", ["text", "none", "empty"])
def test_arrays_that_are_not_images_are_refused(images, mistake, content):
    file = images / "odd.npz"
    if content == "empty":
        file.write_bytes(b"")
    else:
        odd = np.array(["a"]) if content == "text" else np.zeros((0, 4, 4, 1))
        np.savez(file, images=odd)
    assert "odd.npz" in mistake("purify", file, *TOY)


def test_classify_converts_images_without_a_purifier(images, capsys):
    wide = ["classify", str(images / "wide.jpg"), *TOY, "--set", "purifier=null"]
    assert run(wide) == 0
    assert capsys.readouterr().out.split("\t")[1] in ("dark", "bright")


def test_purify_without_a_purifier_is_refused(images, mistake):
    said = mistake("purify", images / "gray.png", "--spec", "blobs", "--set", "purifier=null")
    assert "has no purifier" in said


def test_exif_orientation_is_applied(tmp_path):
    """A phone stores photos sideways, with their orientation in EXIF."""
    upright = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    noted = Image.Exif()
    noted[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(upright).rotate(90, expand=True).save(tmp_path / "phone.png", exif=noted)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    assert torch.equal(
        image_files.read(tmp_path / "phone.png"), image_files.read(tmp_path / "upright.png")
    )


def test_loss_of_colors_is_reported(images, capsys):
    assert run(["purify", str(images), *TOY, "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert "wide.jpg loses its colors" in said
    assert "gray.png" not in said


def test_stretching_and_unknown_image_size_are_reported(images, capsys, mistake):
    alone = ["--spec", "blobs", "--set", "purifier=null", "--votes", "1"]
    assert run(["classify", str(images / "gray.png"), *alone]) == 0
    assert "not known" not in capsys.readouterr().err
    assert run(["classify", str(images / "wide.jpg"), *alone]) == 0
    said = capsys.readouterr().err
    assert "stretched to what the model takes: 1 x 20 x 30 to 1 x 4 x 4" in said
    photographs = [*alone, "--set", "data={name: cifar10}"]
    assert run(["classify", str(images / "some.npz"), *photographs]) == 0
    assert "image size of the classifier is not known" in capsys.readouterr().err
    said = mistake("classify", images / "gray.png", *photographs, "--data", "/nowhere")
    assert "/nowhere" in said


def test_classify_resizes_images_as_the_data_set_does(elsewhere, capsys):
    """With a size, the data set resizes images to cover it and crops the center; so does `classify`."""
    for label, level in (("dark", 0), ("light", 255)):
        for number in range(3):
            pixels = np.full((16, 32), 255 - level, np.uint8)
            pixels[:, 8:24] = level  # the center decides; a stretched image would be gray
            pixels[:, 8 + number] = 128
            (elsewhere / "pics" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(elsewhere / "pics" / label / f"{number}.png")
    shared = ["--set", "data={name: folder, gray: true, size: 4}", "--set", "purifier=null"]
    shared += ["--data", "pics"]
    assert run(["classify", "pics", "--spec", "blobs", *shared, "--votes", "1"]) == 0
    told = capsys.readouterr()
    answers = [line.split("\t")[1] for line in told.out.splitlines()]
    assert answers == ["dark"] * 3 + ["light"] * 3
    assert "stretched" not in told.err


def test_stretching_is_reported(images, capsys):
    assert run(["classify", str(images / "wide.jpg"), *TOY]) == 0
    assert "stretched" in capsys.readouterr().err


def test_purify_refuses_large_photo_without_force(elsewhere, mistake):
    Image.new("RGB", (400, 300), (10, 20, 30)).save(elsewhere / "photo.jpg")
    said = mistake("purify", "photo.jpg", *TOY)
    assert "400 x 300" in said
    assert "4 x 4" in said
    assert "--force" in said
    assert run(["purify", "photo.jpg", *TOY, "--force"]) == 0
    assert image_files.read(elsewhere / "purified" / "photo.png").shape == (3, 300, 400)


def test_hidden_files_pipes_and_broken_links_are_skipped(images, capsys):
    for name in (".thumbnails/a.png", "__MACOSX/a.png", "._a.png", "d.png/inner.txt"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"nothing")
    os.mkfifo(images / "pipe.png")
    (images / "gone.png").symlink_to(images / "nowhere.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    assert run(["purify", str(images), *TOY, "--out", "out"]) == 0
    assert capsys.readouterr().out.split() == [
        "out/gray.png",
        "out/some.npz",
        "out/wide.png",
        "out/sheet.html",
    ]


def sheet(path) -> tuple[list[str], list[tuple[int, int]], str]:
    """Return the headings of a sheet, the sizes of its images, and its text."""
    page = path.read_text("utf-8")
    heads = re.findall(r'<th scope="col">([^<]+)</th>', page)
    files = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    return heads, [Image.open(io.BytesIO(file)).size for file in files], page


def test_sheet_of_purify_shows_each_stage(images):
    assert run(["purify", str(images), *TOY, "--out", "out"]) == 0
    heads, sizes, page = sheet(images.parent / "out" / "sheet.html")
    assert heads[:4] == ["image", "before", "noised", "purified"]
    assert heads[4].startswith("difference")
    assert len(sizes) == 7 * 4, "a picture, five of an array, and another picture"
    assert sizes.count((30, 20)) == 3, "the wide one in its own size, but as noised"
    assert "some.npz[4]" in page
    assert "unfool purify" in page


def test_sheet_of_classify_shows_images_and_classes(images, capsys):
    some = str(images / "some.npz")
    assert run(["classify", some, *TOY, "--out", "out"]) == 0
    told = capsys.readouterr()
    assert "out/sheet.html" in told.err
    heads, sizes, page = sheet(images.parent / "out" / "sheet.html")
    assert heads[:4] == ["image", "before", "noised", "purified"]
    assert sizes == [(4, 4)] * 20
    winners = [line.split("\t")[1] for line in told.out.splitlines()]
    assert re.findall(r"\[\d\], purified: (\w+)", page) == winners
    assert run(["classify", some, *TOY, "--set", "purifier=null", "--out", "bare"]) == 0
    assert sheet(images.parent / "bare" / "sheet.html")[0][:2] == ["image", "before"]


def test_classify_refuses_large_photo_without_force(elsewhere, mistake):
    Image.new("RGB", (400, 300), (10, 20, 30)).save(elsewhere / "photo.jpg")
    np.savez(elsewhere / "photo.npz", images=np.zeros((1, 300, 400, 3), np.uint8))
    for name in ("photo.jpg", "photo.npz"):
        said = mistake("classify", name, *TOY)
        assert "400 x 300" in said
        assert "4 x 4" in said
        assert "--force" in said
        assert run(["classify", name, *TOY, "--force"]) == 0
