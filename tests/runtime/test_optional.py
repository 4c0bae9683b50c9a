"""Tests of the messages for optional libraries that are missing."""

import sys

import pytest

from unfool.runtime.optional import require


def test_library_that_fails_because_of_torchvision_gets_that_advice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_torchvision.py").write_text("import torchvision")
    (tmp_path / "needs_operator.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for library, told in (("needs_torchvision", "not installed"), ("needs_operator", "nms")):
        with pytest.raises(ValueError, match=rf"torchvision.*{told}.*built for your torch"):
            require(library, "hub")
    with pytest.raises(ValueError, match=r"nowhere_at_all.*pip install 'unfool\[hub\]'"):
        require("nowhere_at_all", "hub")
