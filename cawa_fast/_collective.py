"""Sums over processes, after which a process may exit at any time."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch.distributed as dist
from torch import Tensor

from . import _validate

_PATIENCE = 1.0  # seconds; reached only if something else, such as a hook or a profiler, keeps the tensor


def check_group(name: str, group: Any) -> None:
    """Raise a ``TypeError`` unless ``group`` is None or a process group of this process."""
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"{name}: group must be None or a process group that this process belongs to, got "
            f"{_validate.described(group)}; torch.distributed.new_group returns one"
        )


def sum_if_distributed(values: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Sum ``values`` over the processes, in place. Without ``torch.distributed`` they stay as they are."""
    if dist.is_available() and dist.is_initialized():
        all_reduce(values, group)


def all_reduce(values: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Sum ``values`` over the processes, in place. On return, gloo's worker threads hold no reference to the tensor.

    gloo's worker thread wakes the caller first and drops its reference afterwards, for which it takes the GIL. If the
    interpreter shuts down in between, after the last step of a training, the thread is terminated inside C++ and the
    process aborts with "terminate called without an active exception":
    https://github.com/pytorch/pytorch/issues/190489. ``destroy_process_group`` does not help if DDP holds the group.
    The thread has usually finished already; otherwise yielding to the scheduler once is enough.
    """
    references = sys.getrefcount(values)
    dist.all_reduce(values, group=group)
    deadline = time.monotonic() + _PATIENCE
    while not values.is_cuda and sys.getrefcount(values) > references and time.monotonic() < deadline:
        time.sleep(0)
