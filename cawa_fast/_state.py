"""Records as tensors, for a ``state_dict``."""

from __future__ import annotations

import json
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
