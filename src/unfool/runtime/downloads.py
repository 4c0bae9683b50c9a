"""Downloads: only on request, resumable, never incomplete, into one configurable folder."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

CACHE = "UNFOOL_CACHE"
TRIES = 5  # attempts in a row without new bytes, after which a download fails
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without data
_allowed: ContextVar[bool] = ContextVar("downloads_allowed", default=False)


def cache_folder() -> Path:
    """Return the folder for downloads: `UNFOOL_CACHE`, or `unfool` in the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfool"


def downloads_allowed() -> bool:
    """Return whether the user asked for downloads (`--download`)."""
    return _allowed.get()


def allow_downloads(requested: bool = True) -> bool:
    """If `requested`, allow downloads until the enclosing `download_scope` ends; return it."""
    if requested:
        _allowed.set(True)
    return requested


@contextmanager
def download_scope() -> Iterator[None]:
    """Limit the effect of `allow_downloads` to this block."""
    token = _allowed.set(_allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    offline_advice: str = "",
) -> Path:
    """Download `url` to `target`, continuing an interrupted attempt, and verify the file.

    Args:
        url: The URL of a file.
        target: The file to write. A partial download is kept next to it in a hidden file.
        size: Its size in bytes, if known.
        md5: Its MD5, if known.
        sha256: Its SHA-256, or a published prefix of it, if known.
        offline_advice: What a user without a network can do.

    Returns:
        `target`.

    Raises:
        FileNotFoundError: The download failed.
        OSError: The file cannot be written.
        ValueError: The downloaded file is not the expected one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with _locked(target.with_name(f".{target.name}.lock")):
        if target.is_file():  # another process was faster
            return target
        _complete(url, part, target, offline_advice)
        digests = {"md5": md5, "sha256": sha256}
        digests = {
            kind: (_digest(part, kind), expected) for kind, expected in digests.items() if expected
        }
        wrong = [f"{kind} {actual} instead of {expected}" for kind, (actual, expected) in digests.items()
                 if not actual.startswith(expected)]  # fmt: skip
        actual = part.stat().st_size
        if size is not None and actual != size:
            wrong.append(f"{actual} bytes instead of {size}")
        if wrong:
            _delete_partial(part)
            raise ValueError(
                f"the file from {url} is not the official one ({', '.join(wrong)}, {actual} bytes): "
                "try again, and if that does not help, do not use the file"
            )
        os.replace(part, target)
        _delete_partial(part)
    return target


def _complete(url: str, part: Path, target: Path, offline_advice: str) -> None:
    """Download all bytes of `url` to `part`, and continue after a broken connection."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _resume(url, part)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename and not isinstance(error, URLError):
                raise  # an error of the disk, not of the network
            failures = 0 if _size(part) > before else failures + 1
            final = isinstance(error, HTTPError | ValueError) and not _is_temporary(error)
            if failures < TRIES and not final and _size(part) > 0:
                continue
            advice = f"{_size(part)} bytes are kept, so run the same command again to continue"
            alternative = offline_advice or f"download it elsewhere, and put it at {target}"
            raise FileNotFoundError(
                f"could not download {url} ({getattr(error, 'reason', error)}): "
                f"{advice if _size(part) else 'try again'}; if this machine has no network, {alternative}"
            ) from error


def _resume(url: str, part: Path) -> None:
    """Download what `part` lacks; everything if the server cannot resume or the file changed."""
    present, etag_file = _size(part), _etag_path(part)
    etag = etag_file.read_text("utf-8") if present and etag_file.is_file() else ""
    headers = {"Range": f"bytes={present}-", "If-Range": etag} if etag else {}
    try:
        source: Any = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not headers:
            raise
        _delete_partial(part)  # the server's file is not longer than `part`
        return _resume(url, part)
    with source:
        resumed = source.status == 206
        if not resumed:
            _delete_partial(part)
            present = 0
        elif not source.headers.get("Content-Range", "").startswith(f"bytes {present}-"):
            raise ValueError(f"the server did not continue at byte {present}")
        if etag := source.headers.get("ETag") or source.headers.get("Last-Modified") or "":
            etag_file.write_text(etag, "utf-8")
        length = source.headers.get("Content-Length")
        with part.open("ab") as sink:
            received = _copy(source, sink)
    if length is not None and received < int(length):
        raise ConnectionError(
            f"the connection broke after {present + received} of {present + int(length)} bytes"
        )


def _copy(source: BinaryIO, sink: BinaryIO) -> int:
    received = 0
    while chunk := source.read(_CHUNK):
        sink.write(chunk)
        received += len(chunk)
    return received


def _is_temporary(error: Exception) -> bool:
    """Return whether an error of the server may be temporary."""
    return isinstance(error, HTTPError) and (error.code in (408, 429) or error.code >= 500)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _etag_path(part: Path) -> Path:
    """Return where the server's ETag or date for a partial download is stored."""
    return part.with_name(f"{part.name}.tag")


def _delete_partial(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_path(part).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Admit one process at a time, if the system has file locks; a lock ends with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # the previous holder removed the file
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def say(sentence: str) -> None:
    """Print a sentence about a download on stderr."""
    print(sentence, file=sys.stderr, flush=True)
