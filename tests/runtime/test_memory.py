"""Tests of memory: that of the gradient over many steps, and the free memory of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unfool.runtime.memory import free_bytes_of_groups

CODE = """
import sys, torch
torch.set_num_threads(1)
from unfool.defenses.diffpure import DiffPure
from unfool.models.unet import unet
from unfool.noise import Noise
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
def test_gradient_of_100_steps_needs_little_more_memory_than_10():
    peaks = []
    for steps in (10, 100):
        out = subprocess.run(
            [sys.executable, "-c", CODE, str(steps)],
            capture_output=True,
            text=True,
            check=True,
            # one mapping per tensor, so that holes in the heap are not counted
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"},
        )
        peaks.append(int(out.stdout))
    assert peaks[0] > 1000, "KiB; the measurement saw nothing"
    assert peaks[1] <= 1.3 * peaks[0], peaks


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_cgroups_of_the_process_leave(tmp_path, version):
    """Of 100 bytes in the own group, 30 are used, of which 10 are reclaimable; the parent leaves less."""
    told, root = tmp_path / "cgroup", tmp_path / "root"
    told.write_text(
        "3:cpu:/other\n" + ("0::/job/step\n" if version == 2 else "5:memory:/job/step\n")
    )
    base = root if version == 2 else root / "memory"
    limit, used, spare = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    none = "max" if version == 2 else str(2**63 - 4096)
    for place, most, taken in (("job/step", "100", 30), ("job", "50", 40), ("", none, 99)):
        (base / place).mkdir(parents=True, exist_ok=True)
        (base / place / limit).write_text(f"{most}\n")
        (base / place / used).write_text(f"{taken}\n")
        (base / place / "memory.stat").write_text(f"anon 5\n{spare} 10\n")
    assert list(free_bytes_of_groups(told, root)) == [80, 20]
    assert list(free_bytes_of_groups(tmp_path / "none", root)) == []
