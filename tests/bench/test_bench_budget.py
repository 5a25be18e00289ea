"""``python -m bench budget`` and ``budget-training``: simulation, replay, and the pages that they write."""

import json

import pytest
import torch
from click.testing import CliRunner

import cawa_fast as cf
from bench import budget, budget_training
from bench.__main__ import main
from bench.population import Population, scores


def test_the_population_is_what_it_says():
    population = Population.make(4000, 20, commonest=0.8, rarest=0.01, seed=0)
    presence = population.presence()
    assert presence.shape == (4000, 20)
    share = presence.float().mean(0)
    assert share[0].item() == pytest.approx(0.8, abs=0.2)  # images are taken at even steps, some twice
    assert share[-1].item() == pytest.approx(0.01, rel=0.1)
    assert (share[:-1] > share[1:]).all()
    everything = population.rows(torch.arange(4000))
    assert everything.sum(0).equal(population.totals())
    assert ((everything[:, 0] + everything[:, 2]) > 0).equal(presence)
    csps = scores(population.totals(), 0.9)
    assert csps[0] > csps[-1] > 0


def test_simulated_errors_fall_with_the_sample_and_are_stated_honestly():
    population = Population.make(3000, 15, rarest=0.01, seed=0)
    small, large = (budget.simulate(population, size, 30, even=False, seed=1) for size in (60, 600))
    for part in ("common", "middle", "rare"):
        assert large[part]["error"] < 0.5 * small[part]["error"]
        assert 0.8 < large[part]["stated"] / large[part]["error"] < 1.3
    assert small["rare"]["held"] > large["rare"]["held"] == 0
    even = budget.simulate(population, 60, 30, even=True, seed=1)
    assert even["rare"]["missed"] > small["rare"]["missed"]


def test_a_summary_by_hand():
    """Three classes in two draws; the third is not in the second draw."""
    off = torch.tensor([[0.1, 0.0, 0.3], [-0.1, 0.2, float("nan")]])
    stated = torch.tensor([[0.05, 0.05, 0.2], [0.05, 0.15, float("nan")]])
    found = budget.summary(off, stated)
    assert found["common"] == {
        "error": pytest.approx(0.1),
        "stated": pytest.approx(0.05),
        "error_of_used": pytest.approx(0.1),
        "missed": 0,
        "held": 0,
    }
    assert found["middle"]["error_of_used"] == 0  # the draw that was off by 0.2 said so
    assert found["middle"]["held"] == 0.5
    assert found["rare"]["missed"] == 0.5
    assert found["rare"]["held"] == 1


def test_the_simulation_command(tmp_path):
    out = tmp_path / "simulation"
    options = ["budget", "--draws", "2", "--images", "120", "--out", str(out)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads((tmp_path / "simulation.json").read_text())
    assert [(row["sample"], row["even"]) for row in written["rows"]] == [
        (50, False),
        (50, True),
        (100, False),
        (100, True),
    ]
    assert "|    120 |    100 |" in (tmp_path / "simulation.md").read_text()
    assert (tmp_path / "simulation.png").read_bytes()[:4] == b"\x89PNG"
    result = CliRunner().invoke(main, ["budget", "--images", "many"])
    assert "'many' is not a list of numbers" in result.output


@pytest.fixture
def rows():
    """Counts of 30 images in five steps, of a network that gets better."""
    population = Population.make(30, 4, rarest=0.3, seed=0)
    first = population.rows(torch.arange(30))
    steps = []
    for step in range(5):
        hits = (first[:, 0] + first[:, 2]) * (2 + step) // 8
        steps.append(torch.stack([hits, first[:, 1], first[:, 0] + first[:, 2] - hits], 1).int())
    return steps


def test_a_replay_with_all_images_is_the_training_itself(rows):
    presence = (rows[0][:, 0] + rows[0][:, 2]) > 0
    exact, held = budget_training.replay(rows, presence, [30] * 5, 0.0, 0.1, 0)
    weights = cf.AdaptiveClassWeights(4, ratio=budget_training.RATIO)
    for step, expected in zip(rows, exact, strict=True):
        weights.counts.copy_(step.sum(0))
        assert weights.step().equal(expected)
    assert not held.any()
    sampled, _ = budget_training.replay(rows, presence, [15, 15, 0, 15, 15], 0.0, 1e9, 0)
    assert sampled[1].equal(sampled[2])  # a step that the budget has nothing for
    assert not sampled[1].equal(sampled[3])
    found = budget_training.compare(sampled, exact, 1)
    assert 0.5 < found["correlation"] < 1
    assert 0 < found["mean"] < found["largest"]


def test_deviations_by_hand():
    exact, ours = torch.tensor([[9.0, 9], [1, 2], [2, 1]]), torch.tensor([[1.0, 1], [1, 2], [1, 1]])
    found = budget_training.compare(ours, exact, skip=1)
    assert found["largest"] == 0.5
    assert found["mean"] == 0.125


def test_the_page_of_the_training(rows, tmp_path):
    record = {"miou": 0.5, "iou": [0.1, 0.2, 0.3, 0.4], "sample_images": 12}
    record["seconds"] = {"total": 11.0, "observe": 0.5, "sample_forward": 0.5}
    records = {"all images": [record | {"sample_images": 30}] * 5, "budget 0.1, momentum 0": [record] * 5}
    result = budget_training.analyse(rows, records, ["a", "b", "c", "d"], 0.1)
    assert result["sample_images"] == [12] * 5
    assert result["trainings"]["all images"]["awa_overhead"] == pytest.approx(0.1)
    by_setting = {(row["momentum"], row["max_error"]): row for row in result["replays"]}
    assert by_setting[0.0, 1e9]["held"] == 0 < by_setting[0.0, 0.05]["held"]
    page = budget_training.markdown(result, "x.png")
    assert "it paid for 12 to 12, in the median 12 an epoch" in page
    assert "| all images" in page
    assert budget_training.picture(result)[:4] == b"\x89PNG"
