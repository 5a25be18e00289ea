"""The benchmark code: baselines compute the same as our operators, and timing, rows and goals are correct."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

import click

from bench import baselines, cases, measure, memory
from bench.cpu.measure import floor_of, target_reached
from bench.cpu.rows import ROWS, implementation_of
from bench.rows import Target, select

ROOT = Path(__file__).parents[2]
BY_KEY = {row.key: row for row in ROWS}


def problem(content: str = "realistic", classes: int = 5, align_corners: bool = False) -> cases.Problem:
    return cases.make(content, classes, (9, 16), (36, 64), align_corners=align_corners)


def results(name: str, operator: str, of: cases.Problem) -> tuple[torch.Tensor, ...]:
    implementation = baselines.make_implementation(name, operator, of)
    implementation.reset()
    return implementation.run()


# ------------------------------------------------------------------------------------------- baselines do the same work


@pytest.mark.parametrize("content", ["realistic", "noise"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("baseline", ["eager", "eager, channels_last", "eager, autocast", "one thread", "float32"])
def test_cross_entropy_baselines_agree(baseline: str, align_corners: bool, content: str) -> None:
    given = problem(content, align_corners=align_corners)
    for ours, theirs in zip(
        results("ours", "cross_entropy", given), results(baseline, "cross_entropy", given), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)


def test_cross_entropy_of_equal_sizes_agrees() -> None:
    given = cases.make("realistic", 5, (32, 48), (32, 48))
    assert given.same_size
    for ours, theirs in zip(
        results("ours", "cross_entropy", given), results("eager", "cross_entropy", given), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-8)


def test_bfloat16_computes_the_same_loss() -> None:
    given = problem()
    loss, gradient = results("bfloat16", "cross_entropy", given)
    exact, _ = results("ours", "cross_entropy", given)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("content", ["realistic", "noise"])
@pytest.mark.parametrize("baseline", ["eager", "eager, channels_last", "torchmetrics", "torchmetrics, deterministic"])
def test_confusion_matrix_baselines_agree(baseline: str, content: str, request: pytest.FixtureRequest) -> None:
    if baseline.startswith("torchmetrics"):
        request.getfixturevalue("torchmetrics")  # imports it, or fails where it is missing
    given = problem(content)
    (ours,), (theirs,) = results("ours", "confusion_matrix", given), results(baseline, "confusion_matrix", given)
    assert ours.sum() == theirs.sum() == (given.labels != cases.IGNORE).sum()
    assert (ours - theirs).abs().sum() <= 4, "more than two pixels differ, which rounding does not explain"


def test_mmsegmentation_counts_the_same_areas() -> None:
    given = problem()
    (matrix,) = results("ours", "confusion_matrix", given)
    for ours, theirs in zip(
        (matrix.diagonal(), matrix.sum(0), matrix.sum(1)),
        results("MMSegmentation", "confusion_matrix", given),
        strict=True,
    ):
        assert (ours - theirs).abs().sum() <= 4


@pytest.mark.parametrize("content", ["realistic", "noise"])
@pytest.mark.parametrize("baseline", ["eager", "eager, present", "torchmetrics"])
def test_cam_counts_baselines_agree(baseline: str, content: str, request: pytest.FixtureRequest) -> None:
    if baseline == "torchmetrics":
        request.getfixturevalue("torchmetrics")
    given = problem(content)
    for ours, theirs in zip(results("ours", "cam_counts", given), results(baseline, "cam_counts", given), strict=True):
        assert (ours - theirs).abs().sum() <= 4, "more than a few pixels differ, which rounding does not explain"


def test_cam_counts_baselines_score_a_class_only_in_images_that_contain_it() -> None:
    given = problem(classes=3)
    labels = given.labels.clone()
    labels[0] = 1  # the first image has no class 2, so that its map of class 2 is not scored
    given = dataclasses.replace(given, labels=labels)
    ours = results("ours", "cam_counts", given)
    for baseline in ("eager", "eager, present"):
        for expected, got in zip(ours, results(baseline, "cam_counts", given), strict=True):
            assert (expected - got).abs().sum() <= 4


def test_deterministic_mode_ends_with_the_call() -> None:
    results("torchmetrics, deterministic", "confusion_matrix", problem())
    assert not torch.are_deterministic_algorithms_enabled()


def test_half_precision_baselines_compute_the_loss() -> None:
    given = problem()
    exact, _ = results("ours", "cross_entropy", given)
    for dtype in (torch.bfloat16, torch.float16):
        half = dataclasses.replace(given, logits=given.logits.to(dtype))
        for name in ("ours", "eager", "eager, autocast"):
            loss, gradient = results(name, "cross_entropy", half)
            assert gradient.dtype == dtype
            torch.testing.assert_close(loss.float(), exact, rtol=3e-2, atol=0)


def test_inputs_are_taken_in_turn() -> None:
    given = problem()
    other = dataclasses.replace(given, logits=2 * given.logits)
    both = baselines.make_implementation("eager", "cross_entropy", given, other)
    assert both.copies == 2
    losses = []
    for _ in range(3):
        both.reset()
        losses.append(both.run()[0])
    (first, _), (second, _) = results("eager", "cross_entropy", given), results("eager", "cross_entropy", other)
    assert losses == [first, second, first]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # raised by the compiler
@pytest.mark.parametrize("operator", ["cross_entropy", "confusion_matrix", "cam_counts"])
def test_compiled_baselines_agree(operator: str) -> None:
    given = problem()
    for ours, theirs in zip(results("ours", operator, given), results("compile", operator, given), strict=True):
        if operator == "cross_entropy":
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)
        else:
            assert (ours - theirs).abs().sum() <= 4


def test_implementations_do_not_change_the_problem() -> None:
    given = problem()
    logits, labels = given.logits.clone(), given.labels.clone()
    for operator, names in (
        ("cross_entropy", ("ours", "eager", "bfloat16", "copy")),
        ("confusion_matrix", ("ours", "eager")),
        ("cam_counts", ("ours", "eager", "eager, present")),
    ):
        for name in names:
            results(name, operator, given)
    torch.testing.assert_close(given.logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(given.labels, labels, rtol=0, atol=0)
    assert not given.logits.requires_grad


# -------------------------------------------------------------------------------------------------------- the inputs


@pytest.mark.parametrize("content", ["realistic", "noise"])
def test_inputs_come_from_the_seed(content: str) -> None:
    first, again, other = (cases.make(content, 5, (9, 16), (36, 64), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert first.logits.is_contiguous()
    assert first.labels.dtype == torch.uint8


def test_scenes_are_repeated_as_mirror_images() -> None:
    few = cases.make("realistic", 5, (9, 16), (36, 64))
    many = cases.repeat(few, 7, "cpu")
    assert many.logits.shape[0] == many.labels.shape[0] == 7
    assert torch.equal(many.logits[:2], few.logits)
    assert torch.equal(many.labels[2:4].flip(-1), few.labels)
    pieces = [dataclasses.replace(few, logits=many.logits[i : i + 1], labels=many.labels[i : i + 1]) for i in (0, 6)]
    first, last = (results("ours", "confusion_matrix", piece)[0] for piece in pieces)
    assert (first - last).abs().sum() <= 4, "a mirror image must have the counts of its scene"
    upsampled = cases.repeat(few, 4, "cpu", logits_size=(36, 64))
    assert upsampled.same_size
    with pytest.raises(AssertionError):
        cases.repeat(few, 9, "cpu")


def test_one_class_is_at_nearly_all_pixels() -> None:
    given = cases.make("one class", 5, (18, 32), (72, 128))
    valid = given.labels != cases.IGNORE
    assert 0.9 < (given.labels[valid] == 0).float().mean() < 1
    (matrix,) = results("ours", "confusion_matrix", given)
    assert matrix[0, 0] > 0.9 * matrix.sum()


def input_statistics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The rows of bench/results/realism.md, which determine the speed of the operators."""

    def corners(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1], x[..., 1:, 1:]])

    classes, valid = logits.shape[1], labels != cases.IGNORE
    pixels = torch.stack([torch.bincount(image.flatten(), minlength=256)[:classes] for image in labels])
    present = pixels > 0
    best, second = logits.topk(2, dim=1).values.unbind(1)
    winner = corners(logits.argmax(1))
    cam = logits.relu()
    cam = cam / cam.amax((-2, -1), keepdim=True)
    cells = corners(cam)
    crossed = (cells.amin(0) <= cases.TAU) & (cells.amax(0) > cases.TAU)
    size = (labels.shape[-2], labels.shape[-1])
    predicted = torch.nn.functional.interpolate(logits, size=size, mode="bilinear").argmax(1)
    ordered = [counts[counts > 0].sort().values for counts in pixels]
    rarer_half = torch.stack([counts[: len(counts) // 2].sum() for counts in ordered])
    found = {
        "mixed": (winner.amin(0) != winner.amax(0)).float().mean(),
        "crossed": crossed.float().mean((-2, -1))[present].mean(),
        "above": (cam > cases.TAU).float().mean((-2, -1))[present].mean(),
        "accuracy": (predicted == labels)[valid].float().mean(),
        "ignored": (~valid).float().mean(),
        "present": present.float().sum(1).mean(),
        "rare": rarer_half.sum() / pixels.sum(),
        "top": best.mean(),
        "spread": logits.std(1).mean(),
        "margin": (best - second).median(),
        "step": logits.diff(dim=-1).square().mean().sqrt(),
    }
    return {name: float(value) for name, value in found.items()}


def test_realistic_inputs_resemble_those_of_a_trained_network() -> None:
    """Against a network of `make demo` on scenes of the benchmarks' size (bench/results/realism.md)."""
    network = {"mixed": 0.153, "crossed": 0.041, "above": 0.077, "accuracy": 0.70, "present": 7.7}
    network |= {"top": 6.0, "spread": 3.0, "margin": 2.7, "step": 0.60, "rare": 0.09}
    given = cases.make("realistic", 10, (128, 256), (512, 1024))
    made = input_statistics(given.logits, given.labels)
    for name, value in network.items():
        assert value / 2 < made[name] < value * 2, name
    # closer for what determines the cost
    assert 0.8 < made["mixed"] / network["mixed"] < 1.5
    assert 0.8 < made["crossed"] / network["crossed"] < 1.5
    assert 0.03 < made["ignored"] < 0.07


# ---------------------------------------------------------------------------------------------------------- measuring


def test_implementations_take_turns_in_rotating_order() -> None:
    calls: list[str] = []

    def make(name: str) -> baselines.Implementation:
        def run() -> tuple[torch.Tensor, ...]:
            calls.append(name)
            return ()

        return baselines.Implementation(name, run)

    seconds = measure.interleave([make("a"), make("b")], rounds=2, threads=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    order = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert order == ["a", "b", "a", "b", "a"]  # the warm-up and the first round begin with a, the second round with b


def test_interleave_takes_a_clock_and_a_deadline() -> None:
    timed: list[int] = []

    def clock(implementation: baselines.Implementation, repeats: int) -> float:
        timed.append(repeats)
        return 0.004

    implementation = baselines.Implementation("a", lambda: ())
    assert measure.interleave([implementation], rounds=3, threads=1, clock=clock) == {"a": [0.004] * 3}
    assert timed == [1, 1, 3, 3, 3]
    assert measure.interleave([implementation], rounds=3, threads=1, clock=clock, until=0) == {"a": [0.004]}


def test_threads_are_set_for_each_implementation_and_then_to_those_of_the_row() -> None:
    seen: dict[str, set[int]] = {"one": set(), "two": set()}

    def make(name: str, threads: int | None) -> baselines.Implementation:
        def run() -> tuple[torch.Tensor, ...]:
            seen[name].add(torch.get_num_threads())
            return ()

        return baselines.Implementation(name, run, threads=threads)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        measure.interleave([make("one", 1), make("two", None)], rounds=1, threads=2)
        assert seen == {"one": {1}, "two": {2}}
        assert torch.get_num_threads() == 2  # those of the row
    finally:
        torch.set_num_threads(before)


def test_ratio_is_the_median_of_the_rounds() -> None:
    assert measure.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_machine_description_omits_the_host_name() -> None:
    described = measure.machine(2)
    assert described["threads"] == 2
    assert described["torch"] == torch.__version__
    assert not any(os.uname().nodename == value for value in described.values())


@pytest.mark.skipif(not memory.available(), reason="the system has no resettable peak of memory")
def test_peak_memory_counts_what_a_call_allocates() -> None:
    size = 64 * 1024**2

    def run() -> torch.Tensor:
        torch.ones(size, dtype=torch.uint8)  # freed at once, but part of the peak
        return torch.ones(size // 2, dtype=torch.uint8)

    assert size <= memory.peak(run) + 2**20
    assert memory.peak(run) < 2 * size


# ------------------------------------------------------------------------------------------------------------ the rows


def test_rows_have_unique_keys_and_targets_among_their_baselines() -> None:
    assert len(BY_KEY) == len(ROWS)
    for row in ROWS:
        assert set(row.names) <= baselines.MEANING.keys()
        assert {target.baseline for target in row.targets} <= set(row.names)
        assert row.targets
    assert BY_KEY["ce-19"].title == "cross_entropy 2×19×512×1024"
    assert BY_KEY["resize-ce-19-x4"].title == "resize + cross_entropy 2×19×128×256 to 512×1024"


def test_every_row_runs_when_small() -> None:
    for row in ROWS:
        sized = dataclasses.replace(row.shrunk(), classes=min(row.classes, 7))
        assert implementation_of(sized, row.ours).run()


def test_floor_counts_bytes_and_exponentials() -> None:
    row = BY_KEY["ce-19"]
    logits = 2 * 19 * 512 * 1024
    assert row.floor(gather=False).bytes == 2 * 4 * logits + 2 * 512 * 1024
    assert row.floor(gather=False).exponentials == logits
    floor = floor_of(row, {"copy": 0.01, "ours": 0.02}, rate=1e12)
    assert floor["bytes_seconds"] == pytest.approx(0.01 * row.floor(gather=False).bytes / (8 * logits))
    assert floor["share"] == pytest.approx(floor["seconds"] / 0.02)
    assert floor_of(row, {"copy": 0.01, "ours": 0.02}, rate=1e9)["seconds"] == logits / 1e9


@pytest.mark.parametrize(
    ("target", "ours", "baseline", "least", "aim"),
    [
        (("eager", 8, 16, False), 1.0, 9.0, True, False),
        (("copy", 2.0, 1.3, True), 1.2, 1.0, True, True),
        (("copy", None, 1.3, True), 1.5, 1.0, None, False),
    ],
)
def test_targets(target: Any, ours: float, baseline: float, least: bool | None, aim: bool | None) -> None:
    reached = target_reached(Target(*target), [ours], [baseline])
    assert (reached["least_met"], reached["aim_met"]) == (least, aim)


def test_unknown_rows_are_refused() -> None:
    assert [row.key for row in select(ROWS, "cam-150,ce-19")] == ["ce-19", "cam-150"]
    with pytest.raises(click.BadParameter, match="'nothing\\*' matches no row"):
        select(ROWS, "ce-19,nothing*")
