"""Several processes for one run, as ``torchrun`` starts them: each takes its share of every batch and of validation."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from ... import functional as CF
from ..._collective import all_reduce


def rank() -> int:
    """The number of this process, from 0; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_processes() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the other processes where ``torchrun`` has started several (NCCL on CUDA, else gloo); alone, nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """``values`` summed over all processes, in place."""
    if dist.is_initialized():
        all_reduce(values)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> tuple[nn.Module, DistributedDataParallel]:
    """``model`` and what trains it. Buffers stay each process's own; :func:`average_buffers` brings them together."""
    if device.type == "cuda":  # (there is none for the CPU)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # torch 2.13 has renamed the argument and warns of the old name
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    own_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return model, DistributedDataParallel(model, **own_buffers)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Makes the floating-point buffers (statistics of batch normalisation) the mean of all processes'.

    Every process has seen other images; without this each would validate with a network of its own.
    """
    if processes() == 1:
        return
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not floating:
        return
    flat = sum_over_processes(torch.cat([buffer.double().flatten() for buffer in floating])) / processes()
    for buffer, mean in zip(floating, flat.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def share_of_mean(labels: Tensor, weight: Tensor | None, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    r"""What this process's mean loss has to be multiplied by, so that the processes' average is the batch's mean.

    A weighted mean is divided by the sum of its pixels' weights :math:`D_r`, which differs from process to process;
    with :math:`D_r P / \sum_q D_q`, P processes, the average of gradients that DDP makes is the gradient of the mean
    over all pixels of the batch, as one process would compute it.

    Returns:
        the factor, and whether any pixel of the whole batch is labelled; both 0-dimensional, on the labels' device.
    """
    counts = CF.confusion_matrix(labels, labels, num_classes=num_classes, ignore_index=ignore_index).diagonal()
    own = counts.double().sum() if weight is None else (counts * weight.double()).sum()
    every = sum_over_processes(own.clone())
    return (own * processes() / every).where(every > 0, 0).float(), every > 0


class BatchShare(Sampler[list[Any]]):
    """This process's part of every batch; what is left of the last batch is dropped, for all of them.

    All processes together see the batches that one process would see.

    Args:
        sampler: the order of all images, the same in every process.
        batch_size: images of a batch in all processes together.

    Raises:
        ValueError: the processes cannot share a batch evenly.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int) -> None:
        if batch_size % processes():
            raise ValueError(
                f"batch_size={batch_size} is shared by {processes()} processes; choose a multiple of {processes()}"
            )
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sampler) // self.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield lists of what ``sampler`` yields."""
        order, part = list(self.sampler), self.batch_size // processes()
        for batch in range(len(self)):
            first = batch * self.batch_size + rank() * part
            yield order[first : first + part]
