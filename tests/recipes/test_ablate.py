"""Ablations without training: rows and their settings, the plan, statistics, texts."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast.recipes.ablation.ablation import Ablation
from cawa_fast.recipes.ablation.results import (
    _T_975,
    compare,
    difference_text,
    final_values,
    markdown,
    summarize,
    with_statistics,
)
from cawa_fast.recipes.ablation.rows import CATALOGUE, DEFAULT_ROWS, GROUPS, choose_rows, make_plan
from cawa_fast.recipes.config import WEIGHTINGS, TrainConfig
from cawa_fast.recipes.runs.compare import rare_classes
from cawa_fast.recipes.runs.read import Run
from tests.support.tiny_runs import TINY

# -------------------------------------------------------------------------------------------------------------- rows


def configs(*words: str, base: TrainConfig = TINY) -> dict[str, TrainConfig]:
    return {row.name: replace(base, **row.settings) for row in choose_rows(words)}


def test_baselines_are_all_weightings() -> None:
    made = configs("rivals")
    assert set(made) == set(WEIGHTINGS)
    for name, config in made.items():
        assert config == replace(TINY, weighting=name)


def test_the_ladder_is_the_papers_table() -> None:
    """Argmax scored by IoU, then activation maps, then accuracy too, then the ratio."""
    made = configs("ladder", base=replace(TINY, weighting="focal", ratio="paper"))
    cawa = replace(TINY, weighting="cawa")
    assert made == {
        "ladder-baseline": replace(TINY, weighting="uniform", ratio="paper"),
        "ladder-dynamic": replace(cawa, source="argmax", delta=1.0, ratio="none"),
        "ladder-pseudo-mask": replace(cawa, source="cam", delta=1.0, ratio="none"),
        "ladder-csps": replace(cawa, source="cam", delta=0.9, ratio="none"),
        "ladder-awa": replace(cawa, source="cam", delta=0.9, ratio="smoothed"),
        "ladder-awa-paper": replace(cawa, source="cam", delta=0.9, ratio="paper"),
    }


@pytest.mark.parametrize(
    ("group", "settings", "values"),
    [
        (
            "ratio",
            ("source", "ratio"),
            [(source, ratio) for source in ("cam", "argmax") for ratio in ("paper", "smoothed", "none")],
        ),
        ("delta", ("delta",), [(0.0,), (0.2,), (0.4,), (0.6,), (0.8,), (0.9,), (1.0,)]),
        ("tau", ("tau",), [(0.2,), (0.35,), (0.5,), (0.65,), (0.8,)]),
        ("normalize", ("normalize",), [("max",), ("minmax",), ("gradcam",), ("none",)]),
        ("classes", ("classes",), [("present",), ("all",)]),
        ("cam", ("cam_method",), [("gradcam",), ("gradcam++",), ("layercam",)]),
        ("clip", ("w_max",), [(5.0,), (10.0,), (20.0,)]),
        ("momentum", ("weight_momentum",), [(0.0,), (0.5,), (0.9,)]),
        ("every", ("every",), [(1,), (2,), (5,)]),
    ],
)
def test_a_sweep_changes_its_setting_alone(
    group: str, settings: tuple[str, ...], values: list[tuple[Any, ...]]
) -> None:
    base = replace(TINY, weighting="uniform")
    expected = [replace(base, weighting="cawa", **dict(zip(settings, value, strict=True))) for value in values]
    assert list(configs(group, base=base).values()) == expected


def test_names_are_unique_and_every_group_has_rows() -> None:
    assert len({row.name for row in CATALOGUE}) == len(CATALOGUE)
    assert {row.group for row in CATALOGUE} == set(GROUPS)
    assert all("/" not in row.name and " " not in row.name for row in CATALOGUE)
    assert choose_rows(["all"]) == list(CATALOGUE)


def test_words_choose_rows_once_and_in_order() -> None:
    names = [
        row.name for row in choose_rows(["classes", "uniform", "classes=all", "tau=.5", "ratio=none+source=argmax"])
    ]
    assert names == ["classes=present", "classes=all", "uniform", "tau=0.5", "source=argmax+ratio=none"]
    own = choose_rows(["weighting=focal+gamma=1", "w-max=3", "lr=1e-3"])
    assert [row.settings for row in own] == [
        {"weighting": "focal", "gamma": 1.0},
        {"weighting": "cawa", "w_max": 3.0},
        {"weighting": "cawa", "lr": 0.001},
    ]
    assert [row.group for row in own] == ["custom"] * 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rival", "'rival' is not a row; choose from the groups rivals, ladder,"),
        ("depth=3", "'depth' is not a setting that a row can change"),
        ("seed=3", "'seed' is not a setting that a row can change"),
        ("dataset=camvid", "'dataset' is not a setting that a row can change"),
        ("device=cpu", "'device' is not a setting that a row can change"),
        ("delta=x", "delta='x' is not of type float"),
        ("delta=2", r"delta must lie in \[0, 1\], got 2.0"),
        ("ratio=best", "ratio must be one of .*; got 'best'"),
        ("crop=32x32", "crop cannot differ between rows; set it for all rows with --crop"),
        ("delta=0.5+delta=0.6", "sets delta twice"),
    ],
)
def test_words_that_name_no_row(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rows([word])


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows were chosen"):
        choose_rows([])


# -------------------------------------------------------------------------------------------------------------- plan


def test_rows_with_equal_settings_share_a_run_called_the_same_whatever_else_is_chosen() -> None:
    plan = make_plan(TINY, choose_rows(["ladder", "delta=0.9", "rivals"]), (3, 1))
    assert plan.folders["ladder-baseline"] == plan.folders["uniform"] == {3: "uniform-s3", 1: "uniform-s1"}
    assert plan.folders["ladder-awa"] == plan.folders["delta=0.9"] == plan.folders["cawa"]
    assert len(plan.configs) == 2 * (len(WEIGHTINGS) + 4)
    alone = make_plan(TINY, choose_rows(["delta=0.9"]), (3,))
    assert alone.configs == {"cawa-s3": plan.configs["cawa-s3"]}
    assert plan.configs["cawa-s3"] == replace(TINY, weighting="cawa", seed=3)
    # The default has no ratio, so that the paper's full method is a different run.
    ladder = make_plan(replace(TINY, ratio=TrainConfig.ratio), choose_rows(["ladder", "rivals"]), (0,)).folders
    assert ladder["ladder-csps"] == ladder["cawa"] != ladder["ladder-awa"]
    # With a different base, the same words are different runs.
    other = make_plan(replace(TINY, delta=0.5), choose_rows(["delta=0.9", "cawa"]), (0,))
    assert list(other.configs) == ["delta=0.9-s0", "cawa-s0"]


def test_all_rows_of_one_seed_come_before_the_next() -> None:
    plan = make_plan(TINY, choose_rows(["uniform", "cawa"]), (0, 1))
    assert list(plan.configs) == ["uniform-s0", "cawa-s0", "uniform-s1", "cawa-s1"]


def test_the_row_compared_with_is_always_there(tmp_path: Path) -> None:
    assert list(Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0]).states) == ["uniform-s0", "cawa-s0"]
    assert list(Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0], against="enet").states) == ["enet-s0", "cawa-s0"]


def test_cores_are_shared_among_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cawa_fast.recipes.ablation.ablation.cpu_count", lambda: 12)
    base, rows = replace(TINY, threads=None), choose_rows(DEFAULT_ROWS)

    def made(**options: Any) -> tuple[int, int | None]:
        ablation = Ablation(tmp_path, options.pop("base", base), rows, [0, 1], **options)
        return ablation.jobs, ablation.base.threads

    assert made() == (8, 1)
    assert made(jobs=3) == (3, 4)
    assert made(jobs=100) == (2 * (len(WEIGHTINGS) + 4), 1)
    assert made(jobs=3, base=replace(base, threads=2)) == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, r"seeds must be at least one number from 0 on, none twice; got \[\]"),
        ({"seeds": (1, 1)}, r"none twice; got \[1, 1\]"),
        ({"seeds": (-1,)}, r"from 0 on.*got \[-1\]"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"rare": 0.0}, r"rare must lie in \(0, 1\], got 0.0"),
        ({"against": "best"}, "'best' is not a row"),
        ({"against": "delta"}, "against must be one row, but 'delta' is 7"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ablation(tmp_path, TINY, choose_rows(["cawa"]), **options)


# -------------------------------------------------------------------------------------------------------- statistics


def test_mean_and_deviation_by_hand() -> None:
    """Of 2, 4, 9: mean 5, squares 9 + 1 + 16 over 2 = 13."""
    summary = summarize([2.0, 4.0, 9.0])
    assert summary is not None
    assert (summary.mean, summary.n) == (5.0, 3)
    assert summary.sd == pytest.approx(math.sqrt(13))
    assert summarize([7.0]).sd is None  # type: ignore[union-attr]
    assert summarize([]) is None


def test_paired_differences_by_hand() -> None:
    """Differences 1, 2 and 6, of the seeds in both: mean 3, sd sqrt 7; t for 2 degrees is 4.302653."""
    paired = compare({0: 11.0, 1: 22.0, 2: 36.0, 9: 1.0}, {2: 30.0, 1: 20.0, 0: 10.0, 5: 7.0})
    assert paired is not None
    assert paired.differences == {0: 1.0, 1: 2.0, 2: 6.0}
    assert (paired.mean, paired.n, paired.better) == (3.0, 3, 3)
    assert paired.sd == pytest.approx(math.sqrt(7))
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)  # 6.5723...
    assert half == pytest.approx(6.5724, abs=1e-3)
    assert (paired.low, paired.high) == pytest.approx((3 - half, 3 + half))


def test_one_seed_has_no_interval_and_no_common_seed_no_difference() -> None:
    paired = compare({0: 1.0}, {0: 3.0})
    assert paired is not None
    assert (paired.mean, paired.better, paired.sd, paired.low, paired.high) == (-2.0, 0, None, None, None)
    assert compare({0: 1.0}, {1: 3.0}) is None


def test_the_table_of_students_t() -> None:
    """The density integrates to 97.5 % up to each value, by Simpson's rule."""
    for n, t in enumerate(_T_975, start=1):
        x = torch.linspace(0, t, 20001, dtype=torch.float64)
        scale = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
        density = scale * (1 + x * x / n) ** (-(n + 1) / 2)
        weight = torch.ones_like(x)
        weight[1:-1:2], weight[2:-1:2] = 4, 2
        below = 0.5 + (density * weight).sum().item() * t / 20000 / 3
        assert below == pytest.approx(0.975, abs=1e-7), n


def test_beyond_the_table_the_interval_is_rather_too_wide() -> None:
    values = {seed: float(seed % 2) for seed in range(62)}
    paired = compare(values, dict.fromkeys(values, 0.0))
    assert paired is not None
    assert paired.sd is not None
    assert paired.high is not None
    assert paired.high - paired.mean == pytest.approx(2.042272 * paired.sd / math.sqrt(62))


def test_rare_classes_of_camvid_and_street() -> None:
    """Shares of the training pixels in 1/10000. CamVid: a fifth of 1/11 is 182; street: a fifth of 1/10 is 200."""
    camvid = {"sky": 1744, "building": 2419, "column_pole": 102, "road": 3310, "sidewalk": 467, "tree": 1011}
    camvid |= {"sign_symbol": 122, "fence": 117, "car": 611, "pedestrian": 67, "bicyclist": 30}
    rare = [list(camvid)[index] for index in rare_classes(list(camvid.values()))]
    assert rare == ["column_pole", "sign_symbol", "fence", "pedestrian", "bicyclist"]
    street = [3055, 755, 2962, 1533, 1197, 417, 34, 14, 20, 15]
    assert rare_classes(street) == [6, 7, 8, 9]
    assert rare_classes(street, part=0.5) == [5, 6, 7, 8, 9]
    assert rare_classes([50, 50, 0]) == []


def test_values_are_the_last_epochs_and_times_leave_out_the_first() -> None:
    def record(epoch: int, iou: list[float | None], seconds: float) -> dict[str, Any]:
        known = [value for value in iou if value is not None]
        shared = {"miou": statistics.mean(known), "pixel_accuracy": 0.1 * epoch, "iou": iou, "csps": iou}
        return shared | {"epoch": epoch, "seconds": {"total": seconds}, "awa_overhead": seconds / 100}

    records = (
        record(1, [0.9, 0.8, 0.7, None], 9.0),
        record(2, [0.6, 0.4, 0.0, None], 1.0),
        record(3, [0.5, 0.2, 0.0, None], 3.0),
    )
    values = final_values(Run(Path("r"), "r", {}, {}, records), rare=[1, 2, 3])
    assert values == {
        "epochs": 3,
        "miou": pytest.approx(0.7 / 3),
        "rare_iou": pytest.approx(0.1),  # of two: the fourth class is not in the validation set
        "pixel_accuracy": pytest.approx(0.3),
        "seconds_per_epoch": 2.0,
        "awa_share": 0.02,
        "iou": [0.5, 0.2, 0.0, None],
        "dead": [2],
    }


def row(name: str, values: dict[int, float], group: str = "rivals", **more: Any) -> dict[str, Any]:
    runs = []
    for seed, value in values.items():
        entry = {"seed": seed, "run": f"{name}-s{seed}", "status": "done", "error": None, "epochs": 5, "dead": []}
        metrics = dict.fromkeys(("miou", "rare_iou", "pixel_accuracy"), value)
        runs.append(entry | metrics | {"seconds_per_epoch": 2.0, "awa_share": None} | more)
    return {"name": name, "group": group, "title": name, "settings": {"weighting": name}, "runs": runs}


def test_only_finished_runs_count() -> None:
    uniform, cawa = row("uniform", {0: 0.4, 1: 0.5}), row("cawa", {0: 0.5, 1: 0.9}, awa_share=0.01)
    cawa["runs"][1] = {"seed": 1, "run": "cawa-s1", "status": "failed", "error": "planted"}
    same = uniform | {"name": "ladder-baseline", "group": "ladder"}
    first, second, third = with_statistics([uniform, cawa, same], "uniform")
    assert first["summary"]["miou"] == {"mean": 0.45, "sd": pytest.approx(0.0707107), "n": 2}
    assert first["paired"]["miou"] is None  # the row itself
    assert third["paired"]["miou"] is None  # a row with the same runs
    assert second["summary"]["miou"] == {"mean": 0.5, "sd": None, "n": 1}
    assert second["summary"]["awa_share"] == {"mean": 0.01, "sd": None, "n": 1}
    assert second["paired"]["miou"]["differences"] == {0: pytest.approx(0.1)}


def result(rows: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    return {
        "command": "cawa-fast ablate",
        "epochs": 5,
        "seeds": seeds,
        "against": "uniform",
        "class_names": ["road", "pole"],
        "rare": {"part": 0.2, "classes": [1]},
        "rows": with_statistics(rows, "uniform"),
    }


def test_the_table_in_markdown() -> None:
    cawa = row("cawa", {0: 0.43, 1: 0.46}, dead=[1], awa_share=0.0123)
    cawa["runs"].append({"seed": 2, "run": "cawa-s2", "status": "failed", "error": "killed by SIGKILL"})
    text = markdown(result([row("uniform", {0: 0.40, 1: 0.42}), cawa], [0, 1, 2]), GROUPS)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1] == "| uniform | 41.0 ± 1.4 | 41.0 ± 1.4 | 41.0 ± 1.4 |  |  | 0, 0 | 2 | – |"
    # differences .03 and .04: mean .035, sd .00707, t 12.706 over root 2 makes +- .0635
    assert lines[2].startswith("| cawa | **44.5** ± 2.1 | **44.5** ± 2.1 | **44.5** ± 2.1 | +3.5 [−2.9, +9.9] 2/2 |")
    assert lines[2].endswith("| 1, 1 | 2 | 1.23 |")
    assert "## Baselines" in text
    assert "## The method's parts" not in text
    assert "Rare: pole" in text
    assert "after the last epoch" in text
    assert "not of the best one" in text
    assert "- `cawa-s2`: killed by SIGKILL" in text
    assert "4 of 5 entries finished" in text


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (1, "One seed does not show how much results vary by chance"),
        (2, "even differences of the same sign on all seeds have only p = 0.5"),
        (3, "p = 0.25"),
        (5, "p = 0.062"),
    ],
)
def test_few_seeds_are_called_few(seeds: int, words: str) -> None:
    rows = [row("uniform", dict.fromkeys(range(seeds), 0.4))]
    assert words in markdown(result(rows, list(range(seeds))), GROUPS)


def test_enough_seeds_still_have_chance_among_many_rows() -> None:
    text = markdown(result([row("uniform", dict.fromkeys(range(6), 0.4))], list(range(6))), GROUPS)
    assert "sign test" not in text
    assert "one row in twenty" in text


@pytest.mark.parametrize(("mean", "shown"), [(0.0004, "0.0"), (-0.0004, "0.0"), (0.0123, "+1.2"), (-0.0123, "−1.2")])
def test_a_difference_without_a_digit_has_no_sign(mean: float, shown: str) -> None:
    paired = {"mean": mean, "low": None, "high": None, "better": 1, "n": 1}
    assert difference_text(paired) == f"{shown} 1/1"
