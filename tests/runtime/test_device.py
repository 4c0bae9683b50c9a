"""Tests of the choice of a device by name."""

import pytest

from unfool.errors import SpecError
from unfool.runtime.device import pick_device


@pytest.mark.parametrize("name", ["mps", "mps:0", "nowhere"])
def test_unsupported_device_is_refused_by_name(name):
    with pytest.raises(SpecError, match=f"{name}.*cpu"):
        pick_device(name)
