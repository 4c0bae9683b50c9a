"""Each gallery example has a title, prose, and a next page, is short, and runs as a script."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "examples" / "gallery"
EXAMPLES = sorted(GALLERY.glob("plot_*.py"))
SHORTEST = ("plot_purify_one_image", "plot_guidance_on_two_gaussians", "plot_samples")


def code_lines(source: str) -> int:
    """Count the lines of code: not empty, no comment, and not in the module docstring."""
    body = "\n".join(source.splitlines()[ast.parse(source).body[0].end_lineno :])
    return sum(bool(line.strip()) and not line.startswith("#") for line in body.splitlines())


def test_gallery_has_at_least_ten_examples():
    assert len(EXAMPLES) >= 10
    assert set(SHORTEST) <= {path.stem for path in EXAMPLES}
    assert (GALLERY / "README.txt").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_has_title_prose_and_little_code(path):
    source = path.read_text()
    compile(source, path.name, "exec")
    title, line, blank, *prose = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    assert line == "=" * len(title)
    assert not blank
    assert len(" ".join(prose)) > 150
    assert "" not in prose, "one paragraph"
    assert 20 <= code_lines(source) <= 60
    assert source.count("# %%") >= 2
    assert "set_title" in source or "label" in source


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_ends_with_a_page_to_read_next(path):
    *_, last = path.read_text().split("# %%\n")
    assert all(line.startswith("# ") for line in last.splitlines())
    named = re.findall(r"``([\w/]+\.(?:md|py))``", last)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (GALLERY / name).exists(), name


@pytest.mark.parametrize(
    "path",
    [
        path if path.stem in SHORTEST else pytest.param(path, marks=pytest.mark.slow)
        for path in EXAMPLES
    ],
    ids=lambda path: path.stem,
)
def test_example_runs_as_a_script(path, elsewhere):
    source = str(ROOT / "src")
    env = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, str(path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
