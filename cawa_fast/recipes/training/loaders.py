"""The data of a run: its splits, their DataLoaders, and the normalisation of images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ... import CAWA
from ..config import TrainConfig
from ..datasets import (
    FILE_DATASETS,
    Augmentation,
    ClassIndex,
    EpochSampler,
    EvalView,
    SegmentationDataset,
    TrainView,
    build_dataset,
)
from ..parallel import cpu_count
from ..runs.data import removed_files
from ..runs.folder import RunFolder
from ..runs.resume import kept_data
from . import distributed

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_images(images: Tensor) -> Tensor:
    """Images ``(N, 3, H, W)`` uint8 as float32, normalised by ImageNet's mean and deviation, on their device."""
    scale, shift = _imagenet(images.device)
    return images.to(torch.float32, memory_format=torch.channels_last) * scale - shift


@functools.lru_cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached, since a copy to the GPU in every batch would make the host wait for it.
    scale = torch.tensor([1 / (255 * s) for s in _IMAGENET_STD], device=device).view(3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)], device=device)
    return scale, shift.view(3, 1, 1)


def open_split(config: TrainConfig, split: str) -> SegmentationDataset:
    """Open the split "train", "val" or "test" of the dataset that ``config`` names; the last by ``test_split``.

    With ``test_split="half"``, validation is the first half of the validation images and test is the second: halves of
    a video, so that no frame of one is the neighbour of many of the other.
    """
    if split == "test" and config.test_split is None:
        raise ValueError("test_split is None: the run has no test images")
    if config.test_split == "half" and split != "train":
        whole = open_split(dataclasses.replace(config, test_split=None), "val")
        if len(whole) < 2:
            raise ValueError(f"test_split='half': there is only {len(whole)} validation image; name another split")
        first = (len(whole) + 1) // 2
        return whole.part(range(first) if split == "val" else range(first, len(whole)))
    split = str(config.test_split) if split == "test" else split
    length = config.train_images if split == "train" else config.val_images
    options: dict[str, Any] = {} if length is None else {"length": length}
    if config.allow_outside_root:
        if not getattr(FILE_DATASETS.get(config.dataset), "reads_lists", False):
            raise ValueError(f"allow_outside_root: {config.dataset!r} reads no lists of files; leave it out")
        options["allow_outside_root"] = True
    return build_dataset(config.dataset, root=config.root, split=split, resize=config.resize, **options)


def open_splits(
    config: TrainConfig, folder: RunFolder, checkpoint: Mapping[str, Any] | None
) -> dict[str, SegmentationDataset]:
    """The images, by "train", "val" and, with ``test_split``, "test".

    ``checkpoint`` is that of a run in ``folder`` that continues, or None.

    Raises:
        ValueError, FileNotFoundError: a split cannot be opened; the message names the files that the run had and that
            are gone, if these are the reason.
    """
    try:
        return open_all(config)
    except (ValueError, FileNotFoundError) as error:
        then = None if checkpoint is None else kept_data(folder, checkpoint)
        gone: list[str] = []
        if then is not None and config.dataset in FILE_DATASETS and config.root is not None:
            with contextlib.suppress(ValueError, OSError):
                gone = removed_files(then, FILE_DATASETS[config.dataset](config.root, "val", allow_unpaired=True).root)
        if not gone:
            raise
        raise ValueError(
            f"{error}. The run in {folder.path} was begun with files that are gone: {'; '.join(gone)}. Restore them, "
            "or begin a new run with another --run-dir"
        ) from error


def open_all(config: TrainConfig) -> dict[str, SegmentationDataset]:
    """The images of a run, by "train", "val" and, with ``test_split``, "test"."""
    names = ("train", "val") if config.test_split is None else ("train", "val", "test")
    return {name: open_split(config, name) for name in names}


class Loaders:
    """The DataLoaders of a run. Training images are shuffled and augmented differently in each epoch.

    Args:
        config: the settings.
        train_set: the training images; at least ``config.batch_size``.
        val_set: the validation images.
        test_set: the test images, or None.
        pinned: put batches into pinned memory, for a GPU.

    Attributes:
        train, val, test: the loaders; the last may be None.
        sampler: of the training images; its ``set_epoch`` begins an epoch.

    Raises:
        ValueError: there are fewer images than in a batch, or images differ in size and there is no crop.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset,
        test_set: SegmentationDataset | None = None,
        *,
        pinned: bool,
    ) -> None:
        if len(train_set) < config.batch_size:
            raise ValueError(
                f"batch_size={config.batch_size} is more than the {len(train_set)} training images; lower it"
            )
        crop = config.crop or train_set.image_size
        if crop is None:
            raise ValueError(
                f"crop is needed, since the images of {config.dataset} differ in size; e.g. --crop 512x512"
            )
        workers = config.workers if config.workers is not None else default_workers()
        shared: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": pinned,
            "worker_init_fn": _begin_worker,
            # without it, the seeds of the workers would come from the generator that the network draws from
            "generator": torch.Generator().manual_seed(config.seed),
        }
        view = TrainView(train_set, Augmentation(crop, scale=config.scale), seed=config.seed)
        self.sampler = EpochSampler(len(train_set), seed=config.seed)
        # a last, smaller batch is dropped: it may be a single image, on which batch normalisation cannot train
        batches = distributed.BatchShare(self.sampler, config.batch_size)
        self.train: DataLoader[Any] = DataLoader(view, batch_sampler=batches, **shared)
        self._val_set, self._val_options = val_set, shared | {"batch_size": _batch(config, val_set)}
        self.val: DataLoader[Any] = DataLoader(EvalView(val_set), sampler=_own(val_set), **self._val_options)
        self.test: DataLoader[Any] | None = None
        if test_set is not None:
            options = shared | {"batch_size": _batch(config, test_set)}
            self.test = DataLoader(EvalView(test_set), sampler=_own(test_set), **options)

    def sample(self, cawa: CAWA, seed: int) -> DataLoader[Any]:
        """A loader of the sample of validation images that ``cawa`` draws for each step."""
        sampler = cawa.sampler(ClassIndex.build(self._val_set), seed=seed)
        return DataLoader(EvalView(self._val_set), sampler=sampler, **self._val_options)


def _batch(config: TrainConfig, dataset: SegmentationDataset) -> int:
    """Images at a time in a pass over whole images, which may differ in size."""
    return max(1, config.batch_size // distributed.world_size()) if dataset.image_size is not None else 1


def _own(dataset: SegmentationDataset) -> range:
    """The images of this process."""
    return range(distributed.rank(), len(dataset), distributed.world_size())


def default_workers() -> int:
    """The default number of DataLoader workers: half the cores, at most 8. On two cores none, since they would compete
    with the training itself.
    """
    return 0 if cpu_count() <= 2 else min(8, cpu_count() // 2)


def end_workers(*loaders: DataLoader[Any] | None) -> None:
    """Shut down the DataLoader workers. A loader that is used again starts new ones.

    If the interpreter terminates them at its end, PyTorch's SIGCHLD handler prints an error.
    """
    for loader in loaders:
        if loader is None:
            continue
        # persistent workers belong to the loader's iterator, which has no public method to end them
        end = getattr(loader._iterator, "_shutdown_workers", None)
        if end is not None:
            end()
            loader._iterator = None


def _begin_worker(worker: int) -> None:
    """Workers ignore SIGINT and the first SIGTERM; the main process shuts them down.

    Ctrl-C and schedulers signal all processes of a group. A worker that ended at once would be an error in the main
    process in the middle of a batch. A second SIGTERM ends the worker, since ``Process.terminate`` sends it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)
