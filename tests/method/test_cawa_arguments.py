"""Arguments of ``CAWA`` and ``GradCAM`` of another type or out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cawa_fast as cf

C = 5


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, C, 1))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_classes": 5.0}, TypeError, "CAWA: num_classes must be an integer, got the float 5.0"),
    ({"num_classes": True}, TypeError, "CAWA: num_classes must be an integer, got True"),
    ({"num_classes": None}, TypeError, "CAWA: num_classes must be an integer, got None"),
    ({"num_classes": "5"}, TypeError, "CAWA: num_classes must be an integer, got the str '5'"),
    ({"classifier": 1}, TypeError, "classifier must be a module or its dotted name, got the int 1"),
    ({"classifier": torch.zeros(5, 8, 1, 1)}, TypeError, "classifier must be a module.*got a tensor"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an integer, got None; .*such as -100"),
    ({"ignore_index": [255]}, TypeError, r"ignore_index must be an integer, got the list \[255\]"),
    ({"ignore_index": 255.0}, TypeError, "ignore_index must be an integer, got the float"),
    ({"align_corners": "yes"}, TypeError, "CAWA: align_corners must be True or False, got the str 'yes'"),
    ({"align_corners": 2}, TypeError, "CAWA: align_corners must be True or False, got the int 2"),
    ({"verify": None}, TypeError, "CAWA: verify must be True or False, got None"),
    ({"verify": "head"}, TypeError, "CAWA: verify must be True or False"),
    ({"budget": "0.02"}, TypeError, r"CAWA: budget must be an integer, got the str '0.02'; pass a float in \(0, 1\)"),
    ({"budget": True}, TypeError, "CAWA: budget must be an integer, got True"),
    ({"budget": float("nan")}, ValueError, r"CAWA: budget must be a share of the training time in \(0, 1\), got nan"),
    ({"budget": 1.0}, ValueError, "budget must be a share.*got 1.0"),
    ({"budget": 1}, ValueError, "budget must be a share.*got 1; .*number of images"),
    ({"every": 1.5}, TypeError, "CAWA: every must be an integer, got the float 1.5"),
    ({"every": float("nan")}, TypeError, "CAWA: every must be an integer, got the float nan"),
    ({"every": -3}, ValueError, "CAWA: every must be at least 1, got -3"),
    ({"method": None}, ValueError, "CAWA: method must be one of gradcam"),
    ({"reduction": 1}, ValueError, "reduction must be one of mean"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_of_cawa(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        cf.CAWA(model, **({"num_classes": C} | options))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model", ["resnet", [network()], network, torch.zeros(3), {"net": network()}])
def test_of_the_network(model: Any) -> None:
    with pytest.raises(TypeError, match=r"(?s)model must be a torch.nn.Module, got .*CAWA\(None, num_classes\)"):
        cf.CAWA(model, C)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        cf.GradCAM(model)


def test_integers_of_other_types_are_accepted() -> None:
    cawa = cf.CAWA(network(), np.int64(C), ignore_index=np.uint8(255), every=torch.tensor(2), budget=np.int32(4))
    assert (cawa.weights.num_classes, cawa.criterion.ignore_index, cawa.every, cawa.budget) == (C, 255, 2, 4)
    assert cf.CAWA(None, C, budget=np.float32(0.5)).budget == 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_layer": 3}, TypeError, "target_layer must be a module or its dotted name, got the int 3"),
        ({"target_layer": ["0"]}, TypeError, "target_layer must be a module or its dotted name, got the list"),
        ({"classifier": 3}, TypeError, "classifier must be a module or its dotted name"),
        ({"num_classes": 5.0}, TypeError, "num_classes must be an integer, got the float 5.0"),
        ({"method": ["gradcam"]}, ValueError, "method must be one of gradcam.*got the list"),
    ],
)
def test_of_gradcam(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cf.GradCAM(network(), **options)


@pytest.mark.parametrize(
    "logits", [np.zeros((1, C, 4, 4), "f4"), [[1.0]], {"out": torch.zeros(1, C, 4, 4)}, torch.zeros(1, C, 4, 4).long()]
)
def test_of_passed_logits(logits: Any) -> None:
    cawa = cf.CAWA(None, C)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for call in (cawa.loss, cawa.observe):
        with pytest.raises(TypeError, match=r"CAWA.(loss|observe): logits must be"):
            call(labels, logits=logits)


def test_of_passed_logits_with_other_channels() -> None:
    cawa = cf.CAWA(None, C)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for call in (cawa.loss, cawa.observe):
        with pytest.raises(ValueError, match=r"5|\(C,\)"):
            call(labels, logits=torch.zeros(1, 3, 4, 4))
