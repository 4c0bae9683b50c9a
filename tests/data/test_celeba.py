"""CelebA-HQ: images and a list of attributes."""

from pathlib import Path

import pytest
from PIL import Image

from unfool.data import celeba_hq, fetch

LIST = """3
Eyeglasses Smiling
0.jpg  -1  1
2.jpg   1  1
10.jpg  1 -1
"""


@pytest.fixture
def faces(tmp_path) -> Path:
    (tmp_path / "CelebA-HQ-img").mkdir()
    for name in ("10.jpg", "2.jpg", "0.jpg"):
        Image.new("RGB", (9, 8)).save(tmp_path / "CelebA-HQ-img" / name)
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text(LIST)
    return tmp_path


def test_attribute_defines_two_classes(faces):
    data = celeba_hq(faces, "Eyeglasses", size=4)
    assert [file.name for file in data.files] == ["0.jpg", "2.jpg", "10.jpg"]
    assert data.labels == [0, 1, 1]
    assert data.classes == ("not Eyeglasses", "Eyeglasses")
    assert fetch(data, range(3))[0].shape == (3, 3, 4, 4)
    assert celeba_hq(faces, "Smiling").labels == [1, 1, 0]


def test_subset_of_images_and_other_attribute_file_are_accepted(faces, tmp_path):
    (faces / "CelebA-HQ-img" / "2.jpg").unlink()
    assert celeba_hq(faces, "Eyeglasses").labels == [0, 1]
    (tmp_path / "some.txt").write_text("10.jpg\n")
    assert celeba_hq(faces, "Smiling", pictures=tmp_path / "some.txt").labels == [0]
    other = (faces / "CelebAMask-HQ-attribute-anno.txt").rename(tmp_path / "other.txt")
    with pytest.raises(FileNotFoundError, match=r"CelebAMask-HQ-attribute-anno\.txt"):
        celeba_hq(faces, "Smiling")
    assert celeba_hq(faces, "Smiling", attributes=other).labels == [1, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LIST.replace("Eyeglasses", "Glasses"), "no attribute 'Eyeglasses'"),
        (LIST.replace("0.jpg  -1  1", "0.jpg  -1"), r"entry 3: 0\.jpg must have 2 values"),
        (LIST.replace("-1", "no"), "entry 3"),
        (LIST.replace("10.jpg  1 -1", ""), r"no line for 10\.jpg"),
        ("", "must begin with the number"),
        ("Eyeglasses\n1\n", "must begin with the number"),
    ],
)
def test_invalid_attribute_file_is_refused(faces, content, said):
    (faces / "CelebAMask-HQ-attribute-anno.txt").write_text(content)
    with pytest.raises(ValueError, match=said):
        celeba_hq(faces, "Eyeglasses")


def test_missing_images_are_refused(faces):
    for file in (faces / "CelebA-HQ-img").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"CelebA-HQ is not in .*--data"):
        celeba_hq(faces, "Smiling")
