"""PyTorch's default dtype changes no result and no dtype: weights are float32, and losses have that of their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import cawa_fast as cf
import cawa_fast.functional as CF

LABELS = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(0))


def logits(size: tuple[int, int] = (4, 6), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    z = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    return z.to(dtype).requires_grad_()


def loss(dtype: torch.dtype, weight: bool, size: tuple[int, int], reduction: str) -> list[torch.Tensor]:
    z, w = logits(size, dtype), torch.tensor([0.5, 1, 2], dtype=torch.float32) if weight else None
    value = CF.cross_entropy(z, LABELS, w, reduction=reduction)
    value.sum().backward()
    assert z.grad is not None
    return [value.detach(), z.grad]


def adaptive(rule: str) -> list[torch.Tensor]:
    weights = cf.AdaptiveClassWeights(3, rule=rule, source="cam" if rule == "cawa" else "argmax", momentum=0.5)
    for _ in range(2):
        weights.observe(logits().detach().relu(), LABELS)
        weights.step()
    assert weights.weight.dtype == torch.float32
    return [value.float() for value in weights.state_dict().values() if value.is_floating_point()]


def loop() -> list[torch.Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).float()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    cawa = cf.CAWA(net, 3)
    images = torch.ones(2, 3, 8, 12, dtype=torch.float32)
    net(images)
    value = cawa.loss(LABELS)
    with torch.no_grad():
        net(images)
        cawa.observe(LABELS)
    return [value.detach(), cawa.step()]


CALLS: dict[str, Callable[[], list[torch.Tensor]]] = {
    **{
        f"{reduction}, {dtype}, {'weight' if weight else 'plain'}, {size}": (
            lambda dtype=dtype, weight=weight, size=size, reduction=reduction: loss(dtype, weight, size, reduction)
        )
        for reduction in ("mean", "sum", "none")
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        for weight in (False, True)
        for size in ((4, 6), (8, 12))
    },
    "focal": lambda: [cf.FocalLoss()(logits(), LABELS).detach()],
    "recall": lambda: [cf.RecallLoss()(logits(), LABELS).detach()],
    "adjusted": lambda: [cf.LogitAdjustedLoss([5, 3, 1])(logits(), LABELS).detach()],
    "static": lambda: [getattr(cf.weighting, name)([5, 3, 0]) for name in ("uniform", "enet", "median_frequency")],
    **{rule: lambda rule=rule: adaptive(rule) for rule in ("cawa", "recall", "difficulty")},
    "loop": loop,
}


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.usefixtures("restored")
def test_the_default_dtype_changes_nothing(call: str) -> None:
    expected = CALLS[call]()
    for default in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        found = CALLS[call]()
        assert [value.dtype for value in found] == [value.dtype for value in expected]
        for value, like in zip(found, expected, strict=True):
            assert torch.equal(value.nan_to_num(-1), like.nan_to_num(-1))
