"""The memory of the gradient does not grow with the number of steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, torch
torch.set_num_threads(1)
from defuse.defenses.diffpure import DiffPure
from defuse.diffusion.unet import unet
from defuse.noise import Noise
net = unet(channels=3, size=32, widths=(32, 64), groups=8).eval().requires_grad_(False)
x = torch.full((4, 3, 32, 32), 0.5)
def high():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
def peak(steps):
    x_ = x.clone().requires_grad_()
    DiffPure(net, steps=steps)(x_, Noise.of(0, range(4))).square().sum().backward()
    return high()
with torch.no_grad():
    DiffPure(net, steps=2)(x, Noise.of(0, range(4)))
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
start = high()
print(peak(int(sys.argv[1])) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_a_hundred_steps_take_hardly_more_than_ten():
    peaks = []
    for steps in (10, 100):
        out = subprocess.run(
            [sys.executable, "-c", CODE, str(steps)],
            capture_output=True,
            text=True,
            check=True,
            # every tensor a mapping of its own, lest holes in the heap be counted
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"},
        )
        peaks.append(int(out.stdout))
    assert peaks[0] > 1000, "KiB; the measurement saw nothing"
    assert peaks[1] <= 1.3 * peaks[0], peaks
