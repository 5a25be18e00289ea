"""The report's charts, one by one."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from cawa_fast.recipes.report import ablation_charts, class_charts, epoch_charts, figures, gallery

COLOURS = figures.Colours(2, 10)


def test_gain_chart_names_classes_and_places_dots() -> None:
    gains = [
        class_charts.Gain("road", 0.4, [(1.5, "run1")]),
        class_charts.Gain("pole", 0.004, [(-7.25, "run1")]),
        class_charts.Gain("none", 0.01, [(None, "run1")]),
        class_charts.Gain("unseen", 0.0, [(3.0, "run1")]),
    ]
    figure = class_charts.gain_chart(gains, COLOURS.stand_in, (600, 300))
    axes = figure.axes[0]
    dots = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"}
    assert dots == {(0.4, 1.5), (0.004, -7.25)}
    low, high = axes.get_ylim()
    assert low < -7.25
    assert high > 1.5
    assert {text.get_text() for text in axes.texts} == {"road", "pole"}


def test_names_in_a_crowd_do_not_overlap() -> None:
    gains = [class_charts.Gain(f"class{k}", 0.01 * (1 + k / 40), [(k % 5 * 0.01, "run1")]) for k in range(30)]
    figure = class_charts.gain_chart(gains, COLOURS.stand_in, (600, 300))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 1 <= len(boxes) < 30
    for k, box in enumerate(boxes):  # a hair of overlap: letters differ in width
        assert not any(box.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8)) for other in boxes[:k])


def test_names_cover_no_dot() -> None:
    changes = np.random.default_rng(1).normal(0, 5, 150)
    gains = [
        class_charts.Gain(f"class number {k} of the set", 0.0001 * 1.05**k, [(change, "run1")])
        for k, change in enumerate(changes)
    ]
    axes = class_charts.gain_chart(gains, COLOURS.stand_in, (960, 400), most_labels=40).axes[0]
    axes.figure.draw_without_rendering()
    dots = axes.transData.transform([(one.share, one.gains[0][0]) for one in gains])
    assert axes.texts
    for text in axes.texts:
        box = text.get_window_extent().shrunk(0.9, 0.6)  # letters differ in width, and few reach below the line
        assert not any(box.contains(*dot) for dot in dots)


def test_browser_draws_what_the_font_lacks(recwarn: pytest.WarningsRecorder) -> None:
    series = [epoch_charts.Series("道路", [1, 2], [3.0, 4.0], "run0")]
    figure = epoch_charts.line_chart(series, COLOURS.stand_in, (300, 200))
    assert "道路" in figures.to_svg(figure, COLOURS, "x", "alt")
    assert not recwarn.list


def test_time_is_the_epoch_s_where_parts_overlap() -> None:
    figure = epoch_charts.time_bars([("cawa", {"data": 1.5, "forward": 2.0}, 2.5)], COLOURS.stand_in, 960)
    assert [text.get_text() for text in figure.axes[0].texts] == ["cawa, 2.50 s"]
    assert figure.axes[0].get_xlim()[1] == 3.5


def test_class_grid_shows_the_values() -> None:
    values = np.array([[0.5, 1.0, 2.0], [np.nan, 4.0, 0.25]])
    for kind in ("share", "factor", "amount"):
        figure = class_charts.class_grid(values, ["a", "$b$"], [3, 6, 9], COLOURS.stand_in, 470, title="x", kind=kind)
        image = figure.axes[0].images[0]
        assert np.array_equal(np.ma.filled(image.get_array(), np.nan), values, equal_nan=True)
        assert 'href="data:image/png' in figures.to_svg(figure, COLOURS, "grid", "alt")
    norm = image.norm
    assert (norm.vmin, norm.vmax) == pytest.approx((0.25 / 1.02, 4 * 1.02))
    factor = class_charts.class_grid(values, ["a", "b"], [1, 2, 3], COLOURS.stand_in, 470, title="x", kind="factor")
    assert factor.axes[0].images[0].norm.vmin * factor.axes[0].images[0].norm.vmax == pytest.approx(1)
    empty = class_charts.class_grid(
        np.full((2, 1), np.nan), ["a", "b"], [1], COLOURS.stand_in, 470, title="x", kind="amount"
    )
    assert "svg" in figures.to_svg(empty, COLOURS, "grid", "alt")


def test_confusion_chart_is_in_shares_of_the_rows() -> None:
    matrix = np.array([[8, 2, 0], [1, 1, 2], [0, 0, 0]])
    figure = class_charts.confusion_chart(matrix, ["a", "b", "c"], COLOURS.stand_in, 470)
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown[:2], [[0.8, 0.2, 0], [0.25, 0.25, 0.5]])
    assert shown.mask[2].all()  # a class without ground truth has no shares
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["20", "25", "25", "50", "80"]
    many = class_charts.confusion_chart(np.eye(150, dtype=int), [f"c{k}" for k in range(150)], COLOURS.stand_in, 470)
    assert not many.axes[0].texts


def test_dots_and_sweeps_show_every_seed() -> None:
    rows = [
        ablation_charts.Dots("one", "run0", [[1.0, 2.0], [5.0]]),
        ablation_charts.Dots("two", "run1", [[3.0], []]),
    ]
    for width in (960, 360):
        figure = ablation_charts.dot_chart(rows, ["left", "right"], COLOURS.stand_in, width, against=0)
        left, right = figure.axes
        full = [line for line in left.lines if line.get_markersize() == 7.5]
        assert [float(line.get_xdata()[0]) for line in full] == [1.5, 3.0]
        assert len([line for line in right.lines if line.get_markersize() == 7.5]) == 1
        assert {"one", "two"} == {text.get_text() for text in left.texts}
    curve = ablation_charts.Curve("a", "run0", [0.0, 1.0], [10.0, 20.0], [None, 2.0], bold=True)
    figure = ablation_charts.sweep_chart([curve], COLOURS.stand_in, (500, 300), setting="delta", used=0.5)
    assert figure.axes[0].get_ylim()[1] > 22
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1"]


@pytest.mark.parametrize("width", [960, 470, 360])
def test_charts_hold_long_names(width: int) -> None:
    """However long the names: they keep within the figure, and most of it is left for the chart."""
    names = [
        f"television receiver, television set, telly, idiot box, boob tube, goggle box, number {k}" for k in (1, 2)
    ]
    series = [epoch_charts.Series(name, [1, 2], [3.0, 4.0], "run0") for name in names]
    dots = [ablation_charts.Dots(name, "run0", [[1.0]]) for name in names]
    curves = [ablation_charts.Curve(name, "run0", [0.0, 1.0], [10.0, 20.0], [None, 2.0]) for name in names]
    values = np.array([[0.5, 1.0], [2.0, 4.0]])
    paint, options = COLOURS.stand_in, {"title": "x", "kind": "share"}
    figures = [
        epoch_charts.line_chart(series, paint, (width, 300), show_last=True),
        epoch_charts.time_bars([(name, {"data": 1.0}, 1.0) for name in names], paint, width),
        class_charts.class_grid(values, names, [1, 2], paint, width, **options),
        class_charts.confusion_chart(np.eye(2, dtype=int), names, paint, width),
        ablation_charts.dot_chart(dots, ["x"], paint, width, against=0),
        ablation_charts.sweep_chart(curves, paint, (width, 300), setting="delta"),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert axes.get_window_extent().width >= 0.3 * width
        shown = [text for text in (*axes.texts, *axes.get_yticklabels()) if "number" in text.get_text()]
        assert len({text.get_text() for text in shown}) == 2
        for text in shown:
            assert text.get_window_extent().x0 >= -1
            assert text.get_window_extent().x1 <= width + 1


def test_classes_of_every_data_set_span_the_colours() -> None:
    colours = figures.Colours(2, 150)
    for classes in (2, 11, 150):
        names = [colours.of_class(rank, classes) for rank in range(classes)]
        assert (names[0], names[-1]) == ("class0", "class149")
        assert len(set(names)) == classes
        assert set(names) <= colours.light.keys()
    assert colours.of_class(0, 1) == "class0"


def test_runs_of_one_colour_differ_in_another_way() -> None:
    colours = figures.Colours(10, 2)
    assert colours.light["run6"] == colours.light["run0"]
    series = [epoch_charts.Series(f"run{k}", [1, 2], [3.0, 4.0], f"run{k}") for k in range(10)]
    axes = epoch_charts.line_chart(series, colours.stand_in, (960, 300)).axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines[:10]}
    assert [line.get_linestyle() for line in axes.lines[:10]] == ["-"] * 6 + ["--"] * 4
    assert len(looks) == 10
    gains = [class_charts.Gain("road", 0.4, [(1.0 + k, f"run{k}") for k in range(10)])]
    dots = [
        line
        for line in class_charts.gain_chart(gains, colours.stand_in, (600, 300)).axes[0].lines
        if len(line.get_xdata()) == 1
    ]
    assert [line.get_marker() for line in dots] == ["o"] * 6 + ["s"] * 4


def test_legend_of_many_runs_stays_within_the_figure() -> None:
    names = [(f"median_frequency-s{k}", f"run{k}") for k in range(10)]
    lines = [epoch_charts.Series(None, [1, 2], [3.0, 4.0], colour) for _, colour in names]
    for shown in (names[:2], names):
        figure = epoch_charts.panels([("road", lines)], shown, figures.Colours(10, 2).stand_in)
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * 72
        boxes = [text.get_window_extent() for text in figure.texts]
        assert len(boxes) == len(shown)
        for k, box in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= width
            assert box.y1 <= height
            assert box.y0 > figure.axes[0].get_window_extent().y1
            assert not any(box.overlaps(other) for other in boxes[:k])


def test_large_photographs_are_averaged_and_large_maps_are_not() -> None:
    stripes = np.zeros((64, 1280, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    for kind, shades in (("photo", {100}), ("map", {0, 200})):
        source = gallery.Tile(Image.fromarray(stripes), "x", "x", kind=kind).source
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        assert shown.shape == (32, 640, 3)
        assert all(min(abs(int(value) - shade) for shade in shades) <= 5 for value in np.unique(shown[:, 5:-5]))
