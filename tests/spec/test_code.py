"""Which files of the user's code count in the identity of a run."""

import pytest

from unfool import spec as specs
from unfool.cli.main import run

FILES = {
    "mine.py": "from helper import STRENGTH\nimport tools.blur as blur\nimport numpy, unfool\n",
    "helper.py": "STRENGTH = 0.0\n\ndef late():\n    import lazily\n",
    "lazily.py": "",
    "unrelated.py": "",
    "tools/__init__.py": "from .shared import radius\n",
    "tools/shared.py": "radius = 1\n",
    "tools/blur.py": "from . import kernels\n__import__('by_word')\n",
    "tools/kernels.py": "from .deep.down import x\n",
    "tools/deep/down.py": "x = 1\n",
    "tools/unused.py": "",
    "by_word.py": "import importlib\nimportlib.import_module('mine')\n",
}


@pytest.fixture
def own(elsewhere, monkeypatch):
    for name, text in FILES.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(text)
    monkeypatch.syspath_prepend(elsewhere)
    return elsewhere


@pytest.mark.parametrize(
    "name",
    [
        "mine.py",
        "helper.py",
        "lazily.py",
        "tools/__init__.py",
        "tools/shared.py",
        "tools/blur.py",
        "tools/kernels.py",
        "tools/deep/down.py",
        "by_word.py",
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        {"purifier": {"name": "mine:Shade"}},
        {"attacks": [{"name": "pgd", "view": {"name": "mine:view"}}]},
        {"classifier": {"name": "network", "network": "mine:Net"}},
    ],
)
def test_change_in_imported_file_changes_the_hash(own, name, spec):
    before = specs.code_hash(spec)
    assert specs.code_hash(spec) == before
    (own / name).write_text(FILES[name] + "# changed\n")
    assert specs.code_hash(spec) != before


@pytest.mark.parametrize("name", ["unrelated.py", "tools/unused.py"])
def test_change_in_unused_file_keeps_the_hash(own, name):
    before = specs.code_hash({"purifier": {"name": "mine:Shade"}})
    (own / name).write_text("changed = 1\n")
    assert specs.code_hash({"purifier": {"name": "mine:Shade"}}) == before


def test_change_in_enclosing_package_changes_the_hash(own):
    before = specs.code_hash({"purifier": "tools.kernels:Thing"})
    (own / "tools" / "__init__.py").write_text("changed = 1\n")
    assert specs.code_hash({"purifier": "tools.kernels:Thing"}) != before


def test_imported_files_are_found_without_importing_them(own):
    (own / "helper.py").write_text("raise SystemExit('imported')\n")
    (own / "tools" / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert specs.code_hash({"purifier": "mine:Shade"})


def test_change_in_code_named_by_a_card_changes_the_hash(own):
    (own / "trained").mkdir()
    card = '{"part": {"name": "network", "network": {"name": "mine:Net"}}}'
    (own / "trained" / "card.json").write_text(card)
    spec = {"classifier": {"name": "trained", "weights": str(own / "trained")}}
    before = specs.code_hash(spec)
    (own / "helper.py").write_text("STRENGTH = 1.0\n")
    assert specs.code_hash(spec) != before


SHADE = """
from helper_of_shade import STRENGTH

class Shade:
    def __call__(self, x, noise):
        return (x * (1 - STRENGTH)).clamp(0, 1)
"""
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, checkpoint):
        super().__init__()
        self.inner = [torch.load(checkpoint)]  # hidden from the state dict

    def forward(self, x):
        return x.flatten(1) @ self.inner[0]
"""
SCALE = """
class Scale:
    def __init__(self, *, examples: int = 1):
        self.examples = examples

    def __call__(self, x, noise):
        return (x * self.examples).clamp(0, 1)
"""
SMALL = ["denoiser=null", "attacks=[]", "data.size=8", "evaluation.draws=1"]


def command(*changes, out="run"):
    words = [word for change in (*SMALL, *changes) for word in ("--set", change)]
    return ["evaluate", "blobs", *words, "--out", out, "--quiet"]


def test_run_with_a_changed_helper_is_not_continued_or_merged(elsewhere, mistake):
    (elsewhere / "shade.py").write_text(SHADE)
    (elsewhere / "helper_of_shade.py").write_text("STRENGTH = 0.0\n")
    shade = command("purifier=shade:Shade")
    assert run([*shade, "--shard", "0/2"]) == 0
    (elsewhere / "helper_of_shade.py").write_text("STRENGTH = 1.0\n")
    assert "with other code" in mistake(*shade)
    other = command("purifier=shade:Shade", out="other")
    assert run([*other, "--shard", "1/2"]) == 0
    assert "with other code" in mistake("merge", "run", "other", "--out", "whole")


def test_run_with_another_option_of_an_own_part_is_not_continued(elsewhere, mistake):
    (elsewhere / "own_scale.py").write_text(SCALE)
    scale = command("purifier={name: 'own_scale:Scale', examples: 1}")
    assert run(scale) == 0
    assert "of another spec" in mistake(*scale, "--set", "purifier.examples=7")
    assert run([*scale, "--set", "evaluation.examples=3"]) == 0  # which changes no result


def test_run_with_changed_weights_is_not_continued(elsewhere, mistake):
    import torch

    (elsewhere / "own_net.py").write_text(NET)
    weights = torch.arange(32.0).reshape(16, 2)
    torch.save(weights, elsewhere / "net.pt")
    net = command(
        "purifier=null",
        "classifier={name: network, network: {name: 'own_net:Net', checkpoint: net.pt}}",
    )
    assert run([*net, "--shard", "0/2"]) == 0
    assert run(net) == 0
    torch.save(weights * 1.5, elsewhere / "net.pt")
    assert "with other weights" in mistake(*net)
