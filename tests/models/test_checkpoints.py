"""Reading weights from files, and loading them into a network."""

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unfool.models.checkpoints import load_state, read_state, sha256
from unfool.noise import seed_torch


@pytest.fixture
def network() -> nn.Sequential:
    seed_torch(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("table", ["", "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_are_removed(
    tmp_path: Path, network: nn.Sequential, table: str, prefix: str, zipped: bool
):
    state = {prefix + name: value for name, value in network.state_dict().items()}
    file = tmp_path / "a.pt"
    content = {table: state, "epoch": 3} if table else state
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert same(read_state(file), dict(network.state_dict()))


def test_safetensors_are_read(tmp_path: Path, network: nn.Sequential):
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    assert same(read_state(tmp_path / "a.safetensors"), dict(network.state_dict()))


def test_prefix_of_only_some_names_is_kept(tmp_path: Path):
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    assert read_state(tmp_path / "a.pt").keys() == state.keys()


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_file_with_code_is_refused_without_running_it(
    tmp_path: Path, network: nn.Sequential, zipped: bool
):
    file = tmp_path / "a.pt"
    content = {"state_dict": network.state_dict(), "more": Evil(tmp_path / "ran")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pt was refused, .* \((posix|nt)\.mkdir\)"):
        read_state(file)
    for protocol in range(5):
        file.write_bytes(pickle.dumps(content | {"state_dict": {}}, protocol))
        with pytest.raises(ValueError, match=r"a\.pt was refused, .* \((posix|nt)\.mkdir\)"):
            read_state(file)
    assert not (tmp_path / "ran").exists()


def test_torchscript_file_is_refused(tmp_path: Path, network: nn.Sequential):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(2, 3)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"was refused, .*torch\.jit"):
        read_state(tmp_path / "a.pt")


class Unknown:
    """A class that the reader of the file must neither import nor run."""

    def __init__(self) -> None:
        self.lr = 0.1

    def __setstate__(self, _: object) -> None:
        raise AssertionError("code of the file ran")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_beside_weights_are_ignored(
    tmp_path: Path, network: nn.Sequential, zipped: bool, protocol: int
):
    unknown = Unknown()
    beside = {
        "accuracy": np.float32(0.9),
        "curve": np.arange(3.0),
        "args": Namespace(lr=0.1, folder=Path("runs")),
        "groups": defaultdict(list, a=[1]),
        "config": unknown,
        "state_dict_ema": None,
    }
    for content in (
        {"net": network.state_dict(), **beside},
        {"model": network, **beside},
        [network.state_dict(), {"state": {}}, 3],
        network,
    ):
        torch.save(
            content,
            tmp_path / "a.pt",
            _use_new_zipfile_serialization=zipped,
            pickle_protocol=protocol,
        )
        assert same(read_state(tmp_path / "a.pt"), dict(network.state_dict()))


def averages(network: nn.Sequential) -> list[Any]:
    """Return checkpoints with raw and averaged (EMA) weights, in the layouts of training codes."""
    average = {name: value + 1 for name, value in network.state_dict().items()}
    raw = network.state_dict()
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{n}": v for n, v in average.items()}
    shadow = {name: average[name] for name, _ in network.named_parameters()}
    trained = list(shadow.values())
    return [
        {"model": raw, "ema": average, "step": 3},
        {"state_dict": raw, "state_dict_ema": average},
        {"model": raw, "model_ema": averaged},
        {"net": raw, "ema_state_dict": average},
        {"model": raw, "ema": {"decay": 0.999, "module": average}},
        {"model": raw, "ema": {"decay": 0.999, "shadow_params": trained}},
        {"model": raw, "ema": {"decay": 0.999, "shadow": shadow}},
        [raw, {"state": {}}, 1, 2, average],
    ]


@pytest.mark.parametrize("form", range(8))
def test_ema_weights_are_loaded_with_a_message(
    tmp_path: Path, network: nn.Sequential, form: int, capsys: pytest.CaptureFixture[str]
):
    torch.save(averages(network)[form], tmp_path / "a.pt")
    found = read_state(tmp_path / "a.pt")
    for name, _ in network.named_parameters():
        assert torch.equal(found[name], network.state_dict()[name] + 1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a.pt" in said
    assert "averaged" in said
    load_state(network, found, "a.pt")


def test_averaged_weights_in_unknown_layout_are_refused(tmp_path: Path, network: nn.Sequential):
    raw = network.state_dict()
    for unknown in ([torch.zeros(3)], {"shadow_params": [torch.zeros(3)]}, {"a": {"b": raw}}):
        torch.save({"model": raw, "ema": unknown}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"a\.pt has averaged weights under 'ema'.*state dict"):
            read_state(tmp_path / "a.pt")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zipped", "zipped network", "old", "old network", "pickle",
                                  "safetensors"])  # fmt: skip
def test_large_file_is_not_held_in_memory_twice(tmp_path: Path, kind: str):
    """The kind `pickle` is the layout of EDM and StyleGAN: a plain pickle that embeds torch files."""
    size, count = 128 << 20, 8
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(1024, size // count // 4096) for _ in range(count)))
    network = network.to_empty(device="cpu").requires_grad_(False)
    for number, value in enumerate(network.parameters()):
        value.fill_(number)
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(network.state_dict(), path)
    elif kind == "pickle":
        with path.open("wb") as file:
            pickle.dump({"ema": network, "augment": None}, file)
    else:
        content = network if kind.endswith("network") else network.state_dict()
        zipped = kind.startswith("zipped")
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    code = (
        "import sys, torch; from torch import nn; from pathlib import Path\n"
        "from unfool.models.checkpoints import load_state, read_state\n"
        "def of(key): return int(open('/proc/self/status').read().split(key)[1].split()[0]) << 10\n"
        f"with torch.device('meta'): net = nn.Sequential(*(nn.Linear(1024, {size // count // 4096})\n"
        f"    for _ in range({count})))\n"
        "Path('/proc/self/clear_refs').write_text('5')  # forget the peak of the imports\n"
        "before = of('VmRSS:')\n"
        "load_state(net, read_state(Path(sys.argv[1])), 'it', assign=True)\n"
        "assert [float(v.max()) for v in net.parameters()] == list(range(len([*net.parameters()])))\n"
        "print(of('VmHWM:') - before)"
    )
    command = [sys.executable, "-c", code, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0.9 * size < int(told) < 1.25 * size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.pt is empty"),
        (b"my notes\nof today\n", "a.pt is text and begins with 'my notes of today'"),
        (b'{"error": "not found"}', 'begins with \'{"error": "not found"}\''),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "`git lfs pull`"),
        (b"\n<html><head>Quota exceeded</head></html>", "a.pt is a web page"),
    ],
)
def test_file_without_weights_is_described_in_the_error(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"]
)
def test_tensors_of_plain_pickle_equal_saved_tensors(tmp_path: Path, dtype: str):
    whole = torch.arange(20).reshape(4, 5).to(getattr(torch, dtype))
    state = {"whole": whole, "part": whole.T[1:3], "none": whole[:0], "one": whole[1, 1]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state))
    found = read_state(tmp_path / "a.pkl")
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("content", [[1], {}, {"a": 1}, {"model": {"a": "b"}}, {3: torch.zeros(1)}])
def test_file_without_state_dict_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zipped", "old", "safetensors"])
def test_truncated_and_missing_files_are_refused(tmp_path: Path, network: nn.Sequential, kind: str):
    file = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_state(file)
    if kind == "safetensors":
        save_file(network.state_dict(), file)
    else:
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer, _use_new_zipfile_serialization=kind == "zipped")
        file.write_bytes(buffer.getvalue())
    whole = file.read_bytes()
    parts = [whole[:n] for n in (0, 1, 10, 300, len(whole) // 2, len(whole) - 4)]
    for part in (*parts, bytes(range(256))):
        file.write_bytes(part)
        with pytest.raises(
            ValueError, match=r"cannot be read|was refused, .* damaged|is empty|is text"
        ):
            read_state(file)
    file.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match=rf"{file.name} is a web page"):
        read_state(file)


def test_load_state_copies_all_weights(network: nn.Sequential):
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    load_state(network, state, "it")
    assert same(dict(network.state_dict()), state)


def test_state_without_batch_counters_is_accepted(network: nn.Sequential):
    state = {n: v for n, v in network.state_dict().items() if "num_batches" not in n}
    load_state(network, state, "it")


def test_mismatched_state_is_refused_in_one_sentence(network: nn.Sequential):
    state = dict(network.state_dict())
    del state["0.bias"]
    with pytest.raises(ValueError, match=r"^w\.pt .*lacks.*0\.bias"):
        load_state(network, state, "w.pt")
    more = {f"x{i}": torch.zeros(1) for i in range(5)}
    told = r"lacks 1 \(0\.bias\) and has unexpected 5 \(x0, x1, x2, \.\.\.\)$"
    with pytest.raises(ValueError, match=told):
        load_state(network, state | more, "w.pt")
    wrong = dict(network.state_dict()) | {"2.weight": torch.zeros(5, 4)}
    with pytest.raises(ValueError, match=r"2\.weight .*\(5, 4\) .*\(2, 4\)"):
        load_state(network, wrong, "w.pt")


def test_sha256_equals_hashlib(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_real_files_are_read_and_match_the_hash_in_their_name():
    folder = os.environ.get("UNFOOL_WEIGHTS")
    if not folder:
        pytest.skip("set UNFOOL_WEIGHTS to a folder with weights to test on real files")
    files = [f for f in sorted(Path(folder).glob("*/*")) if f.suffix in (".th", ".pth", ".model")]
    assert files
    for file in files:
        state = read_state(file)
        assert not any(name.startswith("module.") for name in state)
        head = file.stem.partition("-")[2]
        assert sha256(file).startswith(head)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weight: weight.to(torch.complex64), "complex64"),
        (lambda weight: weight.int(), "int32"),
        (lambda weight: weight > 0, "bool"),
        (lambda weight: weight.to_sparse(), "sparse"),
        (lambda weight: weight.to("meta"), "meta"),
    ],
)
def test_weights_of_unsupported_type_are_refused(network: nn.Sequential, change, named):
    state = dict(network.state_dict())
    state["2.weight"] = change(state["2.weight"])
    with pytest.raises(ValueError, match=rf"^w\.pt .*2\.weight.*{named}"):
        load_state(network, state, "w.pt")
