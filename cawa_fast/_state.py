"""What modules keep between steps: settings that were checked, and records as tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_bytes(value: Any) -> Tensor:
    """``value`` as a tensor of JSON bytes, for a state_dict.

    Formats that hold tensors alone (safetensors) keep it too, and torch.load(weights_only=True) reads it. Python's JSON
    returns every float with the same bits, NaN included.
    """
    return torch.frombuffer(bytearray(json.dumps(value), "ascii"), dtype=torch.uint8)


def from_bytes(state: Tensor) -> Any:
    """What :func:`as_bytes` was given."""
    return json.loads(state.cpu().numpy().tobytes())


def check(condition: bool, argument: str, value: object, must: str) -> None:
    """Raise a ``ValueError`` that says what ``argument`` of ``AdaptiveClassWeights`` must be, unless ``condition``."""
    if not condition:
        raise ValueError(f"AdaptiveClassWeights: {argument} must {must}, got {value!r}")


def as_counts(counts: Tensor | Sequence[int] | None, num_classes: int) -> Tensor | None:
    """``class_counts`` as a tensor of its own, checked."""
    if counts is None:
        return None
    result = torch.as_tensor(counts).detach().clone()
    check(result.shape == (num_classes,), "class_counts", tuple(result.shape), f"have the shape ({num_classes},)")
    valid = bool((result >= 0).all()) and bool(result.double().isfinite().all()) and bool((result > 0).any())
    check(valid, "class_counts", result.tolist(), "be finite, not negative and not all zero")
    return result if result.is_floating_point() else result.to(torch.int64)
