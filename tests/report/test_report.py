"""The report: reading runs, the comparison table, and the page."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from rich.console import Console

from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.report import epoch_charts, figures, inputs, report
from cawa_fast.recipes.runs import compare, read
from tests.support.fake_runs import ABSENT, Outline, fake_run, last_record


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [fake_run(root / f"street-compact-{name}-s0", name) for name in ("uniform", "cawa")]


@pytest.fixture(scope="module")
def page_file(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert report.write_report(folders, out, images=2, png=True) == out
    return out


@pytest.fixture(scope="module")
def page(page_file: Path) -> str:
    return page_file.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- reading


def test_load_run_reads_what_training_wrote(folders: list[Path]) -> None:
    run = read.load_run(folders[1])
    assert run.label == "street-compact-cawa-s0"
    assert run.epochs == [1, 2, 3, 4]
    assert run.adaptive
    assert run.final == last_record(folders[1])
    assert run.best["miou"] == max(run.column("miou"))
    assert not read.load_run(folders[0]).adaptive


@pytest.mark.parametrize("name", ["config.json", "dataset.json", "metrics.jsonl"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = fake_run(tmp_path / "run", "uniform", checkpoint=False)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder / name)) + r".*cawa-fast train"):
        read.load_run(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        read.load_run(tmp_path / "nowhere")


def test_missing_checkpoint_is_named_and_not_needed_without_images(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", "uniform", checkpoint=False)
    with pytest.raises(FileNotFoundError, match=r"latest\.pt.*images=0"):
        report.write_report([folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    report.write_report([folder], tmp_path / "page.html", images=0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"epoch": 1', r"metrics\.jsonl, line 1 .*--resume"),
        ("metrics.jsonl", "", "no epoch was finished"),
        ("metrics.jsonl", '{"epoch": 1, "iou": [0.5]}', "line 1 is not an epoch's record .*'miou'"),
        (
            "metrics.jsonl",
            json.dumps(dict.fromkeys(read._RECORD, 1) | {"iou": [0.5]}),
            "1 classes, but dataset.json names 10",
        ),
        ("config.json", "{", r"config\.json is not JSON"),
        ("dataset.json", "[]", "no JSON object"),
        ("dataset.json", '{"class_names": []}', "lacks ignore_index, palette, train_pixels"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = fake_run(tmp_path / "run", "uniform", checkpoint=False)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read.load_run(folder)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, folders: list[Path]) -> None:
    other = fake_run(tmp_path / "other", "uniform", checkpoint=False)
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(description | {"class_names": [f"c{k}" for k in range(10)]}))
    with pytest.raises(ValueError, match="different classes"):
        report.write_report([folders[0], other], tmp_path / "page.html")
    with pytest.raises(ValueError, match="different classes"):
        compare.comparison_table([read.load_run(folders[0]), read.load_run(other)])
    with pytest.raises(ValueError, match="given twice"):
        inputs.load_inputs([folders[0], folders[0]])
    with pytest.raises(ValueError, match="empty"):
        inputs.load_inputs([])
    with pytest.raises(ValueError, match="images must be"):
        report.write_report(folders, tmp_path / "page.html", images=-1)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["street-compact-uniform-s0", "street-compact-cawa-s0"], ["uniform", "cawa"]),
        (["a-cawa-s0", "a-cawa-s1"], ["s0", "s1"]),
        (["cawa", "cawa-long"], ["cawa", "cawa-long"]),
        (["alone-s0"], ["alone-s0"]),
    ],
)
def test_labels_leave_out_what_all_names_share(tmp_path: Path, names: list[str], labels: list[str]) -> None:
    made = [fake_run(tmp_path / name, "uniform", checkpoint=False) for name in names]
    assert [run.label for run in read.labelled([read.load_run(folder) for folder in made])] == labels


# -------------------------------------------------------------------------------------------------------- the table


def test_table_holds_the_numbers_of_the_last_epoch(folders: list[Path]) -> None:
    loaded = read.labelled([read.load_run(folder) for folder in folders])
    rows = compare.comparison_table(loaded)
    records = [last_record(folder) for folder in folders]
    classes = [row for row in rows if row.index is not None]
    assert [row.share for row in classes] == sorted((row.share for row in classes), reverse=True)
    assert [row.label for row in classes if row.rare] == ["pole", "person", "traffic_sign", "rider"]
    for row in classes:
        assert [cell.final for cell in row.cells] == [record["iou"][row.index] for record in records]
        assert [cell.best for cell in row.cells] == [run.best["iou"][row.index] for run in loaded]
        assert (row.cells[0].weight, row.cells[0].csps) == (None, None)
        assert row.cells[1].weight == records[1]["weight"][row.index]
        assert row.cells[1].csps == records[1]["csps"][row.index]
        assert row.cells[0].difference is None
        if row.index == ABSENT:
            assert row.cells[1].difference is None
        else:
            assert row.cells[1].difference == records[1]["iou"][row.index] - records[0]["iou"][row.index]

    totals = {row.label: row for row in rows if row.index is None}
    assert [cell.final for cell in totals["mIoU"].cells] == [record["miou"] for record in records]
    rare = totals["mIoU of 4 rare classes"]  # one of the four has no ground truth
    assert rare.cells[1].final == pytest.approx(sum(records[1]["iou"][k] for k in (6, 7, 8)) / 3)
    assert totals["pixel accuracy"].cells[0].final == records[0]["pixel_accuracy"]
    assert totals["time per epoch"].cells[0].final == pytest.approx(records[0]["seconds"]["total"])
    assert totals["AWA overhead"].cells[0].final is None
    assert totals["AWA overhead"].cells[1].final == pytest.approx(records[1]["awa_overhead"])


def test_times_leave_out_the_first_epoch(folders: list[Path], tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", "cawa", checkpoint=False)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steady = records[0]["seconds"]["total"]
    records[0]["seconds"]["total"] = 1000.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    seconds = read.load_run(folder).seconds()
    assert seconds["total"] == pytest.approx(steady)
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(steady)
    assert seconds["other"] == pytest.approx(0.1)


def test_text_of_numbers() -> None:
    row = compare.Row("x", ())
    assert [row.text(value) for value in (0.1234, -0.5, None)] == ["12.3", "−50.0", "–"]
    assert [row.text(value, signed=True) for value in (0.01, -0.01)] == ["+1.0", "−1.0"]
    assert [row.text(value, signed=True) for value in (0.0, 1e-6, -1e-6)] == ["0.0"] * 3  # no sign without a digit
    assert compare.Row("t", (), unit="s", digits=2).text(3.14159) == "3.14"


def test_terminal_table(folders: list[Path]) -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(compare.terminal_table([read.load_run(folder) for folder in folders]))
    text = console.file.getvalue()
    record = last_record(folders[1])
    for name in build_dataset("street", split="val", length=1).class_names:
        assert name in text
    assert f"{100 * record['miou']:.1f}" in text
    assert f"{record['weight'][6]:.2f}" in text


def test_terminal_table_shows_brackets_in_names(tmp_path: Path) -> None:
    made = [fake_run(tmp_path / name, "uniform", checkpoint=False) for name in ("[bold]a", "b")]
    console = Console(width=200, file=io.StringIO())
    console.print(compare.terminal_table([read.load_run(folder) for folder in made]))
    assert "[bold]a" in console.file.getvalue()


# --------------------------------------------------------------------------------------------------------- the page


def test_page_refers_to_no_other_file(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert not re.findall(r"url\((?!#|[\"']?data:)", page)


def test_page_is_well_formed_and_its_images_have_descriptions(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.pictures
    assert all(picture.get("alt") or picture.get("aria-label") for picture in outline.pictures)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(outline.ids)


def test_charts_follow_the_light_or_dark_theme(page: str) -> None:
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", page)), set(re.findall(r"(--[\w-]+):", page))
    assert used <= defined
    assert "prefers-color-scheme: dark" in page
    assert re.search(r"\.chart[^{]*\{ filter: var\(--chart-filter\)", page)
    charts = [picture for picture in Outline(page).pictures if "svg+xml" in str(picture["src"])]
    assert charts
    assert all(chart["class"] == "chart" for chart in charts)


def test_page_shows_every_class_run_and_number(page: str, folders: list[Path]) -> None:
    text = Outline(page).text
    for folder, label in zip(folders, ("uniform", "cawa"), strict=True):
        record = last_record(folder)
        assert label in text
        shown = [record["miou"], record["pixel_accuracy"], *record["iou"], *record["csps"]]
        for value in shown:
            assert value is None or f"{100 * value:.1f}" in text
    for value in last_record(folders[1])["weight"]:
        assert f"{value:.2f}" in text
    for name in build_dataset("street", split="val", length=1).class_names:
        assert text.count(name) >= 3  # table, panel, legend
    assert "with one seed" in text
    assert "not labelled" in text


def test_png_files(page_file: Path) -> None:
    files = {file.name for file in page_file.parent.glob("*.png")}
    expected = ("miou", "class-iou", "gain", "weights-1", "csps-1", "confusion-0", "confusion-1", "time")
    expected += tuple(f"grid-{name}-1" for name in ("weight", "csps", "base-weight", "ratio-weight"))
    expected += ("gallery-1", "gallery-2")
    assert files == {f"report-{name}.png" for name in expected}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in page_file.parent.glob("*.png"))
    assert {file.name for file in page_file.parent.iterdir()} == files | {"report.html"}  # no temporary files


@pytest.mark.parametrize("weighting", ["uniform", "cawa"])
def test_one_run_alone(tmp_path: Path, weighting: str) -> None:
    folder = fake_run(tmp_path / "only", weighting, epochs=1)
    text = Outline(report.write_report([folder], tmp_path / "page.html", images=1).read_text()).text
    assert "1 run of compact" in text
    assert ("AWA overhead" in text) == (weighting == "cawa")
    assert "Differences are to" not in text


def test_notes_name_unfinished_runs_and_seeds(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / f"cawa-s{seed}", "cawa", seed=seed, checkpoint=False) for seed in (0, 1)]
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines()
    (folders[1] / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    text = Outline(report.write_report(folders, tmp_path / "page.html", images=0).read_text()).text
    assert "s1 is not finished: 2 of 4 epochs" in text
    assert "different numbers of epochs" in text
    assert "2 runs share all settings but the seed" in text


def test_page_escapes_names(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / 'a<b>&"c', "cawa", checkpoint=False)
    description = json.loads((folder / "dataset.json").read_text())
    description["class_names"][0] = '<i>road & "$x$'
    (folder / "dataset.json").write_text(json.dumps(description))
    outline = Outline(report.write_report([folder], tmp_path / "page.html", images=0).read_text())
    assert outline.open == []
    assert '<i>road & "$x$' in outline.text
    assert 'a<b>&"c' in outline.text


def test_old_page_survives_a_failure(tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cawa_fast.recipes.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(folders, out, images=0)
    assert out.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


# ---------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_spread_keeps_gap_and_range(count: int) -> None:
    wanted = [10 * math.sin(7 * k) + 12 for k in range(count)]
    places = figures.spread(wanted, 2, 0, 40)
    assert all(-1e-9 <= place <= 40 + 1e-9 for place in places)
    ordered = [places[k] for k in sorted(range(count), key=wanted.__getitem__)]
    assert all(b - a >= 2 - 1e-9 for a, b in itertools.pairwise(ordered))


def test_charts_without_values() -> None:
    empty = epoch_charts.Series("none", [1, 2], [None, None], "red")
    zero = epoch_charts.Series("zero", [1, 2], [0.0, 0.0], "blue")
    for log in (False, True):
        figure = epoch_charts.line_chart([empty, zero], 300, 200, log=log)
        assert b"zero" in figures.to_svg(figure)


def test_caption_names_classes_without_validation_pixels(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, name, checkpoint=False) for name in ("uniform", "cawa")]
    page = report.write_report(folders, tmp_path / "page.html", images=0).read_text()
    absent = json.loads((folders[0] / "dataset.json").read_text())["class_names"][ABSENT]
    assert f"Not in the validation images: {absent}." in page


@pytest.mark.slow
def test_ratio_weight_is_shown_only_if_the_run_used_it(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", "cawa", checkpoint=False)
    page = report.write_report([folder], tmp_path / "page.html", images=0)
    said = (
        "The change of the score gives the ratio weight",
        '<th scope="col">ratio</th>',
        "Ratio weight (Eq. 6) of each class",
    )
    assert all(words in page.read_text() for words in said)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [json.dumps(record | {"ratio_weight": [1.0] * 9 + [None]}) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(plain) + "\n")
    page = report.write_report([folder], tmp_path / "page.html", images=0)
    assert "Base weight (Eq. 5) of each class" in page.read_text()
    assert not any(words in page.read_text() for words in said)
    plain = [json.dumps(record | {"ratio_weight": None}) for record in records]  # as of a rule without
    (folder / "metrics.jsonl").write_text("\n".join(plain) + "\n")
    report.write_report([folder], tmp_path / "page.html", images=0)
