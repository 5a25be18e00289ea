"""Names of classes, folders and rows are shown as they are written, by every command and in every kind of file."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress

from cawa_fast.cli import main
from cawa_fast.recipes.ablation.ablation import Ablation
from cawa_fast.recipes.ablation.progress import AblationDisplay, plan_table, result_table
from cawa_fast.recipes.ablation.results import markdown
from cawa_fast.recipes.ablation.rows import GROUPS, choose_rows
from cawa_fast.recipes.report.report import write_report
from cawa_fast.recipes.terminal import PlainTable, open_console, plain_column, say
from cawa_fast.recipes.text import markdown_code, markdown_text, one_line
from cawa_fast.recipes.training.progress import TrainingDisplay, epoch_table
from tests.support import trees
from tests.support.fake_runs import Outline, ablation
from tests.support.tiny_runs import TINY, arguments, invoke, run

NAMES = [
    *("[/x]", "[bold]a", "[link=file:///]b[/link]", r"b $\frac$ x", "$1", "<script>alert(1)</script>", "<b>", "&amp;"),
    *("a|b", "#1", "_x_", "*y*", "{x}", "{0}", "%s", "%(x)d", ":car: 🚗", "שלום עולם", "c:\\dir\\", "tail\\", "`tick`"),
    *("'quoted' \"twice\"", "-", "–", "1. one", "~~gone~~", "a, b", "道路", "é\u0301"),
]
ESCAPED = {
    "a\nb": r"a\nb",
    "a\tb": r"a\tb",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202eabc": r"\u202eabc",
    "\ud800": r"\ud800",
}
LONG = ("very long name " * 20).strip()


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width of tables is that of output to a file; pytest-xdist sets the width of its own terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


def seen(name: str) -> str:
    return ESCAPED.get(name, name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a name, which holds a dataset with such classes and two runs on it."""
    base = tmp_path_factory.mktemp("text") / "[bold]a $x$ b" / "%s {x}"
    data = base / "[data]"
    names = [*NAMES, *ESCAPED, LONG]
    for split in ("train", "val"):
        maps = [trees.stripes(range(len(names)), (48, 96)) for _ in range(4)]
        files = trees.folder(data, split, maps, classes=None)
        for index, file in enumerate(files):  # other images in each split
            trees.write_image(data / "images" / split / f"{file.stem}.jpg", (48, 96), seed=7 * index + len(split))
    (data / "classes.json").write_text(json.dumps(names))
    for name, weighting in (("[red]r $x$", "cawa"), ("<i>_r_|", "uniform")):
        run(base / name, replace(settings(data), weighting=weighting))
    return base


def settings(data: Path) -> Any:
    config = replace(TINY, dataset="folder", root=str(data), resize=None, train_images=None, val_images=None)
    return replace(config, epochs=1, batch_size=2)


def runs(place: Path) -> list[str]:
    return [str(place / "[red]r $x$"), str(place / "<i>_r_|")]


def assert_all_shown(output: str) -> None:
    missing = [name for name in (*NAMES, *ESCAPED) if seen(name) not in output]
    assert not missing, missing
    assert "\x1b" not in output
    assert "\u202e" not in output


def test_doctor_data(place: Path, tmp_path: Path) -> None:
    picture, findings = tmp_path / "[p].png", tmp_path / "{j}.json"
    options = ["--picture", str(picture), "--json", str(findings), "--split", "train", "--split", "val"]
    result = invoke("doctor", "data", "--dataset", "folder", "--root", str(place / "[data]"), *options)
    assert result.exit_code == 0, result.output
    assert_all_shown(result.output)
    assert f"Picture: {picture}" in result.output
    assert picture.stat().st_size > 10000
    assert json.loads(findings.read_text())["class_names"][: len(NAMES)] == NAMES


def test_doctor_data_that_finds_something(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "[/red]"
    trees.folder(data, "train", [trees.stripes([0, 9])], classes=None)
    (data / "classes.json").write_text(json.dumps(["[/x]", "[bold]never", "$_$"]))
    picture = ("--picture", str(tmp_path / "p.png"))
    result = invoke("doctor", "data", "--dataset", "folder", "--root", str(data), "--split", "train", *picture)
    assert result.exit_code == 1
    assert "2 of 3 classes have no pixel: [bold]never, $_$" in result.output
    assert f"      {data}/masks/train/0.png" in result.output
    absent = invoke("doctor", "data", "--dataset", "folder", "--root", str(data), "--split", "[/val]", *picture)
    assert absent.exit_code == 1
    assert "([/val])" in absent.output
    assert isinstance(absent.exception, SystemExit)


def test_train_and_resume(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[/red] $x$ 'q'"
    command = [word for word in arguments(settings(place / "[data]"), folder) if word != "--no-tables"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert_all_shown(result.output)
    assert f"Run folder: {folder}\n" in result.output
    suggested = re.search("See it with `(.*)`", result.output)
    assert suggested is not None
    assert shlex.split(suggested[1]) == ["cawa-fast", "report", str(folder)]
    again = invoke(*command)
    assert again.exit_code == 1
    assert f"{folder} already holds a run" in again.output
    assert invoke("train", "--resume", "--run-dir", str(folder)).exit_code == 0
    (folder / "latest.pt").write_bytes(b"")
    broken = invoke("train", "--resume", "--run-dir", str(folder))
    assert f"{folder}/latest.pt is damaged" in broken.output


def test_tensorboard_has_a_tag_for_every_class(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(runs(place)[0])
    events.Reload()
    assert {f"iou/{seen(name)}" for name in (*NAMES, *ESCAPED, LONG)} <= set(events.Tags()["scalars"])


def test_report(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "[red] $p$.html"
    result = invoke("report", *runs(place), "--out", str(page), "--images", "1")
    assert result.exit_code == 0, result.output
    assert_all_shown(result.output)
    assert f"Page: {page}" in result.output
    html = page.read_text()
    assert "<script" not in html
    outline = Outline(html)
    assert not outline.open
    shown = [" ".join(seen(name).split()) for name in (*NAMES, *ESCAPED, LONG)]
    assert not [name for name in shown if name not in outline.text]
    for label in ("[red]r $x$", "<i>_r_|"):
        assert label in outline.text
    alone = [seen(name) for name in NAMES]
    drawn = set()
    for picture in outline.pictures:
        source = picture["src"] or ""
        if source.startswith("data:image/svg"):
            drawn |= set(texts(base64.b64decode(source.partition(",")[2])))
    assert [name for name in alone if name not in drawn] == []


def texts(svg: bytes) -> Iterator[str]:
    """The texts of a picture, which must be well-formed XML."""
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        yield "".join(element.itertext())


def test_ablate(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "[/red] out"
    planned = Ablation(out, settings(place / "[data]"), choose_rows(["cawa", "uniform"]), [0])
    for name, state in planned.states.items():
        run(out / name, state.config)
    words = without(arguments(planned.base, out)[4:], "--weighting", "--seed")
    result = invoke("ablate", "--rows", "cawa,uniform", "--seeds", "0", "--out", str(out), *words)
    assert result.exit_code == 0, result.output
    assert f"Written: {out}/ablation.md, {out}/ablation.json" in result.output
    assert f"`cawa-fast report {shlex.quote(str(out))}`" in result.output
    text = (out / "ablation.md").read_text()
    kept = json.loads((out / "ablation.json").read_text())
    assert kept["class_names"][: len(NAMES)] == NAMES
    (rare,) = [line for line in text.splitlines() if line.startswith("Rare: ")]
    assert "<script" not in text.replace("\\<", "")
    assert [kept["class_names"][i] for i in kept["rare"]["classes"]] == [] or "Rare: none" not in rare
    report = invoke("report", str(out), "--out", str(tmp_path / "page.html"), "--images", "0")
    assert report.exit_code == 0, report.output


def without(words: list[str], *options: str) -> list[str]:
    """Command-line words without these options and their values."""
    dropped = {place for option in options for place in (words.index(option), words.index(option) + 1)}
    return [word for place, word in enumerate(words) if place not in dropped]


@pytest.mark.parametrize("name", ["backbone=[/x]", "backbone=[bold]a", "backbone=a|b", "backbone=`c`", "backbone=_x_"])
def test_rows_of_an_ablation(tmp_path: Path, name: str) -> None:
    planned = Ablation(tmp_path / "out", TINY, choose_rows([name]), [0])
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_table(planned))
    result = ablation(tmp_path / "fake")
    result["rows"][0] |= {"name": name, "title": name}
    result["rows"][3]["runs"][1]["error"] = "no\n| [/x]"
    assert console.file.getvalue().count(name) == 2  # the row and its settings
    console.print(result_table(result))
    assert console.file.getvalue().count(name) == 3
    result["class_names"][6:] = ["a|b", "_x_", "<i>", "*"]
    text = markdown(result, GROUPS)
    assert r"Rare: a\|b, \_x\_, \<i\>, \* (" in text
    assert r"`: no\\n\| \[/x\]" in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 10, line


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"[/Versions]": [("[bold]a", "/opt/[x]/bin", None), ("b", "not [/found]", "pip install 'x[y]'")]}
    monkeypatch.setattr("cawa_fast.recipes.installation.findings", lambda: found)
    lines = invoke("doctor").output.splitlines()
    assert lines == ["[/Versions]", "  ✓ [bold]a: /opt/[x]/bin", "  ! b: not [/found]", "      → pip install 'x[y]'"]


def test_error_messages_have_no_escape_sequences(tmp_path: Path) -> None:
    result = invoke("report", str(tmp_path / "\x1b[2J[/x]"))
    assert result.exit_code == 1
    assert r"\x1b[2J[/x] is not a folder" in result.output
    assert "\x1b" not in result.output


def test_folders_whose_names_are_not_utf8(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff[x]")
    result = invoke(*arguments(replace(TINY, epochs=1), folder))
    assert result.exit_code == 1
    assert "\\udcff[x]' is not UTF-8, which TensorBoard needs; choose another --run-dir" in result.output
    shutil.copytree(place / "[data]", folder)
    data = settings(folder)
    result = invoke("doctor", "data", "--dataset", "folder", "--root", str(folder), "--no-picture")
    assert result.exit_code == 0, result.output
    assert len(run(tmp_path / "run", data)) == 1
    (folder / "classes.json").unlink()
    result = invoke("doctor", "data", "--dataset", "folder", "--root", str(folder), "--no-picture")
    assert f"{tmp_path}/\\udcff[x] holds no class list" in result.output


def test_figures_as_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = ["_x_", r"b $\frac$ x", "🚗", "שלום", "a\nb", "\x00", LONG]
    for split in ("train", "val"):
        trees.folder(data, split, [trees.stripes(range(7), (48, 96))] * 2, classes=None)
    (data / "classes.json").write_text(json.dumps(names))
    run(tmp_path / "_r_ $x$", settings(data))
    page = tmp_path / "page.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report([tmp_path / "_r_ $x$"], page, images=1, png=True)
    assert {file.stem for file in tmp_path.glob("*.png")} >= {"page-class-iou", "page-gallery-1", "page-time"}


def test_a_terminal_without_unicode(place: Path, tmp_path: Path) -> None:
    command = [word for word in arguments(settings(place / "[data]"), tmp_path / "r") if word != "--no-tables"]
    result = CliRunner(charset="ascii").invoke(main, command)
    assert result.exit_code == 0, result.output
    assert r"\u9053\u8def" in result.output


@pytest.mark.parametrize("console", [Console, open_console], ids=["any console", "the command's console"])
@pytest.mark.parametrize("name", [*NAMES, *ESCAPED])
def test_tables_lines_and_bars(name: str, console: Any) -> None:
    shown = console()
    shown.file, shown.width = io.StringIO(), 200
    say(shown, (name, "bold"), f" and {name}")
    lines = name if name == "a\nb" else seen(name)  # a message may have several lines
    assert shown.file.getvalue() == f"{lines} and {lines}\n"
    shown.file = io.StringIO()
    table = PlainTable(name)
    table.add_names(name, [name])
    table.add_row(name)
    shown.print(table)
    assert shown.file.getvalue().count(seen(name)) == 3
    bar = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with Progress(plain_column(), console=bar) as progress:
        progress.add_task(one_line(name), total=1)
    assert seen(name) in bar.file.getvalue()


def test_displays_of_training_and_ablation(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with TrainingDisplay(console) as display:
        display.prepare("[/x] labels", 1, 3)
    planned = Ablation(tmp_path / "[/out]", TINY, choose_rows(["cawa"]), [0])
    state = planned.states["cawa-s0"]
    state.name, state.status = "[/x]-s0", "running"
    with AblationDisplay(console, planned) as shown:
        shown.update(state)
        state.status, state.error = "failed", "[bold]no[/] [/y]"
        shown.update(state)
    output = console.file.getvalue()
    assert "reading [/x] labels" in output
    assert "  [/x]-s0" in output
    assert "[/x]-s0: FAILED: [bold]no[/] [/y]" in output


def test_a_long_name_leaves_the_numbers_alone() -> None:
    record = {"epoch": 1, "weight": [1.25, 2.5], "iou": [0.5, 0.25], "accuracy": [0.5, 0.75], "csps": [0.1, 0.2]}
    console = Console(file=io.StringIO(), width=70)
    console.print(epoch_table(record, (LONG, "b"), None))
    output = console.file.getvalue()
    for number in ("50.00", "10.00", "1.250", "25.00", "75.00", "20.00", "2.500"):
        assert number in output
    assert re.sub(r"[^a-z]", "", LONG) in re.sub(r"[^a-z]", "", output)


def test_pages_of_runs_whose_labels_and_settings_are_text(place: Path, tmp_path: Path) -> None:
    result = ablation(tmp_path / "out")
    result["command"] = "cawa-fast ablate --rows '<b>|`'"
    result["rows"][0]["title"] = "$x$ <script>"
    result["rows"][0]["runs"][0]["error"] = None
    result["class_names"][6:8] = ["<i>a</i>\x00", "\ud800"]
    (tmp_path / "out" / "ablation.json").write_text(json.dumps(result))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report([tmp_path / "out"], tmp_path / "page.html", images=0, png=True).read_text()
    outline = Outline(page)
    assert "<script" not in page
    for text in ("$x$ <script>", "<i>a</i>\\x00, \\ud800", "cawa-fast ablate --rows '<b>|`'"):
        assert text in outline.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("traffic_sign", "traffic_sign"),
        ("_a", r"\_a"),
        ("a_", r"a\_"),
        ("a|b", r"a\|b"),
        ("[x](y)", r"\[x\](y)"),
        ("![i](u)", r"!\[i\](u)"),
        ("<br>", r"\<br\>"),
        ("&lt;", r"\&lt;"),
        ("a\\", "a\\\\"),
        ("a\nb", r"a\\nb"),
        ("`c`", r"\`c\`"),
        ("2*3", r"2\*3"),
        ("~~x~~", r"\~\~x\~\~"),
        ("CAWA, the defaults (0.5)", "CAWA, the defaults (0.5)"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "`a`"), ("`", "`` ` ``"), ("a``b", "```a``b```"), ("", "`  `"), ("a|b", r"`a\|b`")]
)
def test_code_in_markdown(text: str, shown: str) -> None:
    assert markdown_code(text, cell=True) == shown
