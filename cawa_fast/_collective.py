"""An all-reduce after which the process may exit at any time."""

from __future__ import annotations

import sys
import time

import torch.distributed as dist
from torch import Tensor

_PATIENCE = 1.0  # seconds; reached only if something else, such as a hook or a profiler, keeps the tensor


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
