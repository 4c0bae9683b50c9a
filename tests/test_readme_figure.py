"""The figure in README.md shows the numbers of the tables, and can be drawn."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import main_table
import readme_figure
from claims import DATA, read_claims

ROOT = Path(__file__).parents[1]


def test_tables_have_the_numbers_of_the_main_table():
    readme = (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text()
    for row in readme_figure.shown_numbers():
        said = f"{row['accuracy']} % [{row['low']}, {row['high']}]"
        assert said in readme, row
    assert "\n".join(main_table.tables(main_table.read_numbers())).strip() in results


def test_figure_shows_measured_and_claimed_numbers():
    numbers = readme_figure.shown_numbers()
    claims = read_claims(DATA)["diffpure"].claims
    strips = readme_figure.make_strips([10], steps=1, eot=1)
    for colors in readme_figure.VARIANTS.values():
        figure = readme_figure.draw(numbers, claims, strips, colors)
        figure.canvas.draw()
        above, below = figure.subfigs
        texts = {text.get_text() for text in above.axes[0].texts}
        measured = {f"{float(row['accuracy']):.0f} %" for row in numbers}
        assert measured | {"89 %", "81 %", "71 %"} == texts
        for part, strip in zip(below.subfigs, strips, strict=True):
            answers = [axes.get_xlabel() for axes in part.axes]
            assert answers == [answer for row in strip.rows for _, _, answer, _ in row]
