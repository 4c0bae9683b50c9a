"""Tests that files are written completely, also by several processes."""

import errno
import os
import threading

import pytest

from unfool.cli.main import run
from unfool.runtime.files import raise_system_error, write_bytes


def test_writers_with_the_same_process_id_do_not_corrupt_files(tmp_path, monkeypatch):
    """Containers that share a folder can all have the process ID 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    contents = [bytes([letter]) * 200_000 for letter in b"abcd"]
    failed: list[Exception] = []

    def write(content):
        try:
            for _ in range(25):
                write_bytes(tmp_path / "file", content)
                if (tmp_path / "file").read_bytes() not in contents:
                    raise ValueError("torn")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_error_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="kept") as told:
        write_bytes(tmp_path / "kept", b"x")
    assert told.value.filename == str(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_system_errors_are_distinguished_from_damage():
    for error in (PermissionError(errno.EACCES, "denied"), OSError(errno.EIO, "io"), MemoryError()):
        with pytest.raises(type(error)):
            raise_system_error(error)
    for error in (OSError("image file is truncated"), ValueError("bad"), EOFError()):
        assert raise_system_error(error) is None


def test_unwritable_file_is_named_instead_of_its_draft(tmp_path):
    (tmp_path / "a" / "x.json").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as refused:
        write_bytes(tmp_path / "a" / "x.json", b"x")
    assert refused.value.filename == str(tmp_path / "a" / "x.json")
    assert not list((tmp_path / "a").glob(".*"))


def test_unchanged_report_is_not_rewritten(elsewhere):
    small = ["attacks=[]", "purifier=null", "evaluation.images=2", "evaluation.draws=1"]
    command = ["evaluate", "blobs", *(w for change in small for w in ("--set", change))]
    command += ["--out", "run", "--quiet"]
    assert run(command) == 0
    before = {path: path.stat().st_ino for path in (elsewhere / "run").rglob("*") if path.is_file()}
    for words in (command, ["report", "run"]):
        assert run(words) == 0
        after = {
            path: path.stat().st_ino for path in (elsewhere / "run").rglob("*") if path.is_file()
        }
        assert after == before
    (elsewhere / "run" / "report.md").write_text("changed")
    assert run(command) == 0
    assert "changed" not in (elsewhere / "run" / "report.md").read_text()[:7]
