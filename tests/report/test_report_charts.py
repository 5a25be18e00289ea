"""Each chart of the report."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from matplotlib.text import Text

from cawa_fast.recipes.report import ablation_charts, class_charts, epoch_charts, figures, gallery


def change(label: str, share: float, *values: float | None) -> class_charts.ClassChange:
    return class_charts.ClassChange(label, share, [(value, figures.run_style(k)) for k, value in enumerate(values, 1)])


def test_change_chart_has_a_row_per_class_and_a_dot_per_run() -> None:
    changes = [change("road", 0.4, 1.5, None), change("none", 0.1, None, None), change("pole", 0.004, -7.25, 2.0)]
    axes = class_charts.change_chart(changes).axes[0]
    dots = [(line.get_xdata()[0], round(line.get_ydata()[0])) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(1.5, 0), (-7.25, 1), (2.0, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road  40.00 %", "pole  0.40 %"]
    assert class_charts.change_chart([change("none", 0.1, None)]).axes


def test_of_many_classes_those_that_changed_most_are_drawn() -> None:
    changes = [change(f"class {k}", 0.01, float(k % 50)) for k in range(60)]
    axes = class_charts.change_chart(changes).axes[0]
    names = [label.get_text().partition("  ")[0] for label in axes.get_yticklabels()]
    assert len(names) == 40
    assert names == [one.label for one in changes if one.label in names]
    assert min(changes[int(name.split()[1])].largest for name in names) >= 10
    assert class_charts.change_caption(changes) == "The chart shows the 40 classes that changed most."
    assert class_charts.change_caption(changes[:40]) == ""


def test_svg_keeps_text_that_the_font_of_matplotlib_lacks(recwarn: pytest.WarningsRecorder) -> None:
    series = [epoch_charts.Series("道路", [1, 2], [3.0, 4.0], "red")]
    figure = epoch_charts.line_chart(series, 300, 200)
    assert "道路" in figures.to_svg(figure).decode()
    assert not recwarn.list


def test_time_bars_show_the_time_of_the_epoch_if_parts_overlap() -> None:
    figure = epoch_charts.time_bars([("cawa", {"data": 1.5, "forward": 2.0}, 2.5)])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cawa, 2.50 s"]
    assert figure.axes[0].get_xlim()[1] == 3.5


def test_class_grid_shows_the_values() -> None:
    values = np.array([[0.5, 1.0, 2.0], [np.nan, 4.0, 0.25]])
    for kind in ("share", "factor", "amount"):
        figure = class_charts.class_grid(values, ["a", "$b$"], [3, 6, 9], 470, title="x", kind=kind)
        image = figure.axes[0].images[0]
        assert np.array_equal(np.ma.filled(image.get_array(), np.nan), values, equal_nan=True)
        assert b'href="data:image/png' in figures.to_svg(figure)
    norm = image.norm
    assert (norm.vmin, norm.vmax) == pytest.approx((0.25 / 1.02, 4 * 1.02))
    factor = class_charts.class_grid(values, ["a", "b"], [1, 2, 3], 470, title="x", kind="factor")
    assert factor.axes[0].images[0].norm.vmin * factor.axes[0].images[0].norm.vmax == pytest.approx(1)
    empty = class_charts.class_grid(np.full((2, 1), np.nan), ["a", "b"], [1], 470, title="x", kind="amount")
    assert b"<svg" in figures.to_svg(empty)


def test_confusion_chart_shows_shares_of_the_rows() -> None:
    matrix = np.array([[8, 2, 0], [1, 1, 2], [0, 0, 0]])
    figure = class_charts.confusion_chart(matrix, ["a", "b", "c"])
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown[:2], [[0.8, 0.2, 0], [0.25, 0.25, 0.5]])
    assert shown.mask[2].all()  # a class without ground truth has no shares
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["20", "25", "25", "50", "80"]
    many = class_charts.confusion_chart(np.eye(150, dtype=int), [f"c{k}" for k in range(150)])
    assert not many.axes[0].texts


def test_dots_and_sweeps_show_every_seed() -> None:
    rows = [
        ablation_charts.SettingDots("one", "red", [[1.0, 2.0], [5.0]]),
        ablation_charts.SettingDots("two", "blue", [[3.0], []]),
    ]
    left, right = ablation_charts.dot_chart(rows, ["left", "right"], baseline=0).axes
    full = [line for line in left.lines if line.get_markersize() == 7.5]
    assert [float(line.get_xdata()[0]) for line in full] == [1.5, 3.0]
    assert len([line for line in right.lines if line.get_markersize() == 7.5]) == 1
    assert [label.get_text() for label in left.get_yticklabels()] == ["one", "two"]
    curve = ablation_charts.SweepCurve("a", "red", [0.0, 1.0], [10.0, 20.0], [None, 2.0], bold=True)
    figure = ablation_charts.sweep_chart([curve], setting="delta", used=0.5)
    assert figure.axes[0].get_ylim()[1] > 22
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1"]


def test_long_names_fit_into_charts() -> None:
    """Long names stay within the figure, and leave room for the chart."""
    names = [
        f"television receiver, television set, telly, idiot box, boob tube, goggle box, number {k}" for k in (1, 2)
    ]
    series = [epoch_charts.Series(name, [1, 2], [3.0, 4.0], "red") for name in names]
    dots = [ablation_charts.SettingDots(name, "red", [[1.0]]) for name in names]
    curves = [ablation_charts.SweepCurve(name, "red", [0.0, 1.0], [10.0, 20.0], [None, 2.0]) for name in names]
    values = np.array([[0.5, 1.0], [2.0, 4.0]])
    drawn = [
        epoch_charts.line_chart(series, 960, 300, show_last=True),
        epoch_charts.line_chart(series, 470, 300, show_last=True),
        epoch_charts.time_bars([(name, {"data": 1.0}, 1.0) for name in names]),
        class_charts.change_chart([change(name, 0.1, 1.0) for name in names]),
        class_charts.class_grid(values, names, [1, 2], 470, title="x", kind="share"),
        class_charts.confusion_chart(np.eye(2, dtype=int), names),
        ablation_charts.dot_chart(dots, ["x"], baseline=0),
        ablation_charts.sweep_chart(curves, setting="delta"),
    ]
    for figure in drawn:
        figures.to_svg(figure)
        width = figure.get_size_inches()[0] * 72
        axes = figure.axes[0]
        assert axes.get_window_extent().width >= 0.3 * width
        shown = [text for text in (*axes.texts, *axes.get_yticklabels()) if "number" in text.get_text()]
        assert len({text.get_text() for text in shown}) == 2
        for text in shown:
            assert text.get_window_extent().x0 >= -1
            assert text.get_window_extent().x1 <= width + 1


def test_labels_at_line_ends_do_not_overlap() -> None:
    series = [epoch_charts.Series(f"class {k}", [1, 2], [3.0, 4.0 + 0.01 * k], "red") for k in range(12)]
    figure = epoch_charts.line_chart(series, 470, 300)
    figures.to_svg(figure)
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the line to the label
    assert len(boxes) == 12
    for k, box in enumerate(boxes):
        assert not any(box.shrunk(1, 0.8).overlaps(other.shrunk(1, 0.8)) for other in boxes[:k])


def test_class_colours_span_the_scale() -> None:
    for classes in (2, 11, 150):
        colours = [figures.class_colour(rank, classes) for rank in range(classes)]
        assert (colours[0], colours[-1]) == (figures.class_colour(0, 2), figures.class_colour(1, 2))
        assert len(set(colours)) > 0.9 * classes
    assert figures.class_colour(0, 1) == figures.class_colour(0, 2)


def test_runs_of_one_colour_differ_in_line_and_marker() -> None:
    styles = [figures.run_style(number) for number in range(10)]
    assert styles[6].colour == styles[0].colour
    assert len({(style.colour, style.line) for style in styles}) == 10
    series = [
        epoch_charts.Series(f"run{k}", [1, 2], [3.0, 4.0], style.colour, style.line) for k, style in enumerate(styles)
    ]
    axes = epoch_charts.line_chart(series, 960, 300).axes[0]
    assert [line.get_linestyle() for line in axes.lines] == ["-"] * 6 + ["--"] * 4
    axes = class_charts.change_chart([change("road", 0.4, *range(1, 11))]).axes[0]
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in dots] == ["o"] * 5 + ["s"] * 5  # the baseline, run 0, has no dot


def test_legend_of_many_runs_stays_within_the_figure() -> None:
    runs = [(f"median_frequency-s{k}", figures.run_style(k)) for k in range(10)]
    lines = [epoch_charts.Series(None, [1, 2], [3.0, 4.0], style.colour, style.line) for _, style in runs]
    for shown in (runs[:2], runs):
        figure = epoch_charts.class_panels([("road", lines)], shown)
        figures.to_png(figure)
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * 72
        (legend,) = figure.legends
        assert len(legend.get_texts()) == len(shown)
        box = legend.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert figure.axes[0].get_window_extent().y1 < box.y0 < box.y1 <= height


def test_large_photographs_are_averaged_and_large_maps_are_not() -> None:
    stripes = np.zeros((64, 1280, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    for kind, shades in (("photo", {100}), ("map", {0, 200})):
        source = gallery.Tile(Image.fromarray(stripes), "x", "x", kind=kind).source
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        assert shown.shape == (32, 640, 3)
        assert all(min(abs(int(value) - shade) for shade in shades) <= 5 for value in np.unique(shown[:, 5:-5]))
