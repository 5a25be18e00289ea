"""``plot`` and ``log`` of ``CAWA`` and ``AdaptiveClassWeights``."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cawa_fast as cf

NAMES = ("road", "traffic sign", "price $5", "never")


def stepped(steps: int = 3, **options: Any) -> cf.CAWA:
    cawa = cf.CAWA(None, 4, **({"class_names": NAMES, "source": "argmax"} | options))
    for _ in range(steps):
        cawa.observe(torch.randint(0, 3, (1, 8, 8)), logits=torch.randn(1, 4, 4, 4))
        cawa.step()
    return cawa


@pytest.mark.parametrize("of", [lambda cawa: cawa, lambda cawa: cawa.weights], ids=["CAWA", "AdaptiveClassWeights"])
def test_log(of: Any) -> None:
    cawa, seen = stepped(), []
    of(cawa).log(lambda *arguments: seen.append(arguments), 7)
    weights = cawa.weights
    expected = [(f"cawa/weight/{name}", w, 7) for name, w in zip(NAMES, weights.weight.tolist(), strict=True)]
    expected += [(f"cawa/iou/{name}", iou, 7) for name, iou in zip(NAMES[:3], weights.iou.tolist()[:3], strict=True)]
    assert seen == [*expected, ("cawa/miou", pytest.approx(weights.iou[:3].mean().item()), 7)]
    assert all(type(value) is float for _, value, _ in seen)


def test_log_before_the_first_step_and_without_names() -> None:
    seen = []
    cf.AdaptiveClassWeights(2).log(lambda *arguments: seen.append(arguments), None)
    assert seen == [("cawa/weight/0", 1.0, None), ("cawa/weight/1", 1.0, None)]
    with pytest.raises(
        TypeError, match=r"log: fn must be a function of \(name, value, step\), got the str 'x'.*add_sc"
    ):
        cf.CAWA(None, 2).log("x", 1)


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    cawa = stepped()
    with SummaryWriter(str(tmp_path)) as writer:
        cawa.log(writer.add_scalar, 3)
        writer.add_figure("cawa", cawa.plot()[0], 3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(events.Tags()["scalars"]) == 4 + 3 + 1
    (event,) = events.Scalars("cawa/weight/road")
    assert (event.step, event.value) == (3, pytest.approx(cawa.weight[0].item()))
    assert events.Tags()["images"] == ["cawa"]


@pytest.mark.parametrize("of", [lambda cawa: cawa, lambda cawa: cawa.weights], ids=["CAWA", "AdaptiveClassWeights"])
@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_plot(of: Any, source: str) -> None:
    import matplotlib.pyplot as plt

    cawa = stepped(source=source)
    figure, axes = of(cawa).plot()
    figure.canvas.draw()
    assert [axis.get_title() for axis in axes] == ["class weight", f"IoU of the {TITLES[source]}"]
    for axis, key in zip(axes, ("weight", "iou"), strict=True):
        (image,) = axis.get_images()
        values = torch.tensor([record[key] for record in cawa.weights.history])
        torch.testing.assert_close(torch.tensor(image.get_array().filled(math.nan)), values.T.double(), equal_nan=True)
        assert image.get_extent() == [0.5, 3.5, 3.5, -0.5]
        last = [label.get_text() for label in axis.child_axes[0].get_yticklabels()]
        assert last == [f"{value:.2f}" if value == value else "–" for value in values[-1].tolist()]
    assert [label.get_text().replace("\\", "") for label in axes[0].get_yticklabels()] == list(NAMES)
    plt.close(figure)


TITLES = {"cam": "activation maps", "argmax": "predictions"}


def test_plot_of_many_classes_gives_each_its_row() -> None:
    import matplotlib.pyplot as plt

    weights = cf.AdaptiveClassWeights(150, rule="recall", source="argmax")  # class 0, of recall 1, has the weight 0
    matrix = torch.randint(0, 9, (150, 150))
    matrix[0, 1:] = 0
    for _ in range(2):
        weights.observe_confusion(matrix)
        weights.step()
    assert weights.weight[0] == 0
    figure, axes = weights.plot()
    figure.canvas.draw()
    (image,) = axes[0].get_images()
    assert not image.norm(image.get_array()).mask.any()  # each has a colour
    boxes = [label.get_window_extent() for label in axes[0].get_yticklabels()]
    assert len(boxes) == 150
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes))  # none covers another
    plt.close(figure)


def test_plot_without_a_step_or_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="plot: there is nothing to draw before the first step"):
        cf.CAWA(None, 4).plot()
    cawa = stepped()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (cawa.plot, cf.SegmentationMetrics(4).plot):
        with pytest.raises(ImportError, match="plot needs matplotlib; install it with: pip install matplotlib"):
            draw()
