"""Tiny networks of transformers, with random weights.

Import transformers and its integration from here: torchvision, which they import, may not fit this torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.libraries import import_torchvision

import_torchvision()

import transformers  # noqa: E402

from cawa_fast.integrations import transformers as integration  # noqa: E402

__all__ = ["OPTIONS", "integration", "tiny", "transformers", "without_randomness"]

_VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
_BEIT = _VIT | {"image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 16}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]

OPTIONS: dict[str, dict[str, Any]] = {
    "Segformer": {"hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "depths": [1] * 4},
    "UperNet": {"hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 16},
    "Beit": _BEIT,
    "Data2VecVision": _BEIT,
    "DPT": _VIT
    | {
        "image_size": 64,
        "patch_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
        "is_hybrid": False,
    },
    "MobileViT": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "aspp_out_channels": 16},
    "MobileNetV2": {"depth_multiplier": 0.25},
}
"""For each network the options of its configuration."""


def tiny(name: str, classes: int, **options: Any) -> nn.Module:
    """A network with the same random weights in every test."""
    torch.manual_seed(0)
    options = OPTIONS[name] | options
    if name == "UperNet":
        options["backbone_config"] = transformers.ConvNextConfig(
            depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], out_features=_STAGES
        )
    config = getattr(transformers, f"{name}Config")(num_labels=classes, **options)
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


def without_randomness(model: nn.Module) -> nn.Module:
    """Without dropout, and with normalisation by image: the loss does not depend on how images share batches."""
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.BatchNorm2d):
            setattr(parent, name.rpartition(".")[2], nn.GroupNorm(1, module.num_features))
        elif isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model
