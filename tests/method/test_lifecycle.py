"""The state of modules around a run: records, copies, moves, inference mode, the deferred label check."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import cawa_fast as cf
import cawa_fast.functional as CF

CAM = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])
LABELS = torch.tensor([[[0, 1, 1]]])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_history_keeps_the_pixels_that_were_counted() -> None:
    weights = cf.AdaptiveClassWeights(2)
    weights.observe(CAM, LABELS)
    weights.step()
    assert weights.history[0]["pixels"] == [1, 2]
    assert weights.counts.tolist() == [[0, 0]] * 3


def test_made_and_moved_in_inference_mode_it_still_steps() -> None:
    with torch.inference_mode():
        weights = cf.AdaptiveClassWeights(2)
        weights._apply(torch.clone)  # what .to(device) does
        weights.observe(CAM, LABELS)
    assert weights.step().mean() == 1


def test_a_device_that_does_not_fit_is_named() -> None:
    weights = cf.AdaptiveClassWeights(2)
    with pytest.raises(ValueError, match="cam is on meta, but the weights are on cpu"):
        weights.observe(CAM.to("meta"), LABELS.to("meta"))
    with pytest.raises(ValueError, match="matrix is on meta, but the weights are on cpu"):
        weights.observe_confusion(torch.zeros(2, 2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_network_and_cawa_listens_to_its_own_network(twin: Any) -> None:
    model = network()
    both = nn.ModuleDict({"model": model, "cawa": cf.CAWA(model, 2)})
    images, labels = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8)
    model(images)
    both["cawa"].loss(labels).backward()
    other = twin(both)
    with pytest.raises(RuntimeError, match="has not run yet"):
        other["cawa"].loss(labels)
    other["model"](images).sum().backward()
    assert other["cawa"].loss(labels) == both["cawa"].loss(labels)
    assert other["cawa"].logits is not both["cawa"].logits
    assert len(other["model"][2]._forward_hooks) == 1


def test_a_head_that_is_no_1x1_convolution_is_reported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 3))
    with cf.GradCAM(model), pytest.raises(ValueError, match="has 16 outputs, but the network has 5"):
        model(torch.rand(1, 3, 8, 8))
    with cf.GradCAM(model, target_layer="0") as cam:
        model(torch.rand(1, 3, 8, 8))
        assert cam().shape == (1, 5, 8, 8)


def test_a_vector_of_logits_needs_a_scalar_target() -> None:
    with pytest.raises(ValueError, match=r"for input \(C,\) target must be a scalar of shape \(\), got \(3,\)"):
        CF.cross_entropy(torch.randn(3), torch.tensor([0, 1, 2]))


def test_item_raises_what_was_deferred() -> None:
    cf.set_label_check("deferred")
    criterion = cf.CrossEntropyLoss()
    good = criterion(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8))
    assert criterion.item(good) == pytest.approx(0.6931, abs=1e-4)
    bad = criterion(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255))
    with pytest.raises(ValueError, match="target: 4 pixels have the value 255"):
        criterion.item(bad)


def test_a_long_history_is_saved_and_loaded() -> None:
    weights, other = cf.AdaptiveClassWeights(150), cf.AdaptiveClassWeights(150)
    weights.history = [{"step": step, "weight": torch.rand(150).tolist()} for step in range(200)]
    other.load_state_dict(weights.state_dict())
    assert other.history == weights.history
