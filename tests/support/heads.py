"""A small network with any heads, and checks of what CAWA makes of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf

C = 5
SIZE = (32, 40)


class Net(nn.Module):
    """Stride 4, heads by name, and a function from features and heads to the output."""

    def __init__(self, output: Any, **heads: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        for name, head in heads.items():
            self.add_module(name, head)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self, self.norm(self.stem(x)).relu())


def head(channels: int = C) -> nn.Conv2d:
    return nn.Conv2d(8, channels, 1)


def up(z: Tensor, **options: Any) -> Tensor:
    return F.interpolate(z, SIZE, **({"mode": "bilinear"} | options))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, *SIZE), torch.randint(0, C, (2, *SIZE))


def listen(model: nn.Module, **options: Any) -> tuple[cf.CAWA, Any, Tensor]:
    """CAWA after a forward pass, the output, and the loss."""
    cawa = cf.CAWA(model, C, **options)
    images, labels = batch()
    output = model(images)
    return cawa, output, cawa.loss(labels)


def check(model: nn.Module, logits: Any, **options: Any) -> cf.CAWA:
    """The loss, its gradients and the counts are those of the network's own logits, in training and evaluation."""
    cawa = cf.CAWA(model, C, source="argmax", **options)
    images, labels = batch()
    loss = (model.train()(images), cawa.loss(labels))[1]
    expected = F.cross_entropy(up_to(logits(model(images))), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(part, parameters, allow_unused=True) for part in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    cawa.reset()
    with torch.no_grad():
        predicted = up_to(logits(model.eval()(images))).argmax(1)
        cawa.observe(labels)
    assert cawa.weights.counts[0].tolist() == [int(((predicted == c) & (labels == c)).sum()) for c in range(C)]
    return cawa


def up_to(z: Tensor) -> Tensor:
    return z if z.shape[-2:] == SIZE else F.interpolate(z, SIZE, mode="bilinear")
