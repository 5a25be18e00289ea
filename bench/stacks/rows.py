"""The rows of ``python -m bench stacks``, and what their table says beside the measurements."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import cases
from ..files import ROOT
from . import networks
from .networks import Built, Images

NAMES = ("own", "ours")


@dataclass(frozen=True)
class StackRow:
    """A framework, and the network that is trained in it.

    Attributes:
        key: as ``--rows`` takes it.
        stack: the framework, as in tables.
        network: as in tables.
        own: the loss that it is compared with.
        build: of :mod:`bench.stacks.networks`.
        example: of ``examples/``, whose marked lines are counted.
        not_fused: what works on full-resolution logits all the same.
        classes, images, size: C, N, and ``(H, W)`` of a step.
    """

    key: str
    stack: str
    network: str
    own: str
    build: Callable[[bool, int, Images], Built]
    example: str
    not_fused: str = "–"
    classes: int = 150
    images: int = 4
    size: tuple[int, int] = (256, 256)

    def shrunk(self) -> StackRow:
        """The same on two images of 64 x 64 pixels, for a trial."""
        return replace(self, images=2, size=(64, 64))

    def lines(self) -> int:
        """Lines of the example that are new or changed."""
        text = (ROOT / "examples" / f"{self.example}.py").read_text(encoding="utf-8")
        return text.partition('"""\n\n')[2].count("(+)")


_UPSAMPLED = "the network's own resize runs, without a gradient"

ROWS = (
    StackRow("transformers", "transformers", "SegFormer-B0", "model(labels=)", networks.transformers, "with_trainer"),
    StackRow(
        "plain",
        "Lightning, accelerate",
        "SegFormer-B0",
        "F.interpolate, F.cross_entropy",
        networks.plain,
        "with_lightning",
    ),
    StackRow(
        "mmseg",
        "MMSegmentation",
        "SegFormer-B0",
        "CrossEntropyLoss, accuracy",
        networks.mmseg,
        "with_mmseg",
        "heads with a loss_by_feat of their own, pixel samplers; validation",
    ),
    StackRow(
        "ultralytics",
        "Ultralytics",
        "YOLO26n-sem",
        "cross-entropy, Dice, auxiliary",
        networks.ultralytics,
        "with_ultralytics",
        "the argmax of the validation",
    ),
    StackRow("smp", "smp", "DeepLabV3+ R18", "F.cross_entropy", networks.smp, "with_smp", _UPSAMPLED),
    StackRow(
        "torchvision",
        "torchvision",
        "DeepLabV3 MobileNetV3",
        "F.cross_entropy",
        networks.torchvision,
        "with_torchvision",
        _UPSAMPLED,
    ),
    StackRow("monai", "MONAI", "UNet", "F.cross_entropy", networks.monai, "with_monai", "nothing to resize"),
)


def batch(row: StackRow) -> Images:
    """Noise as images, with labels of drawn scenes, of which some are ignored."""
    low = (row.size[0] // 4, row.size[1] // 4)
    labels = cases.repeat(cases.make("realistic", row.classes, low, row.size, images=2), row.images, "cpu").labels
    images = torch.rand(row.images, 3, *row.size, generator=torch.Generator().manual_seed(cases.SEED))
    return Images(images, labels.long(), labels.contiguous())


class Training:
    """One network of a row, and steps with one of its losses.

    Args:
        row: what.
        name: of :data:`NAMES`.
        data: the batch of every step.

    Raises:
        ImportError: the framework is not installed.
    """

    def __init__(self, row: StackRow, name: str, data: Images) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the framework
            torch.manual_seed(0)
            self.network, self._loss = row.build(name == "ours", row.classes, data)
        self.network.train()
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3)

    def loss(self) -> Tensor:
        """Of the next step; the same random numbers for dropout each time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1)
            return self._loss()

    def step(self) -> Tensor:
        """Forward, loss, backward, and a step of the optimiser."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
