"""MMSegmentation (mmengine's Runner) with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[mmseg,train]" && python examples/with_mmseg.py
"""

import tempfile

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric  # noqa: F401  (registers it)
from mmseg.models import EncoderDecoder  # noqa: F401
from mmseg.structures import SegDataSample

from cawa_fast.integrations import mmseg  # noqa: F401  (+) in a config file: custom_imports
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


@DATASETS.register_module()
class Street(StreetDataset):
    metainfo = {"classes": StreetDataset.class_names, "palette": [[0, 0, 0]] * 10}  # noqa: RUF012

    def __getitem__(self, index):
        image, label = map(torch.tensor, self.read(index))
        shape = {"img_shape": label.shape, "ori_shape": label.shape}
        sample = SegDataSample(gt_sem_seg=PixelData(data=label[None].long()), metainfo=shape)
        return {"inputs": image.permute(2, 0, 1), "data_samples": sample}


def loader(split, length):
    dataset = {"type": "Street", "split": split, "length": length, "size": (64, 128)}
    return {"dataset": dataset, "batch_size": 2, "num_workers": 0, "sampler": {"type": "DefaultSampler"}}


head = {"type": "FCNHead", "in_channels": 96, "in_index": 3, "channels": 32, "num_convs": 1, "num_classes": 10}
head["loss_decode"] = {"type": "CawaCrossEntropy"}  # (+) in place of CrossEntropyLoss
windows = {"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)}
preprocessor = {"type": "SegDataPreProcessor", "mean": [128.0] * 3, "std": [64.0] * 3, "size": (64, 128)}
model = {"type": "EncoderDecoder", "data_preprocessor": preprocessor, "test_cfg": windows, "decode_head": head}
model["backbone"] = {"type": "MobileNetV2", "out_indices": (1, 2, 3, 4), "norm_cfg": {"type": "BN"}}
with tempfile.TemporaryDirectory() as folder:
    config = {"default_scope": "mmseg", "work_dir": folder, "log_level": "ERROR", "model": model}
    config |= {"train_dataloader": loader("train", 16), "val_dataloader": loader("val", 5), "val_cfg": {}}
    config |= {"train_cfg": {"by_epoch": True, "max_epochs": 2}, "val_evaluator": {"type": "IoUMetric"}}
    config["optim_wrapper"] = {"optimizer": {"type": "AdamW", "lr": 2e-3}}
    config["custom_hooks"] = [{"type": "CawaHook"}]  # (+)
    runner = Runner.from_cfg(Config(config))
    runner.train()  # a run that was killed: resume=True
cawa = runner.hooks[[type(hook).__name__ for hook in runner.hooks].index("CawaHook")].cawa
print(f"loss {runner.message_hub.get_scalar('train/loss').current():.3f}, class weights {cawa.weight.tolist()}")
