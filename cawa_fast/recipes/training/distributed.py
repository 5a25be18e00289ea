"""Training in several processes started by ``torchrun``: each takes its share of every batch and of validation."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from ... import functional as CF
from ..._collective import all_reduce


def rank() -> int:
    """The rank of this process, from 0. Only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """The number of those processes that run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started: by NCCL on CUDA, else by gloo. A single process joins nothing.

    Raises:
        ConnectionError: another process of the run has ended, or cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **_store_of_this_start())
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}); its own "
            "output says why. All finished epochs are saved: start the processes again with --resume"
        ) from error


def _store_of_this_start() -> dict[str, Any]:
    """Where the processes find each other, if ``torchrun --max-restarts`` has started them again.

    PyTorch keeps the store of the first start, with the addresses of processes that have ended, to which those of the
    next start may connect and wait. On several machines the number of starts may differ between them, so that
    PyTorch's store is left as it is.
    """
    starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if starts == "0" or local_world_size() < int(os.environ["WORLD_SIZE"]):
        return {}
    store, rank, size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"start {starts}", store), "rank": rank, "world_size": size}


def barrier() -> None:
    """Wait until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum ``values`` over all processes, in place."""
    if dist.is_initialized():
        all_reduce(values)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> tuple[nn.Module, DistributedDataParallel]:
    """The model, with SyncBatchNorm on CUDA, and its DistributedDataParallel wrapper.

    DDP does not synchronise the buffers; :func:`average_buffers` does so once per epoch.
    """
    if device.type == "cuda":  # SyncBatchNorm does not exist for the CPU
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # PyTorch 2.13 renamed the argument and warns about the old name
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    no_sync: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return model, DistributedDataParallel(model, **no_sync)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace the floating-point buffers, the statistics of batch normalisation, by their mean over all processes.

    Each process trains on different images. Without this, each would validate a different network.
    """
    if world_size() == 1:
        return
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not floating:
        return
    flat = sum_over_processes(torch.cat([buffer.double().flatten() for buffer in floating])) / world_size()
    for buffer, mean in zip(floating, flat.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def share_of_mean(labels: Tensor, weight: Tensor | None, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    r"""The factor for this process's mean loss that makes the average over processes the mean over the batch.

    A weighted mean divides by the sum :math:`D_r` of the weights of its pixels, which differs between processes. With
    the factor :math:`D_r P / \sum_q D_q` for P processes, the gradients that DDP averages are those of the mean over
    all pixels of the batch, as one process would compute it.

    Returns:
        the factor, and whether any pixel of the whole batch is labelled. Both are 0-dimensional and on the labels'
        device.
    """
    class_pixels = CF.confusion_matrix(labels, labels, num_classes=num_classes, ignore_index=ignore_index).diagonal()
    own = class_pixels.double().sum() if weight is None else (class_pixels * weight.double()).sum()
    every = sum_over_processes(own.clone())
    return (own * world_size() / every).where(every > 0, 0).float(), every > 0


class BatchShare(Sampler[list[Any]]):
    """Yields this process's part of every batch, so that all processes together see the batches of a single one.

    A last batch that is not full is dropped.

    Args:
        sampler: the order of all images, the same in every process.
        batch_size: images per batch over all processes.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int) -> None:
        if batch_size % world_size():
            raise ValueError(
                f"batch_size={batch_size} is shared by {world_size()} processes; choose a multiple of {world_size()}"
            )
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sampler) // self.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield lists of what ``sampler`` yields."""
        order, part = list(self.sampler), self.batch_size // world_size()
        for batch in range(len(self)):
            first = batch * self.batch_size + rank() * part
            yield order[first : first + part]
