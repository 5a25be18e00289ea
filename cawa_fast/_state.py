"""Records as tensors of fixed size, for a ``state_dict``.

Loaders that fill the tensors of a fresh module in place (``torch.distributed.checkpoint``), or that compare shapes
before they copy, cannot load a tensor that grows with the training. Objects in place of tensors would do for these, but
not for formats that hold tensors alone (safetensors).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_RECORDS = 1000
"""Records of a history that a state holds. For 150 classes they take 5.6 MB."""

_RECORD_SIZE = 256  # bytes of a record of numbers
_MAGIC, _MAGIC_OFFSET = b"history1", b"history2"  # of records without and with offsets
_BY_CLASS = ("iou", "pixel_accuracy", "csps", "base_weight", "ratio_weight", "weight", "standard_error")
_KEYS = dict.fromkeys(_BY_CLASS, "<f4") | {"step": "<i8", "pixels": "<i8", "images": "<i8", "held": "?"}
_OFFSET = {"offset": "<f4"}
"""The keys of a record in their order, and their dtypes. All but "step" and "images" have a value for each class."""


def as_bytes(record: dict[str, Any]) -> Tensor:
    """A record of a few numbers as ``(256,)`` uint8, JSON and blanks.

    Python's JSON returns every finite float with the same bits.
    """
    return torch.frombuffer(bytearray(json.dumps(record).ljust(_RECORD_SIZE), "ascii"), dtype=torch.uint8)


def from_bytes(state: Tensor) -> Any:
    """What :func:`as_bytes` was given."""
    return json.loads(state.cpu().numpy().tobytes())


def as_history(records: list[dict[str, Any]], num_classes: int, *, offsets: bool = False) -> Tensor:
    """The last :data:`MOST_RECORDS` records of ``AdaptiveClassWeights.history`` as a uint8 tensor.

    Its size depends on ``num_classes`` and ``offsets`` alone. Keys of records that :meth:`step` does not write are left
    out. ``offsets``: whether the rule sets them. Without, the tensor is as large as before there were any.
    """
    keys = _KEYS | (_OFFSET if offsets else {})
    rows = np.zeros(MOST_RECORDS, _row(num_classes, keys))
    last = records[-MOST_RECORDS:]
    for row, record in zip(rows, last, strict=False):
        for bit, key in enumerate(keys):
            if key in record:
                row["keys"] |= 1 << bit
                row[key] = record[key]
    header = (_MAGIC_OFFSET if offsets else _MAGIC) + np.array([num_classes, len(last)], "<i8").tobytes()
    return torch.frombuffer(bytearray(header + rows.tobytes()), dtype=torch.uint8)


def from_history(state: Tensor) -> list[dict[str, Any]]:
    """What :func:`as_history` was given, or the records of a state that holds them as JSON."""
    data = state.cpu().numpy().tobytes()
    if data[:1] == b"[":
        return json.loads(data)
    if data[:8] not in (_MAGIC, _MAGIC_OFFSET):
        raise ValueError("AdaptiveClassWeights: _extra_state of the state holds no history; is the file damaged?")
    num_classes, count = np.frombuffer(data, "<i8", 2, offset=8).tolist()
    keys = _KEYS | (_OFFSET if data[:8] == _MAGIC_OFFSET else {})
    rows = np.frombuffer(data, _row(num_classes, keys), count, offset=24)
    return [{key: row[key].tolist() for bit, key in enumerate(keys) if row["keys"] >> bit & 1} for row in rows]


def _row(num_classes: int, keys: dict[str, str]) -> np.dtype[Any]:
    shapes = {"step": (), "images": ()}
    return np.dtype([("keys", "<u2"), *((key, kind, shapes.get(key, (num_classes,))) for key, kind in keys.items())])
