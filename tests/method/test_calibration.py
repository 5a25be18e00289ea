"""Offsets fitted after the training, and the bias that takes them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cawa_fast import calibration
from cawa_fast import functional as CF


def batches() -> list[tuple[Tensor, Tensor]]:
    """Noisy logits of three classes, of which the rare one has been learned too seldom; one label is ignored."""
    generator = torch.Generator().manual_seed(0)
    target = torch.multinomial(torch.tensor([0.8, 0.18, 0.02]), 4 * 48 * 48, True, generator=generator).view(4, 48, 48)
    logits = torch.randn(4, 4, 48, 48, generator=generator)
    logits[:, :3] += 2 * nn.functional.one_hot(target, 3).permute(0, 3, 1, 2)
    logits += torch.tensor([1.0, 0.0, -2.0, -9.0]).view(4, 1, 1)
    target[0, 0] = 255
    return [(logits[:2], target[:2]), (logits[2:], target[2:])]


def lacking(offset: Tensor) -> Tensor:
    shifted = ((z + offset.view(-1, 1, 1), y) for z, y in batches())
    matrix = sum(CF.confusion_matrix(z, y, ignore_index=255) for z, y in shifted)
    return ((matrix.sum(1) + 1) / (matrix.sum(0) + 1)).log()


def test_all_the_way_every_class_is_predicted_as_often_as_it_occurs() -> None:
    assert lacking(torch.zeros(4))[2] > 0.5
    offset = calibration.fit_offset(batches(), strength=math.inf, ignore_index=255)
    assert lacking(offset)[:3].abs().max() < 0.03
    assert offset[3] == 0  # without labelled pixels
    assert abs(offset.sum()) < 1e-5


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_offsets_are_a_multiple_of_what_they_leave(strength: float) -> None:
    offset = calibration.fit_offset(batches(), strength=strength, ignore_index=255)[:3]
    left = strength * lacking(torch.cat((offset, torch.zeros(1))))[:3]
    torch.testing.assert_close(offset, (left - left.mean()).float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("layer", [nn.Conv2d(5, 3, 1, bias=False), nn.Conv2d(5, 3, 1), nn.Linear(5, 3)])
def test_folded_offsets_are_added_to_the_logits(layer: nn.Module) -> None:
    x = torch.randn(2, 5, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5)
    before, offset = layer(x), torch.tensor([-1.0, 0.25, 0.75])
    calibration.fold_offset(layer, offset)
    along = offset.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else offset
    torch.testing.assert_close(layer(x), before + along)
    assert layer.bias.requires_grad


def test_errors() -> None:
    z, y = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255)
    for call, message in [
        (lambda: calibration.fit_offset([]), "batches is empty"),
        (lambda: calibration.fit_offset([(z, y)], ignore_index=255), "no pixel is labelled"),
        (lambda: calibration.fit_offset([(z, y)], strength=0), "strength must be positive"),
        (lambda: calibration.fit_offset([(z, y), (z[:, :1], y)]), r"logits \(1, 1, 2, 2\) must be"),
        (lambda: calibration.fold_offset(nn.Conv2d(1, 2, 1), torch.zeros(3)), r"offset must be \(2,\) and finite"),
        (lambda: calibration.fold_offset(nn.Conv2d(1, 1, 1), torch.tensor([math.nan])), "must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"layer must be an nn\.Conv2d or nn\.Linear, got an object of type ReLU"):
        calibration.fold_offset(nn.ReLU(), torch.zeros(2))
