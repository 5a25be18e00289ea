"""``python -m bench epoch``: the variants compute the same, and the ratios are correct."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench import table
from bench.__main__ import main
from bench.epoch import measure, memory
from bench.epoch.networks import TORCHVISION, TorchvisionNetwork
from bench.epoch.rows import CPU_ROWS, GPU_ROWS
from bench.epoch.variants import Batch, feeding, naive_counts
from bench.memory import available
from cawa_fast.cam import find_classifier
from cawa_fast.recipes.models import MODELS
from cawa_fast.recipes.training.stopwatch import Stopwatch

CPU = torch.device("cpu")
ROW = next(row for row in CPU_ROWS if row.key == "compact-cityscapes").shrunk()


@pytest.fixture(scope="module")
def epoch():
    return measure.Epoch(ROW, CPU)


def test_the_variants_train_the_same_network():
    epoch = measure.Epoch(ROW, CPU)
    for _ in range(2):
        for name in "acde":
            variant = epoch.variants[name]
            for batch in epoch.train_batches:
                variant.train(batch, Stopwatch(CPU))
            for batch in epoch.val_batches:
                variant.validate(batch, Stopwatch(CPU))
            variant.step(Stopwatch(CPU))
    plain = epoch.variants["a"]
    for one, other in (("a", "d"), ("c", "e")):
        for p, q in zip(
            epoch.variants[one].network.parameters(), epoch.variants[other].network.parameters(), strict=True
        ):
            torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-5)
    weight = epoch.variants["e"].cawa.weight
    torch.testing.assert_close(epoch.variants["c"].weight, weight, rtol=2e-3, atol=1e-3)
    assert not weight.allclose(torch.ones(19))
    assert plain.weight.equal(torch.ones(19))
    pixels = 4 * (epoch.val_batches[0].labels != 255).sum()  # two batches in two epochs
    for one, other in (("a", "d"), ("c", "e")):
        matrix, ours = epoch.variants[one].matrix, epoch.variants[other].matrix
        assert matrix.sum() == ours.sum() == pixels
        assert (matrix - ours).abs().sum() < 0.01 * pixels


def test_naive_counts_are_the_fast_ones(epoch, reference_libraries):
    """pytorch-grad-cam normalises in another order, which changes little on images that contain each class."""
    adaptive = epoch.variants["e"]
    batch = Batch(epoch.val_batches[0].images[:1], epoch.val_batches[0].bytes[:1])
    classifier = find_classifier(adaptive.network, 19)
    with measure.quiet():
        counts = naive_counts(adaptive.network, classifier, batch, 19)
    adaptive.cawa.reset()
    adaptive.validate(batch, Stopwatch(CPU))
    fast = adaptive.cawa.weights.counts
    assert counts[0].add(counts[2]).equal(fast[0] + fast[2])  # ground truth
    assert (counts - fast).abs().sum() < 0.05 * fast.sum()


def test_the_layer_in_front_of_the_classifier(epoch):
    network = epoch.variants["a"].network
    layer = feeding(network, network.classifier, epoch.val_batches[0].images[:1])
    assert layer is network.fuse[-1]


def test_ratios_come_from_the_same_round(monkeypatch):
    def parts(total, **awa):
        return {"total": total, "forward": total / 2} | awa

    rounds = [
        {"a": parts(10.0), "c": parts(12.0, observe=2.0), "d": parts(8.0), "e": parts(8.08, observe=0.06, step=0.02)},
        {"a": parts(20.0), "c": parts(24.0, observe=4.0), "d": parts(18.0), "e": parts(18.0, observe=0.1, step=0.08)},
        {"a": parts(30.0), "c": parts(33.0, observe=3.0), "d": parts(21.0), "e": parts(21.42, observe=0.4, step=0.02)},
    ]
    found = measure.epoch_summary(ROW, rounds)
    assert found["net"]["median"] == pytest.approx(-0.192)
    assert found["net"]["least"] == pytest.approx(21.42 / 30 - 1)
    assert found["marginal"]["median"] == pytest.approx(0.18 / 17.82)
    assert found["marginal_by_difference"]["median"] == pytest.approx(0.01)
    assert found["eager_marginal"]["median"] == pytest.approx(0.2)
    assert found["seconds"]["e"]["observe"] == 0.1


def test_an_epoch_is_extrapolated_from_its_batches(epoch, monkeypatch):
    """2975 images in batches of 2 are 1487 steps, 500 in batches of 2 are 250; a step is timed as 1 s."""
    epoch.variants["e"].validate(epoch.val_batches[0], Stopwatch(CPU))  # a step needs counts
    monkeypatch.setattr(epoch, "_timed", lambda call, batch: {"forward": 1.0, "total": 1.5})
    done = []
    found = epoch.round(1, done.append)
    assert found["a"]["forward"] == 1487 + 250
    assert found["a"]["total"] == pytest.approx(1.5 * (1487 + 250), abs=0.1)
    assert found["e"]["step"] > 0
    assert sum(done) == epoch.samples() == 8


@pytest.mark.skipif(not available(), reason="the system does not report the peak memory of a process")
def test_memory_of_a_step():
    found = memory.step_peaks(next(row for row in CPU_ROWS if row.key == "compact-ade20k"), quick=True, threads=1)
    assert found.keys() == set("acde")
    full = 2 * 150 * 64 * 64 * 4  # logits at the labels' size
    assert found["a"] > 2 * full
    assert found["e"] < found["a"] / 2


@pytest.mark.slow
def test_the_command(tmp_path, reference_libraries):
    out = tmp_path / "epoch"
    options = ["epoch", "--quick", "--rows", "compact-c*", "--no-memory", "--out", str(out)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(out.with_suffix(".json").read_text())
    assert [row["key"] for row in written["rows"]] == ["compact-camvid", "compact-cityscapes", "compact-coco"]
    for row in written["rows"]:
        assert row["naive"]["epoch"] > row["seconds"]["e"]["observe"]
        assert row["seconds"]["a"]["total"] > sum(row["seconds"]["a"][part] for part in ("forward", "loss", "backward"))
    page = out.with_suffix(".md").read_text()
    assert "a trial, no measurement" in page
    assert "![Time of an epoch by part](epoch.png)" in page
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_errors_and_list():
    result = CliRunner().invoke(main, ["epoch", "--rows", "nothing"])
    assert result.exit_code == 2
    assert "'nothing' matches no row" in result.output
    result = CliRunner().invoke(main, ["epoch", "--list"])
    assert all(row.key in result.output for row in CPU_ROWS)
    if not torch.cuda.is_available():
        assert "sees no GPU" in CliRunner().invoke(main, ["epoch", "--device", "cuda"]).output


def test_every_row_names_a_model_that_exists():
    for rows in (CPU_ROWS, GPU_ROWS):
        assert len({row.key for row in rows}) == len(rows)
        assert {row.model for row in rows} <= {*MODELS, *TORCHVISION}
        assert {row.data.title for row in rows} == {"CamVid", "Cityscapes", "ADE20K", "COCO-Stuff"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_have_logits_and_a_classifier(name):
    network = TorchvisionNetwork(name, 5).eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, 64, 96))
    assert logits.shape in ((1, 5, 8, 12), (1, 5, 4, 6))
    assert find_classifier(network, 5).out_channels == 5


def test_times_and_shares():
    assert table.duration(12.345) == "12.3 s"
    assert table.duration(600) == "10 min"
    assert table.duration(9000) == "2.5 h"
    assert table.percent(-0.1234) == "-12.3 %"
    assert table.spread({"median": 0.001, "least": -0.002, "most": 0.02}, 2) == "+0.10 % (-0.20 … +2.00)"
