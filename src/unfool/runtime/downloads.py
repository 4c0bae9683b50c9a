"""Downloads: only when asked for, resumable, whole or not at all, into one folder that can be moved."""

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
TRIES = 5  # in a row that bring nothing new
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_allowed: ContextVar[bool] = ContextVar("downloads_allowed", default=False)


def cache_folder() -> Path:
    """Where downloads go: `UNFOOL_CACHE`, or `unfool` in the user's folder for caches."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfool"


def allowed() -> bool:
    """Whether the user asked for downloads (`--download`)."""
    return _allowed.get()


def allow(asked: bool = True) -> bool:
    """Let everything inside `asking` fetch what it lacks, if `asked`; returns `asked`."""
    if asked:
        _allowed.set(True)
    return asked


@contextmanager
def asking() -> Iterator[None]:
    """Downloads that are allowed inside are not allowed after."""
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
    instead: str = "",
) -> Path:
    """Fetch `url` to `target`, from where an earlier try was broken off, and check it.

    Args:
        url: Of a file.
        target: The file to write. Until it is whole, its beginning lies beside it, in a hidden file.
        size: Its bytes, if they are known.
        md5: Its MD5, if it is known.
        sha256: Its SHA-256 or, as some publish it, how that begins.
        instead: What a user without a network can do.

    Returns:
        `target`.

    Raises:
        FileNotFoundError: It could not be fetched.
        ValueError: What came is not the expected file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with _locked(target.with_name(f".{target.name}.lock")):
        if target.is_file():  # another process was faster
            return target
        _complete(url, part, target, instead)
        found = {"md5": md5, "sha256": sha256}
        found = {kind: (_digest(part, kind), told) for kind, told in found.items() if told}
        wrong = [f"{kind} {got} instead of {told}" for kind, (got, told) in found.items()
                 if not got.startswith(told)]  # fmt: skip
        got = part.stat().st_size
        if size is not None and got != size:
            wrong.append(f"{got} bytes instead of {size}")
        if wrong:
            _forget(part)
            raise ValueError(
                f"the file from {url} is not the official one ({', '.join(wrong)}, {got} bytes): "
                "try again, and if that does not help, do not use the file"
            )
        os.replace(part, target)
        _forget(part)
    return target


def _complete(url: str, part: Path, target: Path, instead: str) -> None:
    """Bring all bytes of `url` to `part`; after a broken connection it goes on where it was."""
    vain = 0
    while True:
        before = _size(part)
        try:
            return _go_on(url, part)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename and not isinstance(error, URLError):
                raise  # of the disk
            vain = 0 if _size(part) > before else vain + 1
            final = isinstance(error, HTTPError | ValueError) and not _passing(error)
            if vain < TRIES and not final and _size(part) > 0:
                continue
            kept = f"{_size(part)} bytes are kept, so run the same command again to continue"
            more = instead or f"download it elsewhere, and put it at {target}"
            raise FileNotFoundError(
                f"could not download {url} ({getattr(error, 'reason', error)}): "
                f"{kept if _size(part) else 'try again'}; if this machine has no network, {more}"
            ) from error


def _go_on(url: str, part: Path) -> None:
    """Ask for the bytes that `part` lacks; for all of them if the server cannot, or the file changed."""
    have, told = _size(part), _tag(part)
    mark = told.read_text("utf-8") if have and told.is_file() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": mark} if mark else {}
    try:
        source: Any = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not headers:
            raise
        _forget(part)  # the server has no byte from there on
        return _go_on(url, part)
    with source:
        resumed = source.status == 206
        if not resumed:
            _forget(part)
            have = 0
        elif not source.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ValueError(f"the server did not continue at byte {have}")
        if mark := source.headers.get("ETag") or source.headers.get("Last-Modified") or "":
            told.write_text(mark, "utf-8")
        left = source.headers.get("Content-Length")
        with part.open("ab") as sink:
            came = _copy(source, sink)
    if left is not None and came < int(left):
        raise ConnectionError(
            f"the connection broke after {have + came} of {have + int(left)} bytes"
        )


def _copy(source: BinaryIO, sink: BinaryIO) -> int:
    came = 0
    while chunk := source.read(_CHUNK):
        sink.write(chunk)
        came += len(chunk)
    return came


def _passing(error: Exception) -> bool:
    """Whether an answer of a server may be another one in a moment."""
    return isinstance(error, HTTPError) and (error.code in (408, 429) or error.code >= 500)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag(part: Path) -> Path:
    """Where it stands by what the server knows the file that `part` is the beginning of."""
    return part.with_name(f"{part.name}.tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system has locks; they end with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # who had it before removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def say(sentence: str) -> None:
    """Tell on stderr what is fetched."""
    print(sentence, file=sys.stderr, flush=True)
