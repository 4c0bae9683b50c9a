"""Figures of the confidence along the purification, and of resubmissions."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from unfool.report.figures import evaluation, examples
from unfool.report.figures.examples import Gallery
from unfool.results.report_json import share_entry
from unfool.statistics import resubmissions

TIMES = np.array([0.1, 0.05, 0.0])


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Return figures as objects, instead of the bytes of their files."""
    for module in (evaluation, examples):
        monkeypatch.setattr(module, "draw", lambda figure: figure)


def gallery(fooled: list[int] | None) -> Gallery:
    """Three images of class 0, with the bare classifier's answers to the attacked images."""
    arrays = {"index": np.arange(3), "label": np.zeros(3, int), "times": TIMES}
    arrays["attacked_bare"] = np.array(fooled or [0, 0, 0])
    for i, name in enumerate(("clean", "attacked")):
        kinds = ("sure", "fooled", "surest") if fooled is not None else ("sure",)
        for j, kind in enumerate(kinds):
            arrays[f"{name}_{kind}"] = np.arange(9).reshape(3, 3) / 100 + 0.1 * j + 0.3 * i
    return Gallery(arrays, ["a", "b"], ["pgd"] * 3, [0.1] * 3)


def confidence(gallery: Gallery) -> Figure:
    drawn: Any = examples.confidence(gallery).drawing
    return drawn


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_each_tracked_class_has_a_panel():
    figure = confidence(gallery([0, 1, 1]))
    assert titles(figure) == [
        "in the true class (3)",
        "in the adversarial class (2)",
        "in the most likely class (3)",
    ]
    adversarial = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    expected = 100 * np.arange(9).reshape(3, 3)[1:].mean(0) / 100
    assert adversarial["clean"] == pytest.approx(expected + 10)  # of the two fooled images
    assert adversarial["attacked"] == pytest.approx(expected + 40)


def test_adversarial_panel_is_left_out_if_no_image_was_misclassified():
    figure = confidence(gallery([0, 0, 0]))
    assert titles(figure) == ["in the true class (3)", "in the most likely class (3)"]


def test_run_of_an_older_version_shows_only_the_true_class():
    assert titles(confidence(gallery(None))) == ["in the true class (3)"]


def test_resubmission_figure_includes_clean_images_and_random_noise():
    curve: Any = {
        name: [share_entry(share) for share in resubmissions(hits, 4)]
        for name, hits in (("clean", [4, 4, 3]), ("random", [4, 3, 3]), ("robust", [4, 1, 0]))
    }
    summary: Any = {"resubmission": curve | {"submissions": [1, 2, 3, 4]}}
    figure: Any = evaluation.resubmission(summary).drawing
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines][:2] == ["clean", "random noise"]
    for line, band, shares in zip(axes.lines, axes.collections, curve.values(), strict=True):
        assert line.get_xdata() == pytest.approx([1, 2, 3, 4])
        assert line.get_ydata() == pytest.approx([100 * share["accuracy"] for share in shares])
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(100 * min(share["low"] for share in shares))
        assert edges.max() == pytest.approx(100 * max(share["high"] for share in shares))
    assert len({line.get_linestyle() for line in axes.lines}) == 3
