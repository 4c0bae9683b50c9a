"""The figure of a sweep: which lines it has, where they lie, and that they can be distinguished."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from unfool.report.figures.sweep import MAX_LABELS, Point, build_figure, figure, legible
from unfool.results.report_json import share_entry
from unfool.statistics import wilson

NAMES = ["clean", "transfer", "white box", "robust", "DW-box"]
ATTACKS = ["transfer", "white box"]
HITS = {"clean": 95, "transfer": 60, "white box": 12, "robust": 10, "DW-box": 5}


def points(names: list[str], hits: dict[str, int], *others: dict[str, str]) -> list[Point]:
    """Make three points for each of the other values; the last has one more right answer."""
    return [
        Point(
            {"steps": str(x), **other},
            {name: share_entry(wilson(hits[name] + x // 200, 100)) for name in names},
        )
        for x in (0, 100, 200)
        for other in others or ({},)
    ]


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def test_every_condition_has_a_line_and_each_point_its_interval():
    shown = build_figure(points(NAMES, HITS), NAMES, ATTACKS)
    (axes,) = shown.axes
    found = lines(axes)
    assert list(found) == NAMES
    for name, heights in found.items():
        assert heights == pytest.approx([HITS[name], HITS[name], HITS[name] + 1])
    styles = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(styles) == len(NAMES)
    bounds = [wilson(12, 100), wilson(12, 100), wilson(13, 100)]
    bars = [np.asarray(bar.get_segments()) for bar in axes.collections]  # pyright: ignore
    ends = bars[NAMES.index("white box")][:, :, 1]
    assert ends == pytest.approx(np.array([[100 * b.low, 100 * b.high] for b in bounds]))


def test_lines_are_offset_so_that_intervals_do_not_overlap():
    (axes,) = build_figure(points(NAMES, HITS), NAMES, ATTACKS).axes
    places = sorted(float(np.asarray(line.get_xdata())[1]) for line in axes.lines)
    assert len(set(places)) == len(NAMES)
    assert max(places) - min(places) < 50  # nearer to their own value than to the next
    assert np.mean(places) == pytest.approx(100)


def test_legend_does_not_overlap_the_panels():
    for others in ([], [{"threat.norm": "linf"}, {"threat.norm": "l2"}]):
        shown = build_figure(points(NAMES, HITS, *others), NAMES, ATTACKS)
        shown.draw_without_rendering()
        (legend,) = shown.legends
        assert [text.get_text() for text in legend.get_texts()] == NAMES
        for axes in shown.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_other_swept_options_become_panels():
    others = [{"threat.norm": norm} for norm in ("linf", "l2")]
    shown = build_figure(points(NAMES, HITS, *others), NAMES, ATTACKS)
    assert [axes.get_title() for axes in panels(shown)] == ["linf", "l2"]
    assert all(list(lines(axes)) == NAMES for axes in panels(shown))
    five = [{"draws": str(n)} for n in range(5)]
    assert len(panels(build_figure(points(NAMES, HITS, *five), NAMES, ATTACKS))) == 5


def test_second_option_becomes_lines_for_clean_and_robust_alone():
    names, others = ["clean", "robust"], [{"weight": "0"}, {"weight": "8"}]
    shown = build_figure(points(names, HITS, *others), names, ["pgd"])
    assert [axes.get_ylabel() for axes in shown.axes] == ["clean accuracy, %", "robust accuracy, %"]
    assert all(list(lines(axes)) == ["0", "8"] for axes in shown.axes)


def test_robust_line_is_left_out_if_it_equals_the_only_attack():
    names = ["clean", "white box", "robust", "DW-box"]
    same = points(names, HITS | {"robust": HITS["white box"]})
    assert legible(same, names, ["white box"]) == ["clean", "white box", "DW-box"]
    assert legible(points(names, HITS), names, ["white box"]) == names  # robust differs here
    alone = ["clean", "robust"]  # the table calls the only attack robust
    assert legible(points(alone, HITS), alone, ["white box"]) == alone


def test_only_the_lowest_of_many_attacks_are_drawn():
    attacks = [f"attack {i}" for i in range(9)]
    names = ["clean", *attacks, "robust", "DW-box"]
    hits = {name: 90 - 7 * i for i, name in enumerate(attacks)} | HITS
    (axes,) = build_figure(points(names, hits), names, attacks).axes
    assert list(lines(axes)) == ["clean", *attacks[4:], "robust", "DW-box"]
    assert len(lines(axes)) == MAX_LABELS
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == MAX_LABELS


def test_words_and_single_numbers_become_rows_and_not_an_axis():
    for values in (["0.1"], ["DDPM", "DDIM"]):
        shares = points(NAMES, HITS)[0].shares
        shown = build_figure(
            [Point({"purifier": value}, shares) for value in values], NAMES, ATTACKS
        )
        ticks = [tick.get_text() for tick in shown.axes[0].get_yticklabels()]
        assert ticks == (["purifier 0.1"] if len(values) == 1 else values)
        assert shown.axes[0].get_xlabel() == "accuracy per draw, %"


def test_sweep_over_seeds_alone_is_drawn():
    (point, *_) = points(NAMES, HITS)
    drawing = figure([Point({}, point.shares)], NAMES, ATTACKS)
    assert imread(io.BytesIO(drawing.png)).std() > 0.01
