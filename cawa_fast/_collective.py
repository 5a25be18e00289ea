"""A sum over all processes, after which the process may end at any time."""

from __future__ import annotations

import sys
import time

import torch.distributed as dist
from torch import Tensor

_PATIENCE = 1.0  # seconds; only somebody else who keeps the tensor (a hook, a profiler) can make the wait that long


def all_reduce(values: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Sums ``values`` over the processes, in place; when it returns, the group's threads have let go of the tensor.

    gloo's worker thread drops its reference only after it has woken the caller, and takes Python's lock to do so. If
    the interpreter ends in between (the last step of a training that is done), the thread is ended inside C++ and the
    process aborts with "terminate called without an active exception": https://github.com/pytorch/pytorch/issues/190489.
    ``destroy_process_group`` does not help where DDP holds the group. Mostly the thread is done already; otherwise one
    turn of the scheduler suffices.
    """
    references = sys.getrefcount(values)
    dist.all_reduce(values, group=group)
    deadline = time.monotonic() + _PATIENCE
    while not values.is_cuda and sys.getrefcount(values) > references and time.monotonic() < deadline:
        time.sleep(0)
