"""Hugging Face accelerate: which images of a batch are not padding.

The rest of :class:`cawa_fast.CAWA` works in a loop with accelerate as it is:
``accelerator.backward(cawa.loss(labels))``, and ``accelerator.register_for_checkpointing(cawa)``. See
``docs/frameworks.md``.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor

from .. import _validate
from ._shared import missing

try:
    from accelerate import Accelerator
    from accelerate.state import GradientState, PartialState
except ImportError as error:
    raise missing("accelerate", error) from error

__all__ = ["mask"]


def mask(accelerator: Accelerator, n: int) -> Tensor:
    """Which images of this process's batch are not padding, for ``cawa.observe(labels, mask=mask(accelerator, n))``.

    So that all processes get equally many images, a loader that ``accelerator.prepare`` returned fills up the last
    batches with images from the beginning. Call this within the loop over that loader, once per batch: of all batches
    but the last it is true. ``accelerator.gather_for_metrics`` leaves out the same images.

    Args:
        accelerator: whose ``prepare`` the loader has gone through.
        n: images in this process's batch, at least 0.

    Returns:
        ``(n,)`` bool on the CPU: false for padding.

    Raises:
        TypeError: ``accelerator`` is no Accelerator, or ``n`` no integer.
        ValueError: ``n`` is negative.
        RuntimeError: the loader does not tell how many images are real: its dataset, or its batch sampler, has no
            length.

    Example:
        >>> from accelerate import Accelerator
        >>> from torch.utils.data import DataLoader
        >>> accelerator = Accelerator(cpu=True)
        >>> loader = accelerator.prepare(DataLoader(range(5), batch_size=3))
        >>> [mask(accelerator, len(batch)).tolist() for batch in loader]  # one process needs no padding
        [[True, True, True], [True, True]]
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"mask: accelerator must be an Accelerator, got {_validate.described(accelerator)}")
    n = _validate.as_int("mask", "n", n, "pass the number of images in the batch, len(labels)")
    if n < 0:
        raise ValueError(f"mask: n must be at least 0, got {n}; pass the number of images in the batch, len(labels)")
    return of_running_loader(n)


def of_running_loader(n: int, *, but_not: Any = None) -> Tensor:
    """:func:`mask` for the loader that runs now in this process, unless that is the loader ``but_not``."""
    loader, processes = GradientState().active_dataloader, PartialState().num_processes
    whole = torch.ones(n, dtype=torch.bool)
    if (
        loader is None
        or loader is but_not
        or processes == 1
        or not loader.end_of_dataloader
        or getattr(loader, "_drop_last", False)
    ):
        return whole
    real = loader.remainder
    shard: Any = getattr(loader, "batch_sampler", None)
    shard = shard if hasattr(shard, "even_batches") else getattr(loader, "sampler", None)
    if hasattr(shard, "even_batches"):
        if not shard.even_batches:
            return whole
        # The remainder follows from the length of the dataset, which may not be that of the sampler.
        sampler = getattr(shard.batch_sampler, "sampler", None)
        if isinstance(sampler, Sized) and shard.batch_size is not None:
            real = len(sampler) % (shard.batch_size * (1 if shard.split_batches else processes))
    if real < 0:
        dataset = getattr(loader.dataset, "dataset", loader.dataset)  # which accelerate may have wrapped
        raise RuntimeError(
            "mask: the loader does not tell how many images of the last batch are real; its dataset, of type "
            f"{type(dataset).__name__}, or its batch sampler has no length. Give it __len__, or use "
            "Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=True))"
        )
    first = PartialState().process_index * n
    return torch.arange(first, first + n) < real if real else whole
