"""The figure in README.md shows the numbers of the tables, and can be drawn."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import readme_figure
from claims import DATA, read_claims

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_have_the_numbers_of_the_figure(page):
    text = (ROOT / page).read_text()
    for row in readme_figure.read_numbers(readme_figure.NUMBERS):
        if page == "README.md" and row["classifier"] != "ours":
            continue
        said = f"{row['accuracy']} % [{row['low']}, {row['high']}]"
        lines = re.findall(rf"^\| {re.escape(row['condition'])} \|.*$", text, re.M)
        assert any(said in line for line in lines), (row["condition"], said)


def test_figure_shows_measured_and_claimed_numbers():
    numbers = readme_figure.read_numbers(readme_figure.NUMBERS)
    claims = read_claims(DATA)["diffpure"].claims
    strips = readme_figure.make_strips([10], steps=1, eot=1)
    for colors in readme_figure.VARIANTS.values():
        figure = readme_figure.draw(numbers, claims, strips, colors)
        figure.canvas.draw()
        above, below = figure.subfigs
        texts = {text.get_text() for text in above.axes[0].texts}
        assert {"0 %", "75 %", "74 %", "57 %", "20 %", "89 %", "81 %", "71 %"} == texts
        for part, strip in zip(below.subfigs, strips, strict=True):
            answers = [axes.get_xlabel() for axes in part.axes]
            assert answers == [answer for row in strip.rows for _, _, answer, _ in row]
