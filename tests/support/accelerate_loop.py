"""A training loop with accelerate, as people write it. As a program for torchrun: trains, and writes what was counted.

The argument is the folder for results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

import cawa_fast as cf
from cawa_fast.integrations import accelerate as integration
from tests.support.scenes import CLASSES, scenes

__all__ = ["fit", "integration"]


class Stream(IterableDataset[Any]):
    """Scenes without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(scenes(5))


def fit(accelerator: Accelerator, epochs: int, folder: str | Path | None = None) -> cf.CAWA:
    """Train for so many epochs; with a folder, continue from the checkpoint in it, and write one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    cawa = cf.CAWA(model, CLASSES, ignore_index=255, ratio="smoothed").to(accelerator.device)
    accelerator.register_for_checkpointing(cawa)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaders = [DataLoader(scenes(count), 2) for count in (8, 5)]  # type: ignore[arg-type]
    wrapped, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, *loaders)
    if folder is not None and Path(folder).exists():
        accelerator.load_state(str(folder))
    for _ in range(epochs):
        wrapped.train()
        for images, labels in train_loader:
            with accelerator.accumulate(wrapped):
                wrapped(images)
                accelerator.backward(cawa.loss(labels))
                optimizer.step()
                optimizer.zero_grad()
        observe(accelerator, cawa, model, val_loader)
        cawa.step()
    if folder is not None:
        accelerator.save_state(str(folder))
    return cawa


def observe(accelerator: Accelerator, cawa: cf.CAWA, model: nn.Module, loader: Any) -> None:
    """Score all images of a loader."""
    model.eval()
    for images, labels in loader:
        with torch.no_grad():
            model(images)
        cawa.observe(labels, mask=integration.mask(accelerator, len(labels)))


def counted(accelerator: Accelerator, loader: DataLoader[Any]) -> int:
    """The pixels that are counted in one pass over a loader, on all processes."""
    model = nn.Conv2d(3, CLASSES, 1)
    cawa = cf.CAWA(model, CLASSES, ignore_index=255)
    observe(accelerator, cawa, model, accelerator.prepare(loader))
    cawa.step()
    return sum(cawa.weights.history[0]["pixels"])


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    result: dict[str, Any] = {"weights": fit(accelerator, 2).weights.state_dict()}
    data: Any = scenes(9)
    result["subset"] = counted(accelerator, DataLoader(data, 2, sampler=SubsetRandomSampler([0, 1, 2, 3, 4, 8])))
    result["small"] = counted(accelerator, DataLoader(data[:1], 4))
    result["full"] = counted(accelerator, DataLoader(data[:8], 2))
    for name, options, loader in (
        ("split", {"split_batches": True}, DataLoader(data[:5], 4)),
        ("uneven", {"even_batches": False}, DataLoader(data[:5], 2)),
        ("dispatched", {"dispatch_batches": True}, DataLoader(data[:5], 2)),
        ("stream", {}, DataLoader(Stream(), 2)),
    ):
        other = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))  # type: ignore[arg-type]
        result[name] = counted(other, loader)
    shards = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    try:
        counted(shards, DataLoader(Stream(), 2))
    except RuntimeError as error:
        result["error"] = str(error)
    torch.save(result, Path(sys.argv[1], f"{accelerator.process_index}.pt"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
