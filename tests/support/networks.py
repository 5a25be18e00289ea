"""Small versions of the recipes' networks, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cawa_fast.recipes.models import build_model

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "deeplabv3plus": ("deeplabv3plus", {"backbone": "resnet18", "decoder_channels": 32}),
    "ocrnet": ("ocrnet", {"backbone": "resnet18", "channels": 32, "key_channels": 16}),
    "ocrnet-joined": ("ocrnet", {"backbone": "tu-hrnet_w18_small", "channels": 32, "key_channels": 16}),
    "segformer": ("segformer", {"backbone": "mit_b0", "decoder_channels": 32}),
    "segformer-cnn": ("segformer", {"backbone": "convnext_atto", "decoder_channels": 32}),
    "upernet": ("upernet", {"backbone": "resnet18", "decoder_channels": 32}),
}
"""For each name the model and its arguments."""

PAPER = ("deeplabv3plus", "ocrnet", "segformer", "upernet")
"""The networks that the paper trains."""

BEFORE_CLASSIFIER = {
    "compact": "fuse",
    "deeplabv3plus": "decoder",
    "ocrnet": "context",
    "ocrnet-joined": "context",
    "segformer": "network.decode_head.dropout",
    "segformer-cnn": "decoder",
    "upernet": "decoder",
}
"""The layer whose output the classifier reads."""

STRIDES = {"ocrnet": 8}
"""Strides of the logits, where they are not 4."""


def small(name: str, num_classes: int = 19, **changes: Any) -> nn.Module:
    """A small network with the same random weights in every test. As after training, its biases are not 0."""
    torch.manual_seed(0)
    if name == "compact":
        model = build_model("compact", num_classes)
    else:
        kind, options = SMALL[name]
        model = build_model(kind, num_classes, **{**options, **changes})
    assert model.classifier.bias is not None
    nn.init.normal_(model.classifier.bias)
    return model


def images(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
