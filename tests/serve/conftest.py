"""Fixtures that the tests of the service share."""

import io

import numpy as np
import pytest
from PIL import Image
from running import started


@pytest.fixture(scope="module")
def service():
    with started() as running:
        yield running


@pytest.fixture(scope="session")
def picture():
    """A function that makes an image file in memory: `picture(4, 4)`, gray unless it has 3 channels."""

    def make(height=4, width=4, channels=1, kind="PNG", seed=0):
        size = (height, width) if channels == 1 else (height, width, channels)
        pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make
