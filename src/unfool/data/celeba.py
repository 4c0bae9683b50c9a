"""CelebA-HQ (Karras et al., 2018) with the attributes of CelebA (Liu et al., 2015)."""

from pathlib import Path

from unfool.data.labeled_files import LabeledFiles, find_folder, image_files_in, indices_listed_in
from unfool.ranges import Count, check_arguments
from unfool.spec.menu import hint

_LISTS = ("CelebAMask-HQ-attribute-anno.txt", "list_attr_celeba.txt")
_SUBFOLDERS = ("CelebA-HQ-img", "celeba_hq", "images", "img_align_celeba", ".")


def celeba_hq(
    folder: Path,
    attribute: str,
    size: Count = 256,
    attributes: Path | None = None,
    pictures: Path | None = None,
) -> LabeledFiles:
    """CelebA-HQ or CelebA: images of faces, with or without an attribute (two classes).

    Args:
        folder: The folder with the images (directly, or in `CelebA-HQ-img` or `img_align_celeba`)
            and the list of attributes.
        attribute: The attribute, such as `"Eyeglasses"`: images of class 1 have it, images of class
            0 do not.
        size: Height and width of the images in pixels; each image is resized to just cover this
            size, and its center is cropped.
        attributes: The list of attributes: a line with the number of images, a line with the names
            of the attributes, and for each image a line with its name and 1 or -1 per attribute;
            None finds `CelebAMask-HQ-attribute-anno.txt` or `list_attr_celeba.txt` in the folder.
        pictures: A text file with the name of an image file on each line, to use only these, in
            this order.

    Raises:
        FileNotFoundError: The images or the list are missing.
        ValueError: The list is not as described above, or lacks the attribute or an image.
    """
    check_arguments(celeba_hq, locals())
    folder = Path(folder)
    candidates = (path for name in _LISTS if (path := folder / name).is_file())
    path = Path(attributes) if attributes is not None else next(candidates, None)
    if path is None or not path.is_file():
        sought = path or f"{_LISTS[0]} or {_LISTS[1]} in {folder}"
        raise FileNotFoundError(
            f"there is no list of attributes ({sought}): put it there, or name it with `attributes`"
        )
    names, rows = _read(path)
    if attribute not in names:
        raise ValueError(f"{path} has no attribute {attribute!r}; {hint(attribute, names)}")
    column = names.index(attribute)
    image_folder = find_folder(
        "CelebA-HQ", folder, _SUBFOLDERS, lambda subfolder: bool(image_files_in(subfolder))
    )
    files = image_files_in(image_folder)
    if pictures is not None:
        files = [files[i] for i in indices_listed_in(Path(pictures), files)]
    if strange := [file for file in files if file.stem not in rows]:
        raise ValueError(
            f"{path} has no line for {strange[0].name}, and none for {len(strange)} images in all: "
            "use the list that belongs to these images"
        )
    labels = [int(rows[file.stem][column] == "1") for file in files]
    return LabeledFiles(files, labels, (f"not {attribute}", attribute), size)


def _read(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the attribute names, and each image's values by its file name without extension."""
    lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    head = lines[:2]
    if len(head) < 2 or len(head[0]) != 1 or not head[0][0].isdigit():
        raise ValueError(
            f"{path} must begin with the number of images and the names of the attributes: fetch "
            "it again"
        )
    names, rows = head[1], {}
    for number, (name, *values) in enumerate(lines[2:], 3):
        if len(values) != len(names) or not set(values) <= {"1", "-1", "0"}:
            raise ValueError(
                f"{path}, entry {number}: {name} must have {len(names)} values of 1 or -1: fetch "
                "the file again"
            )
        rows[Path(name).stem] = values
    return names, rows
