"""Tests of downloads: broken connections, checksums, and downloading only on request."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import unfool
from unfool.cli.main import run
from unfool.models.build import cifar_network
from unfool.noise import Noise
from unfool.runtime import published_files
from unfool.runtime.downloads import cache_folder, download_scope, downloads_allowed, fetch
from unfool.runtime.published_files import FILES, Remote, find_file

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A server with one content for every name; `breaks` lists after how many bytes responses end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"one"'
        self.breaks: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, given = self.server, self.headers.get("Range")
        assert isinstance(server, Server)
        server.asked.append(given)
        if server.status != 200:
            self.send_error(server.status)
            return
        begin = 0
        if given and server.ranges and self.headers.get("If-Range") == server.tag:
            begin = int(given.removeprefix("bytes=").partition("-")[0])
        if begin > len(server.content) - 1:
            self.send_error(416)
            return
        rest = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{len(server.content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        if server.breaks:
            rest = rest[: server.breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_download_is_complete_and_leaves_no_other_file(server: Server, tmp_path: Path):
    target = fetch(server.url, tmp_path / "a" / "file", size=len(CONTENT), sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ["file"]
    fetch(server.url, target)
    assert len(server.asked) == 1, "what is there is not fetched again"


def test_broken_connection_is_resumed(server: Server, tmp_path: Path):
    server.breaks = [300_000, 1, 200_000]
    assert fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=500001-"]


def test_later_call_resumes_an_earlier_download(server: Server, tmp_path: Path):
    server.breaks = [300_000] + [0] * 10
    with pytest.raises(FileNotFoundError, match="300000 bytes are kept"):
        fetch(server.url, tmp_path / "file", sha256=SHA256)
    assert not (tmp_path / "file").exists()
    server.breaks, server.asked = [], []
    assert fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"]


@pytest.mark.parametrize(("content", "tag"), [(CONTENT[::-1], '"two"'), (b"short", '"one"')])
def test_file_that_changed_on_the_server_is_downloaded_again(
    content, tag, server: Server, tmp_path: Path
):
    server.breaks = [300_000] + [0] * 10
    with pytest.raises(FileNotFoundError):
        fetch(server.url, tmp_path / "file")
    server.breaks, server.content, server.tag = [], content, tag
    assert fetch(server.url, tmp_path / "file").read_bytes() == content


def test_server_without_ranges_is_read_from_the_start(server: Server, tmp_path: Path):
    server.breaks, server.ranges = [300_000], False
    assert fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"sha256": "4118986f"}, "4118986f"),
        ({"md5": "0" * 32}, "md5"),
        ({"size": 7}, "instead of 7"),
    ],
)
def test_file_with_wrong_hash_or_size_is_refused_and_deleted(
    server: Server, tmp_path: Path, expected, said
):
    with pytest.raises(ValueError, match="not the official one") as told:
        fetch(server.url, tmp_path / "file", **expected)
    assert said in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_prefix_of_a_hash_is_enough(server: Server, tmp_path: Path):
    assert fetch(server.url, tmp_path / "file", sha256=SHA256[:8]).is_file()


@pytest.mark.parametrize("status", [403, 404, 500])
def test_server_error_is_reported_with_url_and_path(server: Server, tmp_path: Path, status: int):
    server.status = status
    with pytest.raises(FileNotFoundError, match="could not download") as told:
        fetch(server.url, tmp_path / "file")
    assert server.url in str(told.value)
    assert str(tmp_path / "file") in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_network_is_reported_in_one_line(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no network") as told:
        fetch("http://127.0.0.1:9/file", tmp_path / "file")
    assert "\n" not in str(told.value)


def test_concurrent_calls_download_once(server: Server, tmp_path: Path):
    threads = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / "file")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNFOOL_CACHE", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("UNFOOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unfool"


def test_hashes_are_complete_or_part_of_the_file_name():
    """A short hash is the one that the publisher put at the end of the file's name."""
    for name, remote in FILES.items():
        if remote.sha256 is not None and len(remote.sha256) != 64:
            assert Path(name).stem.endswith(f"-{remote.sha256}")
        assert remote.md5 is None or len(remote.md5) == 32
        assert remote.url is None or remote.url.startswith("https://")
        assert remote.license
        assert remote.megabytes > 0
        assert remote.size is None or remote.size // 1_000_000 == remote.megabytes


@pytest.fixture
def published(server: Server, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Publish a classifier on the server, and return its file name."""
    torch.manual_seed(0)  # noqa: TID251
    state = cifar_network("shufflenetv2").network.state_dict()
    server.content = save({n: v.contiguous() for n, v in state.items()})
    monkeypatch.setenv("UNFOOL_CACHE", str(elsewhere / "cache"))
    digest = hashlib.sha256(server.content).hexdigest()
    remote = Remote("https://example.org", "MIT", 5, server.url, sha256=digest)
    monkeypatch.setitem(published_files.FILES, "net.safetensors", remote)
    return "net.safetensors"


def test_published_file_is_downloaded_only_on_request(server, published, elsewhere, capsys):
    with pytest.raises(FileNotFoundError, match="--download") as told:
        find_file(Path(published))
    assert "5 MB, MIT" in str(told.value)
    assert server.asked == []
    model = unfool.load_classifier(name="cifar-network", weights=published, download=True)
    x, noise = torch.full((2, 3, 32, 32), 0.3), Noise.of(0, range(2))
    kept = elsewhere / "cache" / published
    assert kept.is_file()
    assert str(kept) in capsys.readouterr().err
    again = unfool.load_classifier(name="cifar-network", weights=published)  # offline
    assert len(server.asked) == 1
    with torch.no_grad():
        assert torch.equal(model(x, noise), again(x, noise))


def test_command_downloads_only_with_the_flag(server, published, elsewhere, capsys):
    spec = ["evaluate", "cifar10-demo", "--quiet", "--set", "attacks=[]"]
    spec += ["--set", "denoiser=null", "--set", "purifier=null", "--set", "evaluation.images=2"]
    spec += ["--set", f"classifier={{name: cifar-network, weights: {published}}}"]
    assert run([*spec, "--out", "a"]) == 2
    assert "--download" in capsys.readouterr().err
    assert run([*spec, "--download"]) == 0
    assert not downloads_allowed(), "a command does not allow the next one to download"
    (first,) = (elsewhere / "runs").iterdir()
    assert run(spec) == 0
    assert [*(elsewhere / "runs").iterdir()] == [first], "the run is the same with and without"
    assert len(server.asked) == 1
    with download_scope():
        assert not downloads_allowed()


def test_file_in_the_current_folder_takes_precedence(published, elsewhere):
    Path(published).write_bytes(b"mine")
    assert find_file(Path(published)) == Path(published)


def test_file_without_a_url_is_reported_with_its_page(elsewhere, monkeypatch):
    monkeypatch.setenv("UNFOOL_CACHE", str(elsewhere / "cache"))
    with pytest.raises(FileNotFoundError, match="score_sde_pytorch") as told:
        find_file(Path("checkpoint_8.pth"), download=True)
    assert str(elsewhere / "cache" / "checkpoint_8.pth") in str(told.value)
    (elsewhere / "cache").mkdir()
    (elsewhere / "cache" / "checkpoint_8.pth").write_bytes(b"")
    assert find_file(Path("checkpoint_8.pth")) == elsewhere / "cache" / "checkpoint_8.pth"
