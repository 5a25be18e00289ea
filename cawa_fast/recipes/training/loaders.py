"""A run's images: the splits of its data set, their loading, and what the network gets of them."""

from __future__ import annotations

import functools
import signal
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ... import CAWA
from ..config import TrainConfig
from ..datasets import Augmentation, ClassIndex, EpochSampler, EvalView, SegmentationDataset, TrainView, build_dataset
from ..parallel import cpu_count
from . import distributed

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_images(images: Tensor) -> Tensor:
    """``(N, 3, H, W)`` uint8 to float32 with ImageNet's mean 0 and deviation 1, on the images' device."""
    scale, shift = _imagenet(images.device)
    return images.to(torch.float32, memory_format=torch.channels_last) * scale - shift


@functools.lru_cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    # kept: a copy from the host in every batch would make a GPU's host wait
    scale = torch.tensor([1 / (255 * s) for s in _IMAGENET_STD], device=device).view(3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)], device=device)
    return scale, shift.view(3, 1, 1)


def open_split(config: TrainConfig, split: str) -> SegmentationDataset:
    """The data set of ``config``, "train" or "val"."""
    length = config.train_images if split == "train" else config.val_images
    options = {} if length is None else {"length": length}
    return build_dataset(config.dataset, root=config.root, split=split, resize=config.resize, **options)


class Loaders:
    """Batches of both splits: of training images, drawn and augmented anew each epoch, and of validation images.

    Args:
        config: the settings.
        train_set: the training images; at least ``config.batch_size``.
        val_set: the validation images.
        pinned: whether batches go to a GPU.

    Attributes:
        train, val: the loaders.
        sampler: of the training images; told of every epoch.

    Raises:
        ValueError: too few images for a batch, or images that differ in size without a crop.
    """

    def __init__(
        self, config: TrainConfig, train_set: SegmentationDataset, val_set: SegmentationDataset, *, pinned: bool
    ) -> None:
        if len(train_set) < config.batch_size:
            raise ValueError(
                f"batch_size={config.batch_size} is more than the {len(train_set)} training images; lower it"
            )
        crop = config.crop or train_set.image_size
        if crop is None:
            raise ValueError(f"crop is needed: the images of {config.dataset} differ in size; e.g. --crop 512x512")
        workers = config.workers if config.workers is not None else default_workers()
        shared: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": pinned,
            "worker_init_fn": _begin_worker,
            # of its own, so that the seeds of workers are not drawn from the generator that the network uses
            "generator": torch.Generator().manual_seed(config.seed),
        }
        view = TrainView(train_set, Augmentation(crop, scale=config.scale), seed=config.seed)
        self.sampler = EpochSampler(len(train_set), seed=config.seed)
        # the last, smaller batch is dropped: batch normalisation cannot train on what may be a single image
        batches = distributed.BatchShare(self.sampler, config.batch_size)
        self.train: DataLoader[Any] = DataLoader(view, batch_sampler=batches, **shared)
        val_batch = max(1, config.batch_size // distributed.processes()) if val_set.image_size is not None else 1
        self._val_set, self._val_options = val_set, shared | {"batch_size": val_batch}
        own = range(distributed.rank(), len(val_set), distributed.processes())
        self.val: DataLoader[Any] = DataLoader(EvalView(val_set), sampler=own, **self._val_options)

    def sample(self, cawa: CAWA, seed: int) -> DataLoader[Any]:
        """A loader of the validation images that ``cawa`` draws for a step."""
        sampler = cawa.sampler(ClassIndex.build(self._val_set), seed=seed)
        return DataLoader(EvalView(self._val_set), sampler=sampler, **self._val_options)


def default_workers() -> int:
    """Loading processes: none on two cores, where they would only take turns with the training itself."""
    return 0 if cpu_count() <= 2 else min(8, cpu_count() // 2)


def end_workers(*loaders: DataLoader[Any] | None) -> None:
    """Ends the loading processes in order; a loader that is used again begins new ones.

    Left to the interpreter's end they are terminated, of which PyTorch's SIGCHLD handler complains on the terminal.
    """
    for loader in loaders:
        if loader is None:
            continue
        # persistent workers belong to the loader's iterator, and there is no public way to end them
        end = getattr(loader._iterator, "_shutdown_workers", None)
        if end is not None:
            end()
            loader._iterator = None


def _begin_worker(worker: int) -> None:
    """A signal to the whole group, as Ctrl-C and a scheduler send it, is the main process's to act on, who ends us.

    One that died first would be an error there, in the middle of a batch. SIGTERM is let pass once alone, since
    ``Process.terminate`` sends it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)
