"""A training with mmengine as people configure it, on drawn scenes. As a program: in two processes.

The argument is the folder for results.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.libraries import import_mmseg
from tests.support.scenes import CLASSES, scenes

warnings.simplefilter("ignore")
import_mmseg()

import mmseg  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402, F401
from mmseg.models import EncoderDecoder  # noqa: E402, F401
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from cawa_fast.integrations import _mmseg_loss as loss_module  # noqa: E402
from cawa_fast.integrations import mmseg as integration  # noqa: E402

__all__ = ["MODELS", "UNPICKLE", "integration", "loss_module", "runner", "sample"]

UNPICKLE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # mmengine 0.10.7 does not load its own checkpoints otherwise


@MODELS.register_module()
class Tiny(nn.Module):
    """A backbone with two stages, at strides 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(images).relu()
        return first, self.second(first).relu()


def sample(image: torch.Tensor, label: torch.Tensor) -> dict[str, Any]:
    size = tuple(label.shape)
    data = SegDataSample(
        gt_sem_seg=PixelData(data=label[None]),
        metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size},
    )
    return {"inputs": (image * 255).to(torch.uint8), "data_samples": data}


@DATASETS.register_module()
class Scenes(torch.utils.data.Dataset[Any]):
    METAINFO = {"classes": [f"class{number}" for number in range(CLASSES)], "palette": [[0, 0, 0]] * CLASSES}  # noqa: RUF012

    def __init__(self, count: int, skip: int = 0) -> None:
        self.metainfo = dict(self.METAINFO)
        self.samples = [sample(*pair) for pair in scenes(count)[skip:]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def config(folder: str | Path, **changes: Any) -> Config:
    """Two epochs of three batches, five images in the validation; ``changes`` are merged in."""
    head = {"type": "mmseg.FCNHead", "num_convs": 1, "kernel_size": 1, "concat_input": False, "channels": 8}
    head |= {"num_classes": CLASSES, "dropout_ratio": 0.0, "norm_cfg": None, "act_cfg": {"type": "ReLU"}}
    inherited = {"use_sigmoid": False, "class_weight": None, "avg_non_ignore": True}  # as configs inherit them
    head |= {"loss_decode": {"type": "mmseg.CawaCrossEntropy", **inherited}, "init_cfg": {"type": "Normal", "std": 0.1}}
    loaders = {
        name: {
            "dataset": {"type": "Scenes", "count": count},
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 2,
            "num_workers": 0,
        }
        for name, count in (("train", 6), ("val", 5))
    }
    values = Config(
        {
            "default_scope": "mmseg",
            "custom_imports": {"imports": ["cawa_fast.integrations.mmseg"]},
            "model": {
                "type": "mmseg.EncoderDecoder",
                "data_preprocessor": {"type": "mmseg.SegDataPreProcessor", "mean": [0.0] * 3, "std": [255.0] * 3}
                | {"size": (32, 64), "test_cfg": {"size_divisor": 32}},
                "backbone": {"type": "mmseg.Tiny"},
                "decode_head": {**head, "in_channels": 8, "in_index": 1},
                "auxiliary_head": {
                    **head,
                    "in_channels": 8,
                    "in_index": 0,
                    "loss_decode": {"type": "mmseg.CawaCrossEntropy", "loss_weight": 0.4},
                },
                "train_cfg": {},
                "test_cfg": {"mode": "whole"},
            },
            "train_dataloader": loaders["train"],
            "val_dataloader": loaders["val"],
            "val_evaluator": {"type": "mmseg.IoUMetric"},
            "train_cfg": {"by_epoch": True, "max_epochs": 2, "val_interval": 1},
            "val_cfg": {},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "mIoU"}},
            "custom_hooks": [{"type": "mmseg.CawaHook"}],
            "work_dir": str(folder),
            "experiment_name": Path(folder).name,
            "randomness": {"seed": 0},
            "log_level": "ERROR",
            "env_cfg": {"dist_cfg": {"backend": "gloo"}, "cudnn_benchmark": False},
        }
    )
    if "train_cfg" in changes:
        values.train_cfg = changes.pop("train_cfg")  # the keys of one loop do not fit another
    values.merge_from_dict(changes)
    path = Path(folder, "config.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    values.dump(path)
    return Config.fromfile(path)  # which imports what custom_imports names


def runner(folder: str | Path, **changes: Any) -> Any:
    return Runner.from_cfg(config(folder, **changes))


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")  # mmengine would ask for a GPU
    wrapper = {"type": "mmengine.MMDistributedDataParallel", "device_ids": None}
    run = runner(sys.argv[1], launcher="pytorch", model_wrapper_cfg=wrapper)
    run.train()
    cawa = next(hook for hook in run.hooks if type(hook).__name__ == "CawaHook").cawa
    result = {"weights": cawa.weights.state_dict(), "history": cawa.weights.history, "version": mmseg.__version__}
    torch.save(result, Path(sys.argv[1], f"{run.rank}.pt"))


if __name__ == "__main__":
    os.environ |= UNPICKLE
    main()
