"""A LightningModule as people write it, and its data. As a program: trains in two processes with DDP, once more with a
static graph, and once with FSDP. The argument is the folder for results.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from bench.libraries import import_torchvision
from tests.support.scenes import CLASSES, scenes

import_torchvision()  # torchmetrics, which lightning imports, imports it

import lightning as L  # noqa: E402

from cawa_fast.integrations import lightning as integration  # noqa: E402

__all__ = ["CLASSES", "L", "Module", "integration", "loader", "network", "trainer"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self(batch[0])
        loss = self.cawa.loss(batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self(batch[0])
        self.log("val_loss", self.cawa.loss(batch[1], weighted=False), sync_dist=True)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Sharded(Module):
    """Shards its layers when the strategy asks for it, as ``ModelParallelStrategy`` wants it."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)

    def configure_model(self) -> None:
        if hasattr(self, "net"):
            return
        self.net = network()
        mesh = self.device_mesh["data_parallel"]
        for part in (self.net[0], self.net[2], self.net):
            fully_shard(part, mesh=mesh)


def loader(count: int = 6, batch_size: int = 2, *, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(scenes(count), batch_size, shuffle=shuffle)  # type: ignore[arg-type]


def trainer(folder: str | Path, *callbacks: Any, **options: Any) -> L.Trainer:
    defaults = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": str(folder)}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(callbacks=list(callbacks), **defaults | options)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    strategies = L.pytorch.strategies
    for name, strategy in (
        ("ddp", strategies.DDPStrategy(process_group_backend="gloo")),
        ("static", strategies.DDPStrategy(process_group_backend="gloo", static_graph=True)),
        ("fsdp", strategies.ModelParallelStrategy(2, 1, process_group_backend="gloo")),
    ):
        callback = integration.CawaCallback(CLASSES, ignore_index=255, metrics=True)
        module = Sharded() if name == "fsdp" else Module()
        run = trainer(sys.argv[1], callback, devices=2, strategy=strategy, max_epochs=2)
        run.fit(module, loader(8), loader(5))
        assert callback.cawa is not None
        assert isinstance(module.net[0].weight, DTensor) == (name == "fsdp")
        result = {"weights": callback.cawa.weights.state_dict(), "history": callback.cawa.weights.history}
        result |= {
            "net": {key: whole(value) for key, value in module.net.state_dict().items()},
            "miou": run.callback_metrics["val_miou"],
        }
        torch.save(result, Path(sys.argv[1], f"{name}-{run.global_rank}.pt"))


if __name__ == "__main__":
    main()
