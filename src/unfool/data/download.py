"""Finding the official files of public data sets, and downloading them if the user asks.

A target file appears only once its download is complete. Interrupted downloads are resumed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from unfool.runtime.downloads import fetch, say

Split = Literal["train", "test"]


def check_split(split: str) -> None:
    """Check that `split` is the name of a split.

    Raises:
        ValueError: `split` is neither `"train"` nor `"test"`.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")


def find_files(
    dataset: str, folder: Path, subfolders: Sequence[str], sets: Sequence[Sequence[str]]
) -> list[Path]:
    """Return the paths of the first complete set of files.

    Args:
        dataset: The data set's name, for error messages.
        folder: The folder that the user named.
        subfolders: Sub-folders to search, in this order; `"."` is the folder itself.
        sets: The names of files that belong together, one set per layout.

    Raises:
        FileNotFoundError: No set is complete.
    """
    candidates = [
        [folder / subfolder / name for name in names] for subfolder in subfolders for names in sets
    ]
    for files in candidates:
        if all(file.is_file() for file in files):
            return files
    for files in candidates:
        if any(file.is_file() for file in files):
            missing = next(file for file in files if not file.is_file())
            raise FileNotFoundError(
                f"{dataset}: the file {missing} is missing: complete the folder, or set `download: "
                "true` (--download)"
            )
    firsts = " or ".join(dict.fromkeys(names[0] for names in sets))
    searched = ", ".join(
        str(subfolder) for subfolder in subfolders if str(subfolder) not in ("", ".")
    )
    raise FileNotFoundError(
        f"{dataset} is not in {folder}: looked for {firsts} there and in {searched}: name its folder "
        "with --data FOLDER or UNFOOL_DATA, or set `download: true` (--download)"
    )


def fetch_file(url: str, md5: str, target: Path) -> None:
    """Download `url` to `target` and check its MD5 hash (see `runtime.downloads`).

    Raises:
        FileNotFoundError: The file could not be downloaded.
        ValueError: The downloaded file is not the official one.
    """
    advice = "fetch the data set elsewhere, and name its folder with --data FOLDER or UNFOOL_DATA"
    say(f"fetching {url} to {target}")
    fetch(url, target, md5=md5, instead=advice)
