"""Sections of the report: models by dataset, ablations, changes of the IoU, confusion matrices, example images."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from click.testing import CliRunner
from matplotlib.figure import Figure
from rich.console import Console

from cawa_fast.cli import main
from cawa_fast.recipes.ablation.results import with_statistics
from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.report import ablation_section, dataset_section, inputs, overview, report
from cawa_fast.recipes.report.gallery import _choose, make_scenes
from cawa_fast.recipes.runs import compare, read
from tests.support.fake_runs import ABSENT, Outline, ablation, fake_run, last_record


def changed(folder: Path, **settings: Any) -> Path:
    """The run with other settings."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def renamed_classes(folder: Path, prefix: str) -> Path:
    description = json.loads((folder / "dataset.json").read_text())
    description["class_names"] = [f"{prefix}{k}" for k in range(10)]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


# ---------------------------------------------------------------------------------------------- models by dataset


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Uniform and cawa with two models on two datasets; one pair of model and dataset is missing, one has two seeds."""
    root = tmp_path_factory.mktemp("matrix")
    made = []
    for dataset, model, weighting, seed in (
        *(("street", "compact", weighting, seed) for weighting in ("uniform", "cawa") for seed in (0, 1)),
        *(("street", "ocrnet", weighting, 0) for weighting in ("uniform", "cawa")),
        *(("camvid", "compact", weighting, 0) for weighting in ("uniform", "cawa")),
    ):
        folder = root / f"{dataset}-{model}-{weighting}-s{seed}"
        fake_run(folder, weighting, seed=seed + 10 * len(model), checkpoint=False)
        changed(folder, dataset=dataset, model=model, seed=seed)
        made.append(renamed_classes(folder, "c") if dataset == "camvid" else folder)
    return made


def test_overview_holds_means_and_paired_differences(matrix: list[Path]) -> None:
    table = overview.make_overview([read.load_run(folder) for folder in matrix])
    assert table is not None
    assert table.datasets == ("street", "camvid")
    assert [(line.model, line.method) for line in table.lines] == [
        ("compact", "uniform"),
        ("compact", "cawa"),
        ("ocrnet", "uniform"),
        ("ocrnet", "cawa"),
    ]
    final = {folder.name: last_record(folder)["miou"] for folder in matrix}
    of = "street-compact-{}-s{}"
    means = [np.mean([final[of.format(name, seed)] for seed in (0, 1)]) for name in ("uniform", "cawa")]
    cells = [line.entries[0] for line in table.lines[:2]]
    assert [cell.summary.mean for cell in cells if cell] == pytest.approx(means)
    assert [cell.summary.n for cell in cells if cell] == [2, 2]
    assert cells[0] is not None
    assert cells[1] is not None
    assert cells[0].paired is None
    differences = [final[of.format("cawa", seed)] - final[of.format("uniform", seed)] for seed in (0, 1)]
    assert cells[1].paired is not None
    assert list(cells[1].paired.differences.values()) == pytest.approx(differences)
    assert [line.entries[1] is None for line in table.lines] == [False, False, True, True]


def test_overview_tells_settings_apart(tmp_path: Path) -> None:
    made = [changed(fake_run(tmp_path / f"tau{tau}", "cawa", checkpoint=False), tau=tau) for tau in (0.3, 0.5)]
    made.append(changed(fake_run(tmp_path / "other", "cawa", checkpoint=False), model="ocrnet", threads=7))
    table = overview.make_overview([read.load_run(folder) for folder in made])
    assert table is not None
    assert [line.method for line in table.lines] == ["cawa (tau 0.3)", "cawa (tau 0.5)", "cawa"]
    assert overview.make_overview([read.load_run(made[0])]) is None


def test_same_settings_on_two_devices_are_two_lines(tmp_path: Path) -> None:
    made = [changed(fake_run(tmp_path / device, "cawa", checkpoint=False), device=device) for device in ("cpu", "auto")]
    made.append(changed(fake_run(tmp_path / "other", "cawa", checkpoint=False), model="ocrnet"))
    table = overview.make_overview([read.load_run(folder) for folder in made])
    assert table is not None
    assert [line.method for line in table.lines] == ["cawa", "cawa, auto", "cawa"]


@pytest.mark.slow
def test_page_of_several_datasets(matrix: list[Path], tmp_path: Path) -> None:
    page = report.write_report(matrix, tmp_path / "page.html", images=0, png=True).read_text()
    outline = Outline(page)
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert "8 runs on 2 datasets" in outline.text
    table = overview.make_overview([read.load_run(folder) for folder in matrix])
    assert table is not None
    for line in table.lines:
        for entry in line.entries:
            assert entry is None or (entry.mean in outline.text and entry.difference in outline.text)
    for name in (*build_dataset("street", split="val", length=1).class_names, *(f"c{k}" for k in range(10))):
        assert name in outline.text
    files = {file.name for file in tmp_path.glob("*.png")}
    assert {"page-street-miou.png", "page-camvid-miou.png"} <= files


# ------------------------------------------------------------------------------------------------------- ablations


def test_page_of_an_ablation(tmp_path: Path) -> None:
    result = ablation(tmp_path / "made")
    page = report.write_report([tmp_path / "made"], tmp_path / "page.html", png=True).read_text()
    outline = Outline(page)
    assert outline.open == []
    assert "Ablation on street" in outline.text
    assert "13 of 14 entries finished" in outline.text
    for row in result["rows"]:
        assert row["title"] in outline.text
        assert f"{100 * row['summary']['miou']['mean']:.1f}" in outline.text
    assert "+5.1 [" in outline.text  # cawa: 5.1 points on both seeds
    assert "Models by dataset" not in outline.text  # there are no runs
    assert "cawa-fast ablate --rows <all>" in outline.text
    for heading in result["groups"].values():
        assert heading in outline.text
    files = {file.name for file in tmp_path.glob("*.png")}
    assert files == {f"page-ablation-{name}.png" for name in ("rivals", "delta", "gain")}  # one row is no chart


@pytest.mark.slow
def test_ablation_folder_brings_its_first_runs(tmp_path: Path) -> None:
    """The folder of an ablation adds the runs of the baseline and of CAWA; the file alone adds none."""
    ablation(tmp_path / "made")
    for name in ("uniform", "cawa"):
        fake_run(tmp_path / "made" / f"{name}-s0", name, checkpoint=False)
    loaded = inputs.load_inputs([tmp_path / "made"])
    assert [run.path.name for run in loaded.runs] == ["uniform-s0", "cawa-s0"]
    (tmp_path / "kept.json").write_bytes((tmp_path / "made" / "ablation.json").read_bytes())
    loaded = inputs.load_inputs([tmp_path / "kept.json"])
    assert (len(loaded.runs), len(loaded.ablations)) == (0, 1)

    done = CliRunner().invoke(
        main, ["report", str(tmp_path / "made"), "--images", "0", "--out", str(tmp_path / "page.html")]
    )
    assert done.exit_code == 0, done.output
    assert "the cawa" not in done.output
    assert "log_frequency" in done.output
    text = Outline((tmp_path / "page.html").read_text()).text
    assert "Ablation and runs on street" in text
    assert "uniform and cawa on street" in text


def test_run_given_alone_and_by_its_ablation_is_loaded_once(tmp_path: Path) -> None:
    ablation(tmp_path / "made")
    run = fake_run(tmp_path / "made" / "uniform-s0", "uniform", checkpoint=False)
    assert len(inputs.load_inputs([run, tmp_path / "made"]).runs) == 1
    assert len(inputs.load_inputs([tmp_path / "made", run]).runs) == 1


def test_ablation_with_cawa_as_baseline_loads_it_once(tmp_path: Path) -> None:
    result = ablation(tmp_path / "made")
    (tmp_path / "made" / "ablation.json").write_text(json.dumps(result | {"against": "cawa"}))
    fake_run(tmp_path / "made" / "cawa-s0", "cawa", checkpoint=False)
    assert [run.path.name for run in inputs.load_inputs([tmp_path / "made"]).runs] == ["cawa-s0"]


@pytest.mark.slow
def test_rare_classes_are_those_of_the_ablation(tmp_path: Path) -> None:
    """``cawa-fast ablate --rare 0.01``: only one class is rare, in the section of the runs as well."""
    result = ablation(tmp_path / "made")
    (tmp_path / "made" / "ablation.json").write_text(json.dumps(result | {"rare": {"part": 0.01, "classes": [9]}}))
    runs = [fake_run(tmp_path / "made" / f"{name}-s0", name, checkpoint=False) for name in ("uniform", "cawa")]
    alone = fake_run(tmp_path / "alone", "cawa", checkpoint=False)
    for given, part, rare in (
        ([tmp_path / "made"], 0.01, 1),
        (runs, 0.01, 1),
        ([alone], 0.2, 4),
        ([alone, runs[0]], 0.01, 1),
    ):
        loaded = inputs.load_inputs(given)
        assert loaded.rare_part("street") == part
        page = report.write_report(loaded, tmp_path / "page.html", images=0).read_text()
        text = Outline(page).text
        assert f"mIoU of {rare} rare classes" in text
        assert f"rare: below {100 * part / 10:.2g} % of the pixels" in text
        console = Console(width=200, file=io.StringIO())
        console.print(report.terminal_tables(loaded)[-1])
        assert f"mIoU of {rare} rare classes" in console.file.getvalue()


def test_ablation_file_beside_an_unrelated_run_is_ignored(tmp_path: Path) -> None:
    result = ablation(tmp_path)
    (tmp_path / "ablation.json").write_text(json.dumps(result | {"rare": {"part": 0.01, "classes": [9]}}))
    run = fake_run(tmp_path / "another", "cawa", checkpoint=False)
    assert inputs.load_inputs([run]).rare_part("street") == 0.2


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1}', '{"format": 1, "rows": [{}]}', "\x00", "null"])
def test_a_broken_ablation_file_beside_a_run_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "ablation.json").write_text(content)
    run = fake_run(tmp_path / "another", "cawa", checkpoint=False)
    assert inputs.load_inputs([run]).rare_part("street") == 0.2


def test_unknown_ablation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"ablation\.json is not a result"):
        inputs.load_inputs([tmp_path])


def test_ablation_without_rare_classes_has_no_panel_for_them(tmp_path: Path) -> None:
    result = ablation(tmp_path)
    rows = [row | {"runs": [run | {"rare_iou": None} for run in row["runs"]]} for row in result["rows"]]
    result |= {"rows": with_statistics(rows, "uniform"), "rare": {"part": 0.2, "classes": []}}
    (tmp_path / "ablation.json").write_text(json.dumps(result))
    page = report.write_report([tmp_path], tmp_path / "page.html").read_text()
    assert "IoU of rare classes, %" not in page
    assert "Rare classes: none." in Outline(page).text


def test_sweep_is_sorted_by_the_setting(tmp_path: Path) -> None:
    ablation(tmp_path)
    page = report.write_report([tmp_path], tmp_path / "page.html").read_text()
    assert "mIoU over delta: 0: 30.5 %, 0.9: 40.5 %, 1: 41.6 %." in page


# ----------------------------------------------------------------------------- changes, confusions and example images


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[read.Run]:
    root = tmp_path_factory.mktemp("pair")
    made = [fake_run(root / name, name, checkpoint=False) for name in ("uniform", "cawa")]
    return read.labelled([read.load_run(folder) for folder in made])


def test_classes_that_changed_most_are_shown(pair: list[read.Run]) -> None:
    rows = compare.comparison_table(pair)
    classes = [row for row in rows if row.index is not None]
    found = dataset_section._most_changed(classes, 1)
    before, after = (run.final["iou"] for run in pair)
    change = {k: abs(after[k] - before[k]) for k in range(10) if k != ABSENT}
    most = max(change.values())
    assert found == [k for k in sorted(change, key=lambda k: -change[k])[:6] if change[k] > 0.1 * most]
    assert dataset_section._most_changed(classes, 0) == []

    data = build_dataset("street", split="val", length=6)
    for index, listed in _choose(data, found, 3):
        present = np.unique(data.read_label(index))
        assert listed
        assert set(listed) <= set(found) & set(present.tolist())


def test_activation_maps_use_the_cam_method_of_the_run(tmp_path: Path) -> None:
    shown = {}
    for method in ("gradcam", "layercam"):
        folder = changed(fake_run(tmp_path / method, "cawa"), cam_method=method)
        (scene,) = make_scenes([read.load_run(folder)], [0], 1)
        shown[method] = scene
    prediction = [scene.tiles[2].source for scene in shown.values()]
    assert prediction[0] == prediction[1]  # the same network
    assert shown["gradcam"].maps[0].source != shown["layercam"].maps[0].source


def test_each_network_sees_images_of_its_own_size(tmp_path: Path) -> None:
    whole = fake_run(tmp_path / "whole", "cawa")
    halved = changed(fake_run(tmp_path / "halved", "cawa"), resize=[48, 96])
    (scene,) = make_scenes([read.load_run(folder) for folder in (whole, halved)], [0], 1)
    first, second = scene.tiles[2].picture, scene.tiles[3].picture
    assert first.size == second.size == (192, 96)
    assert first.tobytes() != second.tobytes()  # the same network


def test_numbers_of_three_epochs(pair: list[read.Run]) -> None:
    """The paper's table 4: from frequent to rare, at the first, a middle and the last epoch."""
    classes = [row for row in compare.comparison_table(pair) if row.index is not None]
    moments = dataset_section._moments(pair[1], classes)
    assert moments["epochs"] == [1, 2, 4]
    row, cells = moments["lines"][0]
    assert row.label == classes[0].label
    last = pair[1].final
    assert cells[8:] == [
        f"{100 * last['csps'][row.index]:.1f}",
        *(f"{last[column][row.index]:.2f}" for column in ("base_weight", "ratio_weight", "weight")),
    ]
    absent = next(cells for row, cells in moments["lines"] if row.index == ABSENT)
    assert absent[:4] == ["–", "–", "–", "1.00"]


def test_page_lists_the_most_frequent_confusions(pair: list[read.Run], tmp_path: Path) -> None:
    text = Outline(report.write_report([run.path for run in pair], tmp_path / "page.html", images=0).read_text()).text
    names = pair[0].dataset["class_names"]
    for run in pair:
        matrix = np.array(run.confusion(), dtype=float)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        np.fill_diagonal(share, 0)
        truth, taken = np.unravel_index(share.argmax(), share.shape)
        assert f"{names[truth]} → {names[taken]} {100 * share.max():.0f} %" in text


def test_confusion_of_another_epoch_is_not_shown(pair: list[read.Run], tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", "cawa", checkpoint=False)
    assert read.load_run(folder).confusion() is not None
    kept = json.loads((folder / "confusion.json").read_text())
    (folder / "confusion.json").write_text(json.dumps(kept | {"epoch": 3}))
    assert read.load_run(folder).confusion() is None
    (folder / "confusion.json").unlink()
    assert read.load_run(folder).confusion() is None
    text = Outline(report.write_report([folder], tmp_path / "page.html", images=0).read_text()).text
    assert "Confusion matrix" not in text


@pytest.mark.slow
def test_captions_depend_on_the_weighting(tmp_path: Path) -> None:
    said = {}
    for rule in ("cawa", "recall"):
        folder = changed(fake_run(tmp_path / rule, "cawa", checkpoint=False), weighting=rule, scale=[0.5, 2.0])
        changed(folder, crop=[96, 192])
        page = report.write_report([folder], tmp_path / f"{rule}.html", images=0).read_text()
        said[rule] = page
        assert "0.5 to 2.0" in page
        assert "96 × 192" in page
    assert "Base weight (Eq. 5)" in said["cawa"]
    assert "from which CAWA computes the weight" in said["cawa"]
    assert "(Eq. 5)" not in said["recall"]
    assert "from which CAWA computes the weight" not in said["recall"]
    assert "the rule “recall” gives the base weight" in said["recall"]


def test_sweep_shows_mean_and_standard_deviation_over_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mIoU 10, 20 and 60 % over three seeds: mean 30, standard deviation sqrt((20² + 10² + 30²) / 2) = 26.457513."""
    result = ablation(tmp_path)
    for row in result["rows"]:
        done = [run for run in row["runs"] if run["status"] == "done"]
        row["runs"] = [done[0] | {"seed": seed, "miou": miou} for seed, miou in enumerate((0.1, 0.2, 0.6))]
    result["rows"] = with_statistics(result["rows"], "uniform")
    (tmp_path / "ablation.json").write_text(json.dumps(result))
    drawn = []

    def chart(curves: Any, **_: Any) -> Figure:
        drawn.extend(curves)
        return Figure()

    monkeypatch.setattr(ablation_section, "sweep_chart", chart)
    report.write_report([tmp_path], tmp_path / "page.html")
    (miou,) = [curve for curve in drawn if curve.label == "mIoU"]
    assert miou.places == [0.0, 0.9, 1.0]
    assert miou.means == pytest.approx([30.0] * 3)
    assert miou.deviations == pytest.approx([26.457513] * 3)


def test_sweep_marks_the_value_of_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ablation(tmp_path)
    marked = []

    def chart(*_: Any, used: float | None, **__: Any) -> Figure:
        marked.append(used)
        return Figure()

    monkeypatch.setattr(ablation_section, "sweep_chart", chart)
    for delta in (0.9, 1.0, 0.5):  # no row has the last value
        result["settings"]["delta"] = delta
        (tmp_path / "ablation.json").write_text(json.dumps(result))
        report.write_report([tmp_path], tmp_path / "page.html")
    assert marked == [0.9, 1.0, None]


def test_terminal_shows_all_tables(matrix: list[Path], tmp_path: Path) -> None:
    ablation(tmp_path / "made")
    console = Console(width=220, file=io.StringIO())
    tables = report.terminal_tables(inputs.load_inputs([*matrix, tmp_path / "made"]))
    assert len(tables) == 4  # overview, ablation, two datasets
    for table in tables:
        console.print(table)
    assert "ocrnet" in console.file.getvalue()
    assert "log_frequency" in console.file.getvalue()


# ------------------------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(page: Path) -> tuple[str, str]:
    """The page's elements after loading, and what the browser's console says."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=2000", "--allow-file-access-from-files", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_page_loads_without_errors_and_fits_a_phone(matrix: list[Path], tmp_path: Path) -> None:
    ablation(tmp_path / "made")
    page = report.write_report([*matrix, tmp_path / "made"], tmp_path / "page.html", images=0)
    elements, errors = browse(page)
    assert errors == ""
    assert elements.count("<img") == page.read_text().count("<img")

    broken = tmp_path / "broken.html"  # checks that errors are found
    broken.write_text("<!DOCTYPE html><script>nothing()</script>")
    assert "nothing is not defined" in browse(broken)[1]

    for width in (390, 1100):
        measure = "<script>parent.document.title = document.documentElement.scrollWidth</script></body>"
        inner = html.escape(page.read_text().replace("</body>", measure))
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<!DOCTYPE html><iframe width="{width}" height="800" style="border:0" srcdoc="{inner}"></iframe>'
        )
        title = re.search("<title>(.*?)</title>", browse(frame)[0])
        assert title is not None
        assert int(title[1]) <= width
